"""`gpushare-agent`: reads its configuration and locks its state; `starting` does the rest, until a signal.

Nothing imports this.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from gpushare.config import AGENT_FILE, AgentConfig, load_agent_config, right_text
from gpushare.configfile import refuse_readable_by_others
from gpushare.errors import GpushareError
from gpushare.host.commands import agent_host, is_for_host
from gpushare.join import JoinString, decode_agent_join
from gpushare_agent.gpus.catalogue import CatalogueError, parse_node
from gpushare_agent.identity import IdentityError, StateDirectory, is_enrolled, place_logs

EXIT_REFUSED = 1


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 after a signal, 1 where it could not start or a part of it failed."""
    given = sys.argv[1:] if argv is None else argv
    if is_for_host(given):
        return agent_host(given)
    parser = argparse.ArgumentParser(
        prog="gpushare-agent",
        description="Runs tasks in slices of this host's GPUs.",
        epilog="`gpushare-agent install --help`: as a service of this host.",
    )
    parser.add_argument("--config", type=Path, help="configuration file (TOML)")
    parser.add_argument("--join", help="join line from `gpushare node join-token NODE`; it is used once")
    parser.add_argument("--check", action="store_true", help="only say whether the configuration is right")
    arguments = parser.parse_args(given)
    try:
        config = load_agent_config(arguments.config)
        if config.simulate:
            parse_node(config.simulate)
        if arguments.check:
            return _say_right(arguments.config, config)
        join = _join(arguments.join, config)
        state = StateDirectory.open(config.state_dir)
        place_logs(config.state_dir, config.log_dir)
        identity = state.begin()
    except CatalogueError as err:
        return _refuse(f"simulate: {err}")
    except (GpushareError, IdentityError) as err:
        return _refuse(str(err))
    except OSError as err:
        return _refuse(f"{err.filename or 'the state directory'}: {err.strerror}")
    # What an import makes stays: looking through it for garbage, again and again, is a fifth of the way to the start.
    gc.disable()
    from gpushare_agent import starting

    try:
        code = starting.run(config, state, identity, join)
    except starting.StartRefused as err:
        code = _refuse(str(err))
    sys.stderr.flush()
    # A thread that waits for a dead disk or name service must not hold up the end.
    os._exit(code)


def _join(given: str | None, config: AgentConfig) -> JoinString | None:
    """The join line of the command line, else of the configured file; None without either. Only an agent that is not
    enrolled needs that file."""
    text, file = given, config.join_file
    if text is None and file is not None and (file.exists() or not is_enrolled(config.state_dir)):
        refuse_readable_by_others(file, "join_file")
        text = file.read_text(encoding="ascii", errors="replace")
    return decode_agent_join(text) if text else None


def _say_right(given: Path | None, config: AgentConfig) -> int:
    """A join file that is not there yet is no fault of the configuration."""
    print(right_text(given, AGENT_FILE))
    if config.join_file is not None and not config.join_file.exists() and not is_enrolled(config.state_dir):
        note = f"note: there is no join_file {config.join_file}; the agent cannot start before it is there"
        print(note, file=sys.stderr)
    return 0


def _refuse(why: str) -> int:
    print(f"gpushare-agent: {why}", file=sys.stderr)
    return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
