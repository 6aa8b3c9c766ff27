"""The programs that a plain installation, client and command line alone, cannot run: they say what they need.

Imports a daemon only when it is run. Invariant: what is missing is named together with the command that brings it; a
module of our own that is missing is a fault and stays one.
"""

from __future__ import annotations

import sys
from importlib import import_module

EXIT_REFUSED = 1


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
