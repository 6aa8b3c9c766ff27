"""`gpushare-agent`: reads its configuration, locks its state, starts the launcher, and runs until a signal.

Nothing imports this. The order matters: the launcher is started by exec before grpc is imported, because a process that
has imported grpc must never fork; so what imports grpc is imported after it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from gpushare.config import AGENT_FILE, AgentConfig, load_agent_config, right_text
from gpushare.configfile import refuse_readable_by_others
from gpushare.errors import GpushareError
from gpushare.host.commands import agent_host, is_for_host
from gpushare.host.systemd import Systemd, own_unit_warnings
from gpushare.join import JoinString, decode_agent_join
from gpushare_agent.agent import StatusRelay
from gpushare_agent.cgroups import CgroupsUnavailable, InstanceInUse
from gpushare_agent.executor import Executor, ExecutorConfig
from gpushare_agent.gpus.catalogue import CatalogueError, parse_node
from gpushare_agent.identity import Identity, IdentityError, StateDirectory, is_enrolled, place_logs
from gpushare_agent.logsetup import make_log, place_of
from gpushare_agent.scratch import ScratchUnusable

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
    code = _run(config, state, identity, join)
    sys.stderr.flush()
    # A thread that waits for a dead disk or name service must not hold up the end.
    os._exit(code)


def _run(config: AgentConfig, state: StateDirectory, identity: Identity, join: JoinString | None) -> int:
    log = make_log()
    relay = StatusRelay()
    try:
        executor = _start_executor(config, identity, relay, log)
    except CgroupsUnavailable as err:
        return _refuse(
            f"jobs cannot be confined here: {err} (run the agent where it can make control groups, or, for one user "
            'alone, set containment = "weak" and single_user = true)'
        )
    except InstanceInUse as err:
        return _refuse(str(err))
    except OSError as err:
        return _refuse(f"the launcher cannot be started: {err}")
    warnings = own_unit_warnings(Path("/proc/self/cgroup").read_text(), Systemd())
    for warning in warnings:
        log.warning("this host is not set up as it should be", why=warning)
    # Its notes on every connection that ends say nothing that the agent does not say itself.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from gpushare_agent.daemon import Daemon

    try:
        return asyncio.run(Daemon(config, state, identity, executor, relay, join, log, warnings).run())
    except (IdentityError, CatalogueError, ScratchUnusable, GpushareError) as err:
        return _refuse(str(err))
    except Exception as err:
        log.error("the agent failed; running jobs go on", error=f"{type(err).__name__}: {err}", at=place_of(err))
        return EXIT_REFUSED


def _start_executor(config: AgentConfig, identity: Identity, relay: StatusRelay, log: Any) -> Executor:
    """With control groups if they can be made, else without where the configuration allows it."""

    def executor(weak: bool) -> Executor:
        settings = ExecutorConfig(config.state_dir, identity.instance_id, weak=weak, run_as_self=config.single_user)
        made = Executor(settings, relay)
        made.start_launcher()
        return made

    try:
        return executor(weak=False)
    except CgroupsUnavailable as err:
        if config.containment != "weak":
            raise
        log.warning("containment is weak: no control groups can be made here", why=str(err))
        return executor(weak=True)


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
