"""Is this placements.csv possible? Judged from the files alone, by arithmetic of its own.

Imports nothing of the core: a fault that scheduler and checker shared would stay unseen. A job holds its place from its
start for its duration (or run limit), or for ever; at one moment ends come before starts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from gpushare.sim.placements import Placement
from gpushare.sim.traces import UNPLACED, WHOLE_CARD_MILLI, TraceJob, TraceNode


class _Host:
    """One node's free room, and what each job holds of it."""

    def __init__(self, node: TraceNode) -> None:
        self.node = node
        self.cpu_milli = node.cpu_milli
        self.memory_mib = node.memory_mib
        self.cards_milli = [WHOLE_CARD_MILLI] * node.gpu_count

    def book(self, job: TraceJob, row: Placement, sign: int) -> None:
        self.cpu_milli -= sign * job.cpu_milli
        self.memory_mib -= sign * job.memory_mib
        for index in row.gpu_index:
            self.cards_milli[index] -= sign * row.gpu_milli

    def overbooked(self) -> list[str]:
        faults = [f"card {i} is {-free} milli over" for i, free in enumerate(self.cards_milli) if free < 0]
        if self.cpu_milli < 0:
            faults.append(f"{-self.cpu_milli} milli-CPU over")
        if self.memory_mib < 0:
            faults.append(f"{-self.memory_mib} MiB over")
        return faults

    def has_room(self, job: TraceJob) -> bool:
        """For one task of `job`, now."""
        if job.models and self.node.model not in job.models:
            return False
        if job.cpu_milli > self.cpu_milli or job.memory_mib > self.memory_mib:
            return False
        if job.is_share:
            return any(free >= job.gpu_milli for free in self.cards_milli)
        return sum(free == WHOLE_CARD_MILLI for free in self.cards_milli) >= job.num_gpu


def violations(nodes: Sequence[TraceNode], jobs: Sequence[TraceJob], rows: Iterable[Placement]) -> list[str]:
    """Every broken constraint, in words; empty when all hold."""
    by_name = {node.name: node for node in nodes}
    known = {job.id: job for job in jobs}
    tasks: defaultdict[str, list[Placement]] = defaultdict(list)
    faults = []
    for row in rows:
        if row.job_id in known:
            tasks[row.job_id].append(row)
        else:
            faults.append(f"job {row.job_id} is not in the trace")
    for job in jobs:
        faults += [f"job {job.id}: {fault}" for fault in _faults_of(job, tasks[job.id], by_name)]
    return faults or _overbookings(by_name, known, [row for own in tasks.values() for row in own])


def _faults_of(job: TraceJob, rows: list[Placement], nodes: dict[str, TraceNode]) -> list[str]:
    if [row.node for row in rows] == [UNPLACED]:
        return []
    if len(rows) != job.tasks:
        return [f"has {len(rows)} lines; it has {job.tasks} tasks"]
    if len({row.start_ms for row in rows}) != 1:
        return ["its tasks do not start together"]
    return [fault for row in rows for fault in _faults_of_row(job, row, nodes)]


def _faults_of_row(job: TraceJob, row: Placement, nodes: dict[str, TraceNode]) -> list[str]:
    node = nodes.get(row.node)
    if node is None:
        return [f"there is no node {row.node}"]
    faults = []
    if job.models and node.model not in job.models:
        faults.append(f"is on a {node.model or 'node without GPUs'} and asks for {'|'.join(job.models)}")
    if len(row.gpu_index) != job.num_gpu or len(set(row.gpu_index)) != job.num_gpu:
        faults.append(f"has cards {row.gpu_index} and asks for {job.num_gpu}")
    if any(index >= node.gpu_count for index in row.gpu_index):
        faults.append(f"has cards {row.gpu_index} of a node with {node.gpu_count}")
    if row.gpu_milli != job.gpu_milli:
        faults.append(f"has {row.gpu_milli} milli and asks for {job.gpu_milli}")
    if row.start_ms is None or row.start_ms < job.arrival_ms:
        faults.append(f"starts at {row.start_ms} ms and arrives at {job.arrival_ms} ms")
    return faults


def _overbookings(nodes: dict[str, TraceNode], jobs: dict[str, TraceJob], rows: list[Placement]) -> list[str]:
    # (when, ends first, row, sign)
    changes: list[tuple[int, int, int]] = []
    for place, row in enumerate(rows):
        if row.start_ms is None:
            continue
        end_ms = _end_ms(jobs[row.job_id], row.start_ms)
        if end_ms == row.start_ms:
            continue
        changes.append((row.start_ms, +1, place))
        if end_ms is not None:
            changes.append((end_ms, -1, place))
    hosts = {name: _Host(node) for name, node in nodes.items()}
    faults = []
    for at_ms, sign, place in sorted(changes):
        row = rows[place]
        host = hosts[row.node]
        host.book(jobs[row.job_id], row, sign)
        if sign > 0:
            faults += [f"node {row.node} at {at_ms} ms, with job {row.job_id}: {f}" for f in host.overbooked()]
    return faults


def _end_ms(job: TraceJob, start_ms: int) -> int | None:
    lasts = [ms for ms in (job.duration_ms, job.max_run_ms) if ms is not None]
    return start_ms + min(lasts) if lasts else None


def refused_with_room(nodes: Sequence[TraceNode], jobs: Sequence[TraceJob], rows: Iterable[Placement]) -> list[str]:
    """Of jobs of one task that were each tried once, in the order of arrival: the ids of those without a place for
    which there was room when they came."""
    places = {row.job_id: row for row in rows}
    hosts = {node.name: _Host(node) for node in nodes}
    leaving: list[tuple[int, TraceJob, Placement]] = []
    wrong = []
    for job in sorted(jobs, key=lambda job: job.arrival_ms):
        due = [entry for entry in leaving if entry[0] <= job.arrival_ms]
        leaving = [entry for entry in leaving if entry[0] > job.arrival_ms]
        for _, gone, row in due:
            hosts[row.node].book(gone, row, -1)
        row = places[job.id]
        if row.start_ms is None:
            wrong += [job.id] if any(host.has_room(job) for host in hosts.values()) else []
            continue
        hosts[row.node].book(job, row, +1)
        end_ms = _end_ms(job, row.start_ms)
        if end_ms is not None:
            leaving.append((end_ms, job, row))
    return wrong
