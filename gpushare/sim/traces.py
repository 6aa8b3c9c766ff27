"""Nodes, jobs and tenants of a trace, from gpushare's own columns or from the public openb ones.

Imports `tables` alone of the package. A column is one line in a list here: its name, its parser and its default. Times
are milliseconds from the trace's zero, card shares thousandths of one card.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpushare.sim import tables
from gpushare.sim.tables import INT32_MAX, Column, Table, TableError, whole

WHOLE_CARD_MILLI = 1000
UNPLACED = "unplaced"
DEFAULT_TENANT = "default"
DEFAULT_USER = "user"

GPUS_PER_NODE_MAX = 1024
TASKS_MAX = 1024
PRIORITY_MAX = 10_000
SPEC_MAX_BYTES = 4096


class TraceNode(msgspec.Struct, frozen=True):
    """A host with `gpu_count` cards of one model."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpu_count: int
    model: str


class TraceJob(msgspec.Struct, frozen=True):
    """A job. Each of its tasks asks for `num_gpu` cards with `gpu_milli` thousandths of each: below 1000 it is a share
    of one card. `models` empty: any; `duration_ms` None: never leaves; `max_run_ms` None: no limit."""

    id: str
    arrival_ms: int
    cpu_milli: int
    memory_mib: int
    num_gpu: int
    gpu_milli: int
    models: tuple[str, ...] = ()
    duration_ms: int | None = None
    tenant: str = DEFAULT_TENANT
    user: str = DEFAULT_USER
    priority: int = 0
    tasks: int = 1
    qos: str = "burst"
    max_run_ms: int | None = None

    @property
    def is_share(self) -> bool:
        return self.num_gpu == 1 and self.gpu_milli < WHOLE_CARD_MILLI

    @property
    def demand_milli(self) -> int:
        """Thousandths of cards, all tasks together."""
        return self.num_gpu * self.gpu_milli * self.tasks


class TraceTenant(msgspec.Struct, frozen=True):
    name: str
    weight: int = 1
    guaranteed_milli: int = 0
    limit_milli: int | None = None


def _node_name(text: str) -> str:
    if text == UNPLACED:
        raise ValueError("is what placements.csv says of a job without a place; accepted: any other name")
    return tables.label(text)


def _model(text: str) -> str:
    if "|" in text:
        raise ValueError("has |, which stands between the models of a gpu_spec; accepted: one model")
    return tables.any_label(text)


def _spec(text: str) -> tuple[str, ...]:
    if len(text.encode(errors="replace")) > SPEC_MAX_BYTES:
        raise ValueError(f"is longer than {SPEC_MAX_BYTES} bytes; accepted: models joined by |, or nothing for any")
    models = text.split("|")
    if "" in models:
        raise ValueError("has an empty model; accepted: models joined by |, or nothing for any")
    return tuple(sorted({tables.label(model) for model in models}))


NODE_COLUMNS = (
    Column("node", _node_name),
    Column("cpu_milli", whole(1, INT32_MAX)),
    Column("memory_mib", whole(1, INT32_MAX)),
    Column("gpu_count", whole(0, GPUS_PER_NODE_MAX)),
    Column("model", _model, "", must_be_there=True),
)

_REQUEST_COLUMNS = (
    Column("cpu_milli", whole(0, INT32_MAX)),
    Column("memory_mib", whole(0, INT32_MAX)),
    Column("num_gpu", whole(0, 1_000_000)),
    Column("gpu_milli", whole(0, WHOLE_CARD_MILLI)),
    Column("gpu_spec", _spec, (), must_be_there=True),
)

JOB_COLUMNS = (
    Column("job_id", tables.label),
    Column("arrival", tables.seconds),
    *_REQUEST_COLUMNS,
    Column("duration", tables.seconds, None, must_be_there=True),
    # The rest may be left out.
    Column("tenant", tables.name, DEFAULT_TENANT),
    Column("user", tables.name, DEFAULT_USER),
    Column("priority", whole(-PRIORITY_MAX, PRIORITY_MAX), 0),
    Column("tasks", whole(1, TASKS_MAX), 1),
    Column("qos", tables.one_of("guaranteed", "burst"), "burst"),
    Column("max_run", tables.some_seconds, None),
)

TENANT_COLUMNS = (
    Column("tenant", tables.name),
    Column("weight", whole(1, 1_000_000), 1),
    Column("guaranteed_milli", whole(0, INT32_MAX), 0),
    Column("limit_milli", whole(0, INT32_MAX), None),
)

OPENB_NODE_COLUMNS = (
    Column("sn", _node_name),
    Column("cpu_milli", whole(1, INT32_MAX)),
    Column("memory_mib", whole(1, INT32_MAX)),
    Column("gpu", whole(0, GPUS_PER_NODE_MAX)),
    Column("model", _model, "", must_be_there=True),
)

