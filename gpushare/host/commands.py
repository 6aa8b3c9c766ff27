"""`install` and `uninstall`, as both daemons take them in front of their own flags.

Imports argparse and the installation. Invariants: a refusal is one line on stderr and code 1; a join line may come
through a pipe, so that no process list shows its secret.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gpushare.address import parse_address
from gpushare.errors import GpushareError, invalid_field
from gpushare.host import install, places
from gpushare.names import TextError

VERBS = ("install", "uninstall")


def is_for_host(arguments: Sequence[str]) -> bool:
    """The command line is one of these, not a run of the daemon."""
    return bool(arguments) and arguments[0] in VERBS


def agent_host(arguments: Sequence[str]) -> int:
    """`gpushare-agent install|uninstall ...`: the exit code."""
    parser, adding = _parser("gpushare-agent", "Write the agent's unit, its configuration and its join line.")
    adding.add_argument("--join", metavar="LINE|-", help="from `gpushare node join-token NODE`; - reads it from stdin")
    adding.add_argument("--managed-gpus", metavar="UUID,UUID", default="", help="gpushare's cards; default: all")
    adding.add_argument(
        "--profile", action="store_true", help="hide these cards from interactive logins, and say there how to get one"
    )

    def plan(given: argparse.Namespace) -> install.Plan:
        join = sys.stdin.readline() if given.join == "-" else given.join or ""
        if given.join is not None and not join.strip():
            raise invalid_field("--join", "the line is empty")
        cards = tuple(card for card in given.managed_gpus.split(",") if card)
        return install.agent_plan(given.root, join, cards, given.profile)

    return _run("gpushare-agent", parser.parse_args(arguments), places.AGENT_UNIT, plan)


def scheduler_host(arguments: Sequence[str]) -> int:
    """`gpushare-scheduler install|uninstall ...`: the exit code."""
    parser, adding = _parser("gpushare-scheduler", "Write the scheduler's unit and configuration.")
    adding.add_argument("--listen", metavar="HOST:PORT", default="", help=f"default: {install.LISTEN}")
    adding.add_argument("--advertise", metavar="HOST:PORT", default="", help="what agents and users connect to")
    adding.add_argument("--user", default="", help="account it runs as; default: gpushare if there is one, else root")

    def plan(given: argparse.Namespace) -> install.Plan:
        for flag, address in (("--listen", given.listen), ("--advertise", given.advertise)):
            try:
                parse_address(address, flag) if address else None
            except TextError as err:
                raise invalid_field(flag, f"{err.why}; accepted: {err.accepted}") from err
        return install.scheduler_plan(given.root, given.listen, given.advertise, given.user)

    return _run("gpushare-scheduler", parser.parse_args(arguments), places.SCHEDULER_UNIT, plan)


def _parser(program: str, what: str) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser of both verbs, and that of `install`."""
    parser = argparse.ArgumentParser(prog=program)
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("install", description=what)
    removing = verbs.add_parser("uninstall", description="Stop the daemon and remove its unit; state and jobs stay.")
    for each in (adding, removing):
        each.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="below DIR, for packages")
    adding.add_argument("--dry-run", action="store_true", help="print the files and write nothing")
    adding.add_argument("--now", action="store_true", help="enable and start it at once")
    return parser, adding


def _run(
    program: str, given: argparse.Namespace, unit: str, plan_of: Callable[[argparse.Namespace], install.Plan]
) -> int:
    try:
        if given.verb == "uninstall":
            install.uninstall(unit, given.root, print)
        elif given.dry_run:
            install.show(plan_of(given), given.root, print)
        else:
            install.carry_out(plan_of(given), given.root, given.now, print)
    except GpushareError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except OSError as err:
        print(f"{program}: {err.filename or 'a file'}: {err.strerror}", file=sys.stderr)
        return 1
    return 0
