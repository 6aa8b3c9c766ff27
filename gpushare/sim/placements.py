"""placements.csv: one line a task of every job, in the order of jobs.csv.

Imports `tables` and `traces` alone. Columns: job_id, node (`unplaced` where it never started), gpu_index (the node's
cards, joined by `-`), gpu_milli (of each), start (seconds).
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gpushare.sim import tables
from gpushare.sim.tables import Column, Table, whole
from gpushare.sim.traces import GPUS_PER_NODE_MAX, UNPLACED, WHOLE_CARD_MILLI

HEADER = ("job_id", "node", "gpu_index", "gpu_milli", "start")


class Placement(msgspec.Struct, frozen=True):
    """Where one task of a job ran last; `start_ms` None: the job never started."""

    job_id: str
    node: str = UNPLACED
    gpu_index: tuple[int, ...] = ()
    gpu_milli: int = 0
    start_ms: int | None = None


def seconds_text(ms: int) -> str:
    """ "12", "0.25": exact, without trailing zeros."""
    whole_s, rest = divmod(ms, 1000)
    return f"{whole_s}.{rest:03d}".rstrip("0") if rest else str(whole_s)


def write(path: Path, rows: Iterable[Placement]) -> None:
    """All of it or nothing: written beside, then moved there. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(HEADER)
            lines.writerows(_cells(row) for row in rows)
        # mkstemp makes it readable by its owner alone.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _cells(row: Placement) -> tuple[str, ...]:
    if row.start_ms is None:
        return (row.job_id, UNPLACED, "", "", "")
    indexes = "-".join(map(str, row.gpu_index))
    return (row.job_id, row.node, indexes, str(row.gpu_milli), seconds_text(row.start_ms))


def read(path: Path) -> list[Placement]:
    """Raises TableError."""
    columns = (
        Column("job_id", tables.label),
        Column("node", tables.label),
        Column("gpu_index", _indexes, (), must_be_there=True),
        Column("gpu_milli", whole(0, WHOLE_CARD_MILLI), 0, must_be_there=True),
        Column("start", tables.seconds, None, must_be_there=True),
    )
    return [
        Placement(row["job_id"], row["node"], row["gpu_index"], row["gpu_milli"], row["start"])
        for _, row in Table(path, columns).rows
    ]


def _indexes(text: str) -> tuple[int, ...]:
    parse = whole(0, GPUS_PER_NODE_MAX)
    return tuple(parse(part) for part in text.split("-"))