OPENB_JOB_COLUMNS = (
    Column("name", tables.label),
    *_REQUEST_COLUMNS,
    # Kubernetes' words for a pod: read, and not used.
    Column("qos", tables.any_label, ""),
    Column("pod_phase", tables.any_label, ""),
    Column("creation_time", tables.seconds),
    Column("deletion_time", tables.seconds, None),
    Column("scheduled_time", tables.seconds, None),
)


def read_nodes(path: Path) -> list[TraceNode]:
    """nodes.csv. Raises TableError."""
    return _nodes(Table(path, NODE_COLUMNS), "node", "gpu_count")


def read_openb_nodes(path: Path) -> list[TraceNode]:
    """A node list of the public trace. Raises TableError."""
    return _nodes(Table(path, OPENB_NODE_COLUMNS), "sn", "gpu")


def _nodes(table: Table, name: str, count: str) -> list[TraceNode]:
    table.reject_repeats(name)
    for line, row in table.rows:
        if row[count] and not row["model"]:
            raise table.fault(line, "model", "", "is empty; accepted: the model of the node's cards")
    if not table.rows:
        raise TableError(f"{table.path}: has no nodes below its header")
    return [
        TraceNode(row[name], row["cpu_milli"], row["memory_mib"], row[count], row["model"]) for _, row in table.rows
    ]


def read_jobs(path: Path, tenants: Iterable[TraceTenant] | None = None) -> list[TraceJob]:
    """jobs.csv, in file order; with `tenants`, a job of any other is an error. Raises TableError."""
    table = Table(path, JOB_COLUMNS)
    _check_jobs(table, "job_id")
    if tenants is not None:
        known = {t.name for t in tenants}
        for line, row in table.rows:
            if row["tenant"] not in known:
                raise table.fault(
                    line, "tenant", row["tenant"], f"is not in the tenants' file; there are: {_few(known)}"
                )
    return [
        TraceJob(
            arrival_ms=row["arrival"],
            duration_ms=row["duration"],
            max_run_ms=row["max_run"],
            **_request(row, "job_id"),
            **{name: row[name] for name in ("tenant", "user", "priority", "tasks", "qos")},
        )
        for _, row in table.rows
    ]


def read_openb_jobs(path: Path) -> list[TraceJob]:
    """A pod list of the public trace: arrival is its creation, duration its time from scheduling to deletion."""
    table = Table(path, OPENB_JOB_COLUMNS)
    _check_jobs(table, "name")
    jobs = []
    for line, row in table.rows:
        begun = row["creation_time"] if row["scheduled_time"] is None else row["scheduled_time"]
        ended = row["deletion_time"]
        if ended is not None and ended < begun:
            raise table.fault(line, "deletion_time", str(ended / 1000), "is before it was created or scheduled")
        duration_ms = None if ended is None else ended - begun
        jobs.append(TraceJob(arrival_ms=row["creation_time"], duration_ms=duration_ms, **_request(row, "name")))
    return jobs


def _check_jobs(table: Table, name: str) -> None:
    table.reject_repeats(name)
    if not table.rows:
        raise TableError(f"{table.path}: has no jobs below its header")
    for line, row in table.rows:
        if row["num_gpu"] == 1 and row["gpu_milli"] == 0:
            raise table.fault(line, "gpu_milli", "0", "is no share of a card; accepted: 1 to 1000, or num_gpu 0")


def _request(row: dict[str, Any], name: str) -> dict[str, Any]:
    cards: int = row["num_gpu"]
    return {
        "id": row[name],
        "cpu_milli": row["cpu_milli"],
        "memory_mib": row["memory_mib"],
        "num_gpu": cards,
        # A CPU job has none, several cards are always whole.
        "gpu_milli": row["gpu_milli"] if cards == 1 else WHOLE_CARD_MILLI * min(cards, 1),
        "models": row["gpu_spec"],
    }


def read_tenants(path: Path) -> list[TraceTenant]:
    """The tenants' file. Raises TableError."""
    table = Table(path, TENANT_COLUMNS)
    table.reject_repeats("tenant")
    for line, row in table.rows:
        limit = row["limit_milli"]
        if limit is not None and limit < row["guaranteed_milli"]:
            raise table.fault(line, "limit_milli", str(limit), f"is below the guarantee, {row['guaranteed_milli']}")
    return [
        TraceTenant(row["tenant"], row["weight"], row["guaranteed_milli"], row["limit_milli"]) for _, row in table.rows
    ]


def tenants_of(jobs: Sequence[TraceJob]) -> list[TraceTenant]:
    """One of weight 1 for every tenant that the jobs name, by name."""
    return [TraceTenant(name) for name in sorted({job.tenant for job in jobs})]


def capacity_milli(nodes: Iterable[TraceNode]) -> int:
    return WHOLE_CARD_MILLI * sum(node.gpu_count for node in nodes)


def _few(values: Iterable[str], most: int = 10) -> str:
    ordered = sorted(values)
    return ", ".join(ordered[:most]) + (", ..." if len(ordered) > most else "")
