"""`gpushare host`: which version this host runs, the next one, and back.

Imports click; the installation only when a command runs. Works on this host alone: no scheduler is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, output_option

if TYPE_CHECKING:
    from gpushare.host.versions import Versions

_root_option = click.option(
    "--root", type=click.Path(path_type=Path), default=Path("/"), metavar="DIR", help="Below DIR in place of this host."
)
_restart_option = click.option("--no-restart", is_flag=True, help="Only switch; say which daemons to restart.")


@click.group()
def host() -> None:
    """Which version of gpushare this host runs; upgrade it under running jobs, and go back (root)."""


@host.command()
@click.argument("source", metavar="[WHEEL|DIR|VERSION]", default="")
@click.argument("pip_arguments", metavar="[-- PIP_ARG...]", nargs=-1)
@_restart_option
@_root_option
def upgrade(source: str, pip_arguments: tuple[str, ...], no_restart: bool, root: Path) -> None:
    """Install another version beside this one and run it; running jobs do not notice.

    Without a source it is the newest that pip finds. A version that does not run here, or whose daemon does not come
    up, leaves the host as it was. What follows -- goes to pip, e.g. -- --no-index --find-links /srv/wheels.
    """
    _versions(root).upgrade(source, pip_arguments, restart=not no_restart)


@host.command()
@click.argument("name", default="")
@_restart_option
@_root_option
def rollback(name: str, no_restart: bool, root: Path) -> None:
    """Run the version before this one, or the one named; running jobs do not notice."""
    _versions(root).rollback(name, restart=not no_restart)


@host.command()
@output_option
@_root_option
def versions(output: str, root: Path) -> None:
    """List what is installed."""
    from datetime import UTC, datetime

    from gpushare.cli.output import print_json
    from gpushare.cli.table import print_table

    known = _versions(root)
    roles = {known.previous(): "previous", known.current(): "current"}
    rows = [
        (each.name, roles.get(each.name, ""), datetime.fromtimestamp(each.installed_s, UTC), each.path)
        for each in known.all()
    ]
    if output == JSON:
        keys = ("name", "role", "installedTime", "path")
        values = [(name, role, f"{at:%Y-%m-%dT%H:%M:%SZ}", str(path)) for name, role, at, path in rows]
        print_json({"versions": [dict(zip(keys, row, strict=True)) for row in values]})
    else:
        print_table(("VERSION", "ROLE", "INSTALLED", "PATH"), [(n, r, f"{at:%F %R}", p) for n, r, at, p in rows])


def _versions(root: Path) -> Versions:
    from gpushare.host.versions import Versions

    return Versions(root.absolute(), click.echo)
