"""Who may still use how much: the tenant tree with its guarantees and limits, as one scheduling pass sees it.

Pure. A `QuotaTree` is made from the state for a pass and follows what the pass decides (`add`); the state itself is
never changed here. All charges are thousandths of a card, summed over a tenant and everything below it.

A tenant *borrows* what its subtree uses beyond its guarantee (`guaranteed_milli`, or the sum of its children's where
that is more; guarantees on one model cover that model first, and the rest counts against the general one). A job has a
*claim* when some tenant on its path would borrow no more with it than without; it may then take back what tenants
outside of that tenant borrow. What is guaranteed to a tenant's children is not for its own jobs of QoS guaranteed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from gpushare.core.kinds import Qos
from gpushare.core.model import Job, ModelQuota, Slice, TaskRequest, Tenant, TenantSettings
from gpushare.core.placement.ask import NO_LIMIT, Room
from gpushare.core.state import ClusterState
from gpushare.core.tenant_tree import DEPTH_MAX

ROOT = ""


class Branch:
    """One tenant with all below it, but for what is called `own`: of the tenant's own jobs alone. The root's `settings`
    are empty."""

    def __init__(self, name: str, settings: TenantSettings) -> None:
        self.name = name
        self.settings = settings
        self.parent: str | None = None
        self.children: list[str] = []
        self.charge_milli = 0
        self.by_model: Counter[str] = Counter()
        self.own_charge_milli = 0
        # Of the own jobs of QoS guaranteed; by model only where the tenant has guarantees by model.
        self.guaranteed_charge_milli = 0
        self.guaranteed_by_model: Counter[str] = Counter()
        self.used_cpu_milli = 0
        self.used_memory_mib = 0
        self.running_jobs = 0
        self.guarantee_milli = settings.guaranteed_milli
        self.model_guarantees: Counter[str] = Counter({q.model: q.guaranteed_milli for q in settings.model_quotas})
        # What its children are not guaranteed.
        self.own_guarantee_milli = 0
        self.own_model_guarantees: Counter[str] = Counter()

    def borrowed_milli(self) -> int:
        """What it uses beyond its guarantee."""
        return max(0, self._uncovered_milli() - self.guarantee_milli)

    def borrows_on(self, model: str) -> bool:
        """Whether some of what it uses on cards of `model` is borrowed."""
        return self.by_model[model] > self.model_guarantees[model] and self.borrowed_milli() > 0

    def has_limits(self) -> bool:
        has = self.settings
        limits = (
            has.limit_milli,
            has.cpu_limit_milli,
            has.memory_limit_mib,
            *(q.limit_milli for q in has.model_quotas),
        )
        return any(limit is not None for limit in limits)

    def is_below_guarantee(self, models: Collection[str] = ()) -> bool:
        """Some of what is always its own is not in use, on cards of `models` (empty: of any)."""
        if not self.guarantee_milli and not self.model_guarantees:
            return False
        if self._uncovered_milli() < self.guarantee_milli:
            return True
        named = models or self.model_guarantees
        return any(self.by_model[model] < self.model_guarantees[model] for model in named)

    def is_own_below_guarantee(self) -> bool:
        """The same for its own jobs, and what is not meant for its children."""
        return self.own_charge_milli < self.own_guarantee_milli + self.own_model_guarantees.total()

    def is_own_borrowing(self) -> bool:
        """Its own jobs use more than what is not meant for its children."""
        return self.own_charge_milli > self.own_guarantee_milli + self.own_model_guarantees.total()

    def covers(self, charge_milli: int, models: tuple[str, ...]) -> tuple[str, ...] | None:
        """On which of `models` (empty: of all) so much more would not be borrowed; None: on none. () means on all."""
        if self._uncovered_milli() + charge_milli <= self.guarantee_milli:
            return models
        covered = (m for m in models or sorted(self.model_guarantees) if self._is_covered_on(m, charge_milli))
        return tuple(covered) or None

    def _uncovered_milli(self) -> int:
        """What the guarantees on models do not cover."""
        return sum(max(0, used - self.model_guarantees[model]) for model, used in self.by_model.items())

    def _is_covered_on(self, model: str, charge_milli: int) -> bool:
        beyond = self.by_model[model] + charge_milli - max(self.by_model[model], self.model_guarantees[model])
        return beyond <= max(0, self.guarantee_milli - self._uncovered_milli())

    def guaranteed_room(self) -> tuple[int, tuple[tuple[str, int], ...]]:
        """What its own jobs of QoS guaranteed may add: on any card, and per model with a guarantee of its own."""
        if not self.own_model_guarantees.total():
            return self.own_guarantee_milli - self.guaranteed_charge_milli, ()
        used, own = self.guaranteed_by_model, self.own_model_guarantees
        general = self.own_guarantee_milli - sum(max(0, used[m] - own[m]) for m in used)
        return general, tuple((m, max(0, own[m] - used[m])) for m in sorted(own))


class Claim(NamedTuple):
    """`branch` is guaranteed what the job asks for, on cards of `models` (empty: on any that the job can use)."""

    branch: Branch
    models: tuple[str, ...] = ()


class QuotaTree:
    """`branches` by tenant name; the root is ROOT. Deleted tenants have nothing left to count."""

    def __init__(self, state: ClusterState) -> None:
        self.branches: dict[str, Branch] = {ROOT: Branch(ROOT, TenantSettings())}
        for tenant in state.tenants.values():
            if not tenant.deleted:
                self.branches[tenant.name] = Branch(tenant.name, tenant.settings)
        for name, branch in self.branches.items():
            if name != ROOT:
                branch.parent = branch.settings.parent if branch.settings.parent in self.branches else ROOT
                self.branches[branch.parent].children.append(name)
        self._paths = {name: tuple(self._climb(name)) for name in self.branches}
        self._limited = {name for name, path in self._paths.items() if any(b.has_limits() for b in path)}
        for tenant in state.tenants.values():
            if not tenant.deleted:
                self._count(tenant)
        self._sum_guarantees()
        self._count_guaranteed(state)
        self._state = state
        self._models: frozenset[str] | None = None

    def has_limits(self, tenant: str) -> bool:
        """The tenant, or any above it."""
        return tenant in self._limited

    def path(self, tenant: str) -> tuple[Branch, ...]:
        """The tenant's branch and those above it, the root left out."""
        return self._paths[tenant]

    def room(self, job: Job) -> Room:
        """What `job` may add to its tenant and to every tenant above it."""
        if not self.has_limits(job.tenant) and job.spec.qos is not Qos.GUARANTEED:
            return NO_LIMIT
        limits, hosts = self.limit_room(job), self.host_room(job)
        milli, models = limits.milli, dict(limits.by_model)
        if job.spec.qos is Qos.GUARANTEED:
            general, more = self.path(job.tenant)[0].guaranteed_room()
            known = dict(more)
            for model in known:
                models[model] = min(models.get(model, general + known[model]), general + known[model])
            for model in self._other_models(known):
                models[model] = min(models.get(model, general), general)
            general += sum(known.values())
            milli = general if milli is None else min(milli, general)
        if milli is None and not models and hosts == NO_LIMIT:
            return NO_LIMIT
        return Room(milli, tuple(models.items()), hosts.cpu_milli, hosts.memory_mib)

    def limit_room(self, job: Job) -> Room:
        """The part of `room` that the limits on charges leave."""
        path = self.path(job.tenant)
        rooms = [b.settings.limit_milli - b.charge_milli for b in path if b.settings.limit_milli is not None]
        models: dict[str, int] = {}
        for branch in path:
            for quota in branch.settings.model_quotas:
                if quota.limit_milli is not None:
                    left = quota.limit_milli - branch.by_model[quota.model]
                    models[quota.model] = min(models.get(quota.model, left), left)
        return Room(min(rooms, default=None), tuple(models.items()))

    def host_room(self, job: Job) -> Room:
        """The part of `room` that the limits on CPU and host memory leave."""
        path = self.path(job.tenant)
        cpus = [b.settings.cpu_limit_milli - b.used_cpu_milli for b in path if b.settings.cpu_limit_milli is not None]
        hosts = [
            b.settings.memory_limit_mib - b.used_memory_mib for b in path if b.settings.memory_limit_mib is not None
        ]
        return Room(cpu_milli=min(cpus, default=None), memory_mib=min(hosts, default=None))

    def guaranteed_ever(self, job: Job) -> int:
        """What jobs of QoS guaranteed may have together of the job's tenant, on the models that it can use."""
        own = self.path(job.tenant)[0]
        models = job.spec.resources.gpu_models or tuple(own.own_model_guarantees)
        return own.own_guarantee_milli + sum(own.own_model_guarantees[m] for m in models)

    def claim_of(self, job: Job, charge_milli: int) -> Claim | None:
        """The lowest tenant on the job's path that would not borrow for the job; None: no claim."""
        if charge_milli == 0:
            return None
        for branch in self.path(job.tenant):
            models = branch.covers(charge_milli, job.spec.resources.gpu_models)
            if models is not None:
                return Claim(branch, models)
        return None

    def may_reclaim(self, claimed_by: Branch, tenant: str, models: Iterable[str] = ()) -> bool:
        """Whether `tenant` and all above it, up to where `claimed_by` branches off, use more than is theirs; on each of
        `models`, where named."""
        claim_path = {b.name for b in self.path(claimed_by.name)}
        if tenant not in self._paths or any(b.name == claimed_by.name for b in self.path(tenant)):
            return False
        if tenant in claim_path:
            return self.branches[tenant].is_own_borrowing()
        outside = [b for b in self.path(tenant) if b.name not in claim_path]
        return all(b.borrowed_milli() > 0 and all(b.borrows_on(m) for m in models) for b in outside)

    def add(
        self, job: Job, slices: tuple[Slice, ...], models: tuple[str, ...], sign: int = 1, *, jobs: int | None = None
    ) -> None:
        """Count what the pass placed (`sign` 1) or will take away (-1); `models` one a slice, "" for a CPU task. By so
        many `jobs` more run: `sign`, unless given."""
        path = self.path(job.tenant)
        for piece, model in zip(slices, models, strict=True):
            charge = sign * piece.charge_milli
            for branch in path:
                branch.charge_milli += charge
                if model:
                    branch.by_model[model] += charge
                branch.used_cpu_milli += sign * piece.cpu_milli
                branch.used_memory_mib += sign * piece.memory_mib
            path[0].own_charge_milli += charge
            if job.spec.qos is Qos.GUARANTEED:
                path[0].guaranteed_charge_milli += charge
                path[0].guaranteed_by_model[model] += charge
        for branch in path:
            branch.running_jobs += sign if jobs is None else jobs

    def _other_models(self, known: Collection[str]) -> Iterable[str]:
        """Models of cards beside `known`, where only some are known."""
        if known and self._models is None:
            cards = (gpu for node in self._state.nodes.values() for gpu in node.gpus.values())
            self._models = frozenset(gpu.inventory.model for gpu in cards)
        return sorted((self._models or frozenset()).difference(known)) if known else ()

    def _climb(self, tenant: str) -> Iterator[Branch]:
        name: str | None = tenant
        for _ in range(DEPTH_MAX + 1):
            if not name:
                return
            yield self.branches[name]
            name = self.branches[name].parent

    def _count(self, tenant: Tenant) -> None:
        own = self.branches[tenant.name]
        own.own_charge_milli = tenant.charge_milli
        own.guaranteed_charge_milli = tenant.guaranteed_charge_milli
        for branch in self.path(tenant.name):
            branch.charge_milli += tenant.charge_milli
            branch.by_model.update(tenant.charge_by_model)
            branch.used_cpu_milli += tenant.used_cpu_milli
            branch.used_memory_mib += tenant.used_memory_mib
            branch.running_jobs += tenant.running_jobs

    def _sum_guarantees(self) -> None:
        """Deepest first, so that a parent sees its children's sums."""
        for branch in sorted(self.branches.values(), key=lambda b: -len(self._paths[b.name])):
            children = [self.branches[c] for c in branch.children]
            below = sum(c.guarantee_milli for c in children)
            branch.guarantee_milli = max(branch.guarantee_milli, below)
            branch.own_guarantee_milli = branch.guarantee_milli - below
            for model in sorted({m for b in (branch, *children) for m in b.model_guarantees}):
                below = sum(c.model_guarantees[model] for c in children)
                branch.model_guarantees[model] = max(branch.model_guarantees[model], below)
                branch.own_model_guarantees[model] = branch.model_guarantees[model] - below

    def _count_guaranteed(self, state: ClusterState) -> None:
        """By model, what jobs of QoS guaranteed hold; only of tenants for which that matters."""
        asked = {b.name for b in self.branches.values() if b.guaranteed_charge_milli and b.own_model_guarantees.total()}
        for node in state.nodes.values() if asked else ():
            for attempt_id in node.attempts:
                attempt = state.attempts[attempt_id]
                if attempt.tenant not in asked or attempt.suspended_ms is not None or not attempt.slice.gpu_uuids:
                    continue
                if state.jobs[attempt.job_key].spec.qos is Qos.GUARANTEED:
                    model = node.gpus[attempt.slice.gpu_uuids[0]].inventory.model
                    self.branches[attempt.tenant].guaranteed_by_model[model] += attempt.slice.charge_milli


def least_room_ever(path: Iterable[TenantSettings], request: TaskRequest) -> int | None:
    """The most that a tenant could ever run of such requests, were nothing else running. `path`: its settings and those
    of every tenant above it."""
    settings = list(path)
    limits = [has.limit_milli for has in settings if has.limit_milli is not None]
    models = request.gpu_models
    if models:
        quotas = [[has.model_quota(m) for m in models] for has in settings]
        limits += [most for row in quotas if (most := _most(row)) is not None]
    return min(limits, default=None)


def _most(quotas: list[ModelQuota]) -> int | None:
    limits = [q.limit_milli for q in quotas]
    known = [limit for limit in limits if limit is not None]
    return max(known) if len(known) == len(limits) and known else None
