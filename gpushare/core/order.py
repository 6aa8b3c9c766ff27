"""The queue in order: whose line a pass looks at next.

Pure. From the root of the tenant tree down, the child whose turn it is (`fairshare`); within a tenant by priority, then
the user's measure, then submit order. A line that cannot be placed is set aside and the next is looked at, so that no
capacity idles which a queued job could use. What the pass places moves the measures at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from gpushare.core.fairshare import FairShare, Turn
from gpushare.core.model import Job
from gpushare.core.quota import ROOT, QuotaTree
from gpushare.core.state import ClusterState
from gpushare.core.waiting import Line, LineKey, Shape

# Says of a line that it need not be looked at any more.
Futile = Callable[[Line], bool]


class LineCursor(NamedTuple):
    """One line of equal jobs and how far the pass has come in it. The oldest sorts first: no two have one `seq`."""

    seq: int
    at: int
    line: Line

    @property
    def key(self) -> LineKey:
        return self.line.key

    @property
    def job_key(self) -> str:
        return self.line[self.at][1]


class _UserLines:
    """The lines of one user at one priority, the oldest job first."""

    def __init__(self, lines: Iterable[Line], is_futile: Futile) -> None:
        self._heap = [LineCursor(line[0][0], 0, line) for line in lines]
        self._is_futile = is_futile
        heapify(self._heap)

    def first(self) -> LineCursor | None:
        while self._heap and self._is_futile(self._heap[0].line):
            heappop(self._heap)
        return self._heap[0] if self._heap else None

    def set_aside(self) -> None:
        heappop(self._heap)

    def advance(self) -> None:
        _, at, line = self._heap[0]
        if at + 1 < len(line):
            heapreplace(self._heap, LineCursor(line[at + 1][0], at + 1, line))
        else:
            heappop(self._heap)


class _TenantLines:
    """The lines of one tenant: priorities from the top, and in each the users by measure."""

    def __init__(
        self, tenant: str, priorities: dict[int, dict[str, dict[Shape, Line]]], fair: FairShare, is_futile: Futile
    ) -> None:
        self._tenant, self._priorities, self._fair, self._is_futile = tenant, priorities, fair, is_futile
        self._levels = sorted(priorities)
        self._users: list[tuple[float, int, str, _UserLines]] = []

    def first(self) -> LineCursor | None:
        while self._users or self._levels:
            if not self._users:
                priority = self._levels.pop()
                for user, shapes in self._priorities[priority].items():
                    self._push(user, _UserLines(shapes.values(), self._is_futile))
            elif (cursor := self._users[0][3].first()) is not None:
                return cursor
            else:
                heappop(self._users)
        return None

    def move_on(self, step: Callable[[_UserLines], None]) -> None:
        """Take the first user's first line a step further, and the user to the place that is now right."""
        _, _, user, lines = heappop(self._users)
        step(lines)
        self._push(user, lines)

    def _push(self, user: str, lines: _UserLines) -> None:
        cursor = lines.first()
        if cursor is not None:
            heappush(self._users, (self._fair.user_measure(self._tenant, user), cursor.seq, user, lines))


class Order:
    """Walks all lines once, but for the futile ones: `first` is the line to look at; then say what became of it."""

    def __init__(self, state: ClusterState, tree: QuotaTree, fair: FairShare, is_futile: Futile) -> None:
        self._tree, self._fair = tree, fair
        self._lines = {
            tenant: _TenantLines(tenant, priorities, fair, is_futile)
            for tenant, priorities in state.lines.tenants.items()
            if tenant in tree.branches
        }
        fair.look_at(_wanted_models(state, tree))
        # Tenants with lines left, by the branch that they are chosen under; a tenant stands under itself, too.
        self._open: dict[str, dict[str, Turn]] = {}
        for tenant in self._lines:
            self._open.setdefault(tenant, {})[tenant] = fair.own_turn(tenant)
            for branch in tree.path(tenant):
                self._open.setdefault(branch.parent or ROOT, {})[branch.name] = fair.turn(branch.name)
        self._tenant: str | None = None

    def first(self) -> LineCursor | None:
        """The next line to look at, or None when all have been."""
        while True:
            if self._tenant is None:
                self._tenant = self._choose()
            if self._tenant is None:
                return None
            cursor = self._lines[self._tenant].first()
            if cursor is not None:
                return cursor
            self._close(self._tenant)
            self._tenant = None

    def set_aside(self) -> None:
        """The line's first job cannot start now, so none of it can."""
        self._lines[self._tenant or ""].move_on(_UserLines.set_aside)

    def skip(self) -> None:
        """The line's first job is out of the question for itself alone."""
        self._lines[self._tenant or ""].move_on(_UserLines.advance)

    def placed(self, job: Job, charge_milli: int) -> None:
        """The first job was placed (the tree knows already): everybody's turn is looked at anew."""
        self._fair.hold(job.tenant, job.created_by.user, charge_milli)
        self.skip()
        self._refresh(job.tenant)
        self._tenant = None

    def _refresh(self, tenant: str) -> None:
        if tenant in self._open.get(tenant, {}):
            self._open[tenant][tenant] = self._fair.own_turn(tenant)
        for branch in self._tree.path(tenant):
            siblings = self._open.get(branch.parent or ROOT, {})
            if branch.name in siblings:
                siblings[branch.name] = self._fair.turn(branch.name)

    def _choose(self) -> str | None:
        name = ROOT
        while True:
            options = self._open.get(name)
            if not options:
                return None
            chosen = min(options, key=options.__getitem__)
            if chosen == name:
                return name
            name = chosen

    def _close(self, tenant: str) -> None:
        self._open[tenant].pop(tenant, None)
        for branch in self._tree.path(tenant):
            if self._open.get(branch.name):
                return
            self._open[branch.parent or ROOT].pop(branch.name, None)


def _wanted_models(state: ClusterState, tree: QuotaTree) -> dict[str, frozenset[str]]:
    """Of each tenant with guarantees on models: those that its waiting jobs, and those below it, name; left out where
    some name none."""
    wanted: dict[str, set[str]] = {}
    use_any: set[str] = set()
    for tenant, priorities in state.lines.tenants.items():
        asking = [b.name for b in tree.path(tenant) if b.model_guarantees] if tenant in tree.branches else []
        users = (shapes for users in priorities.values() for shapes in users.values()) if asking else ()
        named = [shape.request.gpu_models for shapes in users for shape in shapes if not shape.request.is_cpu]
        for name in asking:
            wanted.setdefault(name, set()).update(*named)
            if not all(named):
                use_any.add(name)
    return {name: frozenset(models) for name, models in wanted.items() if name not in use_any}
