"""The jobs that wait for cards (queued and suspended ones), grouped as a scheduling pass takes them: tenant, priority,
user, shape, and in each shape by submit.

Pure, and derived: `state` adds and removes, nobody stores it. Jobs of one shape share their fate within a pass, so
that a hundred thousand queued jobs cost a pass no more than their distinct shapes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpushare.core.kinds import JobState, PreemptionMode, Qos, Topology
from gpushare.core.model import Dependency, Job, TaskRequest
from gpushare.core.shared_paths import placed_request


class Shape(NamedTuple):
    """All that placing and limiting look at, but for who asks; `array_key` only where the array has a cap."""

    request: TaskRequest
    tasks: int
    least_tasks: int
    max_run_ms: int
    qos: Qos
    topology: Topology
    preemption: PreemptionMode
    after: tuple[Dependency, ...]
    array_key: str
    # A suspended job is alone in its line: it waits for cards of its own node.
    suspended: str


class LineKey(NamedTuple):
    """Jobs that share their fate within a pass."""

    tenant: str
    priority: int
    user: str
    shape: Shape


# After every job's key.
_LAST = "\U0010ffff"

# All that decides whether a job fits, but for limits and claims: request, tasks, fewest tasks, topology, time limit.
Fate = tuple[TaskRequest, int, int, Topology, int]


class Line(list[tuple[int, str]]):
    """The jobs of one shape that one user has at one priority: (submit_seq, job key), in submit order. `stands_apart`:
    more than its fate says whether its jobs may start, as where they wait for others or for cards of one node."""

    def __init__(self, key: LineKey, jobs: Iterable[tuple[int, str]] = ()) -> None:
        super().__init__(jobs)
        self.key, shape = key, key.shape
        self.fate: Fate = (shape.request, shape.tasks, shape.least_tasks, shape.topology, shape.max_run_ms)
        self.stands_apart = bool(shape.after or shape.suspended)


def line_key(job: Job) -> LineKey:
    spec = job.spec
    shape = Shape(
        placed_request(job),
        spec.tasks,
        spec.least_tasks,
        spec.max_run_ms,
        spec.qos,
        spec.topology,
        spec.preemption,
        spec.after,
        job.array_key if spec.array_max_running else "",
        job.key if job.state is JobState.SUSPENDED else "",
    )
    return LineKey(job.tenant, spec.priority, job.created_by.user, shape)


class WaitingLines:
    """`tenants[tenant][priority][user][shape]` is a line; empty ones are not kept. `fates` counts the lines of each
    fate, `apart` those that stand apart."""

    def __init__(self) -> None:
        self.tenants: dict[str, dict[int, dict[str, dict[Shape, Line]]]] = {}
        self.fates: Counter[Fate] = Counter()
        self.apart = 0
        self._size = 0
        self._deadlines: list[tuple[int, str]] = []

    def fork(self) -> WaitingLines:
        """The same lines, which go their own way from here."""
        made = WaitingLines()
        made.tenants = {
            tenant: {
                priority: {
                    user: {shape: Line(line.key, line) for shape, line in shapes.items()}
                    for user, shapes in users.items()
                }
                for priority, users in priorities.items()
            }
            for tenant, priorities in self.tenants.items()
        }
        made.fates, made.apart = Counter(self.fates), self.apart
        made._size, made._deadlines = self._size, list(self._deadlines)
        return made

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: LineKey) -> bool:
        """Whether any job waits in that line."""
        return key.shape in self.tenants.get(key.tenant, {}).get(key.priority, {}).get(key.user, {})

    def each(self) -> Iterator[Line]:
        """Every line, in no particular order."""
        for priorities in self.tenants.values():
            for users in priorities.values():
                for shapes in users.values():
                    yield from shapes.values()

    def line(self, key: LineKey) -> Line:
        """Raises KeyError for one that is empty."""
        return self.tenants[key.tenant][key.priority][key.user][key.shape]

    def __iter__(self) -> Iterator[str]:
        """Every waiting job's key, in no particular order."""
        for line in self.each():
            yield from (key for _, key in line)

    def add(self, job: Job) -> None:
        key = line_key(job)
        shapes = self.tenants.setdefault(key.tenant, {}).setdefault(key.priority, {}).setdefault(key.user, {})
        line = shapes.get(key.shape)
        if line is None:
            line = shapes[key.shape] = Line(key)
            self.fates[line.fate] += 1
            self.apart += line.stands_apart
        insort(line, (job.submit_seq, job.key))
        self._size += 1
        if job.spec.start_within_ms and job.started_ms is None:
            insort(self._deadlines, _deadline(job))

    def remove(self, job: Job) -> None:
        """Raises KeyError for a job that is not here."""
        tenant, priority, user, shape = line_key(job)
        priorities = self.tenants[tenant]
        shapes = priorities[priority][user]
        line = shapes[shape]
        place = bisect_left(line, (job.submit_seq, job.key))
        if place == len(line) or line[place][1] != job.key:
            raise KeyError(job.key)
        del line[place]
        self._size -= 1
        if job.spec.start_within_ms:
            place = bisect_left(self._deadlines, _deadline(job))
            if self._deadlines[place : place + 1] == [_deadline(job)]:
                del self._deadlines[place]
        if line:
            return
        del shapes[shape]
        self.apart -= line.stands_apart
        self.fates[line.fate] -= 1
        if not self.fates[line.fate]:
            del self.fates[line.fate]
        if not shapes:
            del priorities[priority][user]
        if not priorities[priority]:
            del priorities[priority]
        if not priorities:
            del self.tenants[tenant]

    def overdue(self, now_ms: int) -> list[str]:
        """Keys of the queued jobs whose time to start has passed."""
        return [key for deadline_ms, key in self._deadlines[: bisect_right(self._deadlines, (now_ms, _LAST))]]

    def next_deadline_ms(self, now_ms: int) -> int | None:
        place = bisect_right(self._deadlines, (now_ms, _LAST))
        return self._deadlines[place][0] if place < len(self._deadlines) else None


def _deadline(job: Job) -> tuple[int, str]:
    return (job.created_ms + job.spec.start_within_ms, job.key)
