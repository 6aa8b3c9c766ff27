"""Tables: coloured on a terminal, plain aligned text in a pipe.

Imports the standard library; rich only on a terminal. Invariants: no cell can hold a control character or rich's
markup, none is cut off, and a pipe gets no colour.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence

from gpushare.cli.inert import inert

_STYLES = {
    "RUNNING": "green",
    "SUCCEEDED": "green",
    "ACTIVE": "green",
    "HEALTHY": "green",
    "QUEUED": "yellow",
    "STARTING": "yellow",
    "CANCELLING": "yellow",
    "SUSPENDED": "yellow",
    "DRAINING": "yellow",
    "DEGRADED": "yellow",
    "UNKNOWN": "yellow",
    "CANCELLED": "dim",
    "FAILED": "red",
    "UNREACHABLE": "red",
    "LOST": "red",
    "QUARANTINED": "red",
    "DIRTY": "red",
    "DRAINED": "red",
}


_UNBOUNDED = 10_000


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints `rows` under `columns`; an empty text is shown as "-"."""
    cells = [[inert(str(cell)) or "-" for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells)
    else:
        _print_plain([list(columns), *cells])


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Prints one "name: value" a line, values aligned; empty values are left out."""
    shown = [(name, inert(str(value))) for name, value in fields if str(value) != ""]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        print(f"{name + ':':<{width}} {value}")


def _print_plain(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(_width(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """Columns on a terminal; wide East Asian characters and emoji take two, marks that combine none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _print_rich(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in cells:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.split(",")[0], "")) for cell in row))
    # As wide as it needs: a UUID that is broken over two lines cannot be copied.
    Console(width=_UNBOUNDED, highlight=False, markup=False, emoji=False).print(table)
