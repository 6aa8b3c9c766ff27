"""Where `gpushare` and the daemons begin.

Imports a daemon, or the command line, only when it is run. Invariants: what a plain installation lacks for a daemon is
named together with the command that brings it; a module of our own that is missing is a fault and stays one; a Ctrl-C
while the command line is imported ends the process without a word.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module

EXIT_REFUSED = 1


def command_line() -> None:
    """`gpushare`."""
    found = signal.getsignal(signal.SIGINT)
    if found is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    main = import_module("gpushare.cli.main").main
    signal.signal(signal.SIGINT, found)
    main()


def scheduler() -> int:
    """`gpushare-scheduler`."""
    return _run("gpushare-scheduler", "gpushare.scheduler.main", "scheduler")


def agent() -> int:
    """`gpushare-agent`."""
    return _run("gpushare-agent", "gpushare_agent.main", "agent")


def _run(program: str, module: str, extra: str) -> int:
    try:
        # It loads most of what it needs only when its configuration is right.
        code: int = import_module(module).main()
    except ModuleNotFoundError as err:
        if (err.name or "").startswith("gpushare"):
            raise
        need = f"needs {err.name}, which a plain installation leaves out (pip install 'gpushare-cluster[{extra}]')"
        print(f"error: {program} {need}", file=sys.stderr)
        return EXIT_REFUSED
    return code
