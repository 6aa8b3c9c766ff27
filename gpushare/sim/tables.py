"""CSV files read strictly: every fault is told with file, line and column, the value and what is accepted.

Imports the standard library and `names`. Invariants: a table is read whole or not at all; a column that nobody knows is
an error and not a guess; what a parser returns is the only thing that leaves this module.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from gpushare import names

INT32_MAX = 2**31 - 1
SECONDS_MAX = 10**10
TEXT_MAX_BYTES = 256

_SECONDS = re.compile(r"[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?|\.[0-9]{1,20}")
_REQUIRED: Final = object()

Parser = Callable[[str], Any]


class TableError(Exception):
    """A file that cannot be used; the text says where and why, for a person."""


@dataclass(frozen=True)
class Column:
    """One column. `parse` raises ValueError with half a sentence; an empty cell is `default` where there is one, and a
    column with a default may be missing altogether unless `must_be_there`."""

    name: str
    parse: Parser
    default: Any = _REQUIRED
    must_be_there: bool = False

    @property
    def is_optional(self) -> bool:
        return self.default is not _REQUIRED and not self.must_be_there


class Table:
    """A file's rows as (line number, values by column name), in file order."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self.path = path
        self._places: dict[str, int] = {}
        self.rows: list[tuple[int, dict[str, Any]]] = []
        lines = _csv_rows(path)
        first = next(lines, None)
        if first is None:
            accepted = ",".join(c.name for c in columns if not c.is_optional)
            raise TableError(f"{path}: is empty; the first line names the columns: {accepted}")
        self._read_header(*first, columns)
        present = [(self._places[c.name], c) for c in columns if c.name in self._places]
        absent = {c.name: c.default for c in columns if c.name not in self._places}
        for line, cells in lines:
            self.rows.append((line, self._row(line, cells, present) | absent))

    def fault(self, line: int, column: str, value: str, why: str) -> TableError:
        """The error for a cell that is wrong only beside others."""
        return TableError(f"{self._where(line, column)}: {names.shown(value)} {why}")

    def reject_repeats(self, column: str) -> None:
        """Raise for the second row that has the same text in `column`."""
        seen: dict[str, int] = {}
        for line, row in self.rows:
            known = seen.setdefault(row[column], line)
            if known != line:
                raise self.fault(line, column, row[column], f"is there already, on line {known}")

    def _where(self, line: int, column: str) -> str:
        place = self._places.get(column)
        return f"{self.path}: line {line}" + ("" if place is None else f", column {place + 1} ({column})")

    def _read_header(self, line: int, header: list[str], columns: Sequence[Column]) -> None:
        known = [c.name for c in columns]
        for place, name in enumerate(header):
            where = f"{self.path}: line {line}, column {place + 1}"
            if name not in known:
                raise TableError(f"{where}: no column {names.shown(name)} is known; accepted: {', '.join(known)}")
            if name in self._places:
                raise TableError(f"{where}: {name} is there already, as column {self._places[name] + 1}")
            self._places[name] = place
        missing = [c.name for c in columns if c.name not in self._places and not c.is_optional]
        if missing:
            raise TableError(f"{self.path}: line {line}: no column {', '.join(missing)}; needed: {', '.join(missing)}")

    def _row(self, line: int, cells: list[str], present: list[tuple[int, Column]]) -> dict[str, Any]:
        if len(cells) != len(present):
            raise TableError(
                f"{self.path}: line {line}, column {min(len(cells), len(present)) + 1}: the line has {len(cells)} "
                f"columns; accepted: {len(present)}, as in the header"
            )
        row: dict[str, Any] = {}
        for place, column in present:
            text = cells[place]
            if not text and column.default is not _REQUIRED:
                row[column.name] = column.default
                continue
            try:
                row[column.name] = column.parse(text)
            except ValueError as err:
                raise self.fault(line, column.name, text, str(err)) from None
        return row


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of every line that is not empty."""
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as err:
            raise TableError(f"{path}: line {line}: is no CSV ({err})") from None
        if cells is None:
            return
        if cells:
            yield line, cells
        line = reader.line_num + 1


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as err:
        raise TableError(f"{path}: cannot be read ({err.strerror})") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        before = data[: err.start]
        line, column = before.count(b"\n") + 1, before[before.rfind(b"\n") + 1 :].count(b",") + 1
        raise TableError(
            f"{path}: line {line}, column {column}: byte 0x{data[err.start]:02x} is not UTF-8; accepted: UTF-8 text"
        ) from None


# -- parsers of a cell


def whole(low: int, high: int) -> Parser:
    """A whole number from `low` to `high`."""
    accepted = f"accepted: whole numbers from {low} to {high}"
    digits_max = len(str(max(abs(low), high)))

    def parse(text: str) -> int:
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"{'is empty' if not text else 'is no whole number'}; {accepted}")
        value = sign * int(digits) if len(digits.lstrip("0")) <= digits_max else None
        if value is None or not low <= value <= high:
            raise ValueError(f"is {'negative' if sign < 0 and low >= 0 else 'out of range'}; {accepted}")
        return value

    return parse


def seconds(text: str) -> int:
    """Seconds, decimals allowed, as milliseconds, rounded up: what starts later or runs longer never overlaps."""
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return int(text) * 1000
    accepted = f"accepted: seconds from 0 to {SECONDS_MAX}, decimals allowed"
    if _SECONDS.fullmatch(text) is None:
        negative = text.startswith("-") and _SECONDS.fullmatch(text[1:]) is not None
        what = "is empty" if not text else "is negative" if negative else "is no number of seconds"
        raise ValueError(f"{what}; {accepted}")
    value = Fraction(text)
    if value > SECONDS_MAX:
        raise ValueError(f"is out of range; {accepted}")
    return math.ceil(value * 1000)


def some_seconds(text: str) -> int:
    """As `seconds`, but more than none."""
    value = seconds(text)
    if value == 0:
        raise ValueError(f"is zero; accepted: seconds up to {SECONDS_MAX}, or nothing for no limit")
    return value


def label(text: str) -> str:
    """A text that may stand for something: on one line, without control characters."""
    if not text:
        raise ValueError(f"is empty; accepted: text up to {TEXT_MAX_BYTES} bytes")
    return any_label(text)


def any_label(text: str) -> str:
    """As `label`, but it may be empty."""
    if text.isascii() and text.isprintable() and len(text) <= TEXT_MAX_BYTES:
        return text
    try:
        return names.check_text(text, "text", max_bytes=TEXT_MAX_BYTES)
    except names.TextError as err:
        raise ValueError(f"{err.why}; accepted: {err.accepted}") from None


def name(text: str) -> str:
    """A tenant's or user's name, by gpushare's own rule."""
    try:
        return names.check_name(text)
    except names.TextError as err:
        raise ValueError(f"{err.why}; accepted: {err.accepted}") from None


def one_of(*choices: str) -> Parser:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is not known; accepted: {', '.join(choices)}")
        return text

    return parse
