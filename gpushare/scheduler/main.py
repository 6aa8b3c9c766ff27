"""`gpushare-scheduler`: what its command line and its configuration say; `daemon` does the rest. Nothing imports this.

Exit codes: 0 after a stop by signal, 1 when it cannot start (the cause is one line on stderr), 2 for a wrong command
line.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from gpushare.config import SCHEDULER_FILE, load_scheduler_config, right_text
from gpushare.configfile import ConfigError
from gpushare.host.commands import is_for_host, scheduler_host


def main(argv: list[str] | None = None) -> int:
    """`gpushare-scheduler [--config FILE]`, or `install` and `uninstall`. Ends the process where the daemon has run."""
    given = sys.argv[1:] if argv is None else argv
    if is_for_host(given):
        return scheduler_host(given)
    parser = argparse.ArgumentParser(
        prog="gpushare-scheduler",
        description="The gpushare scheduler daemon.",
        epilog="`gpushare-scheduler install --help`: as a service of this host.",
    )
    parser.add_argument("--config", type=Path, help="TOML file; default: scheduler.toml in the configuration directory")
    parser.add_argument("--check", action="store_true", help="only say whether the configuration is right")
    args = parser.parse_args(given)
    try:
        config = load_scheduler_config(args.config)
    except ConfigError as err:
        print(f"error: {err.reason}: {str(err).removeprefix(f'{err.reason}: ')}", file=sys.stderr)
        return 1
    if args.check:
        print(right_text(args.config, SCHEDULER_FILE))
        return 0
    os.umask(0o077)
    # What an import makes stays: looking through it for garbage, again and again, is a fifth of the way to the start.
    gc.disable()
    from gpushare.scheduler import daemon

    gc.freeze()
    gc.enable()
    code = daemon.run(config)
    sys.stderr.flush()
    # All is written and closed; taking Python's objects apart one by one would take as long as the stop itself.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
