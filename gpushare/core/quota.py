"""Who may still use how much: the tenant tree with its guarantees and limits, as one scheduling pass sees it.

Pure. A `QuotaTree` is made from the state for a pass and follows what the pass decides (`add`); the state itself is
never changed here. All charges are thousandths of a card, summed over a tenant and everything below it.

A tenant *borrows* what its subtree uses beyond its guarantee (`guaranteed_milli`, or the sum of its children's where
that is more; guarantees on one model cover that model first). A job has a *claim* when some tenant on its path would
stay within its guarantee with it; it may then take back what tenants outside of that tenant borrow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gpushare.core.model import Job, ModelQuota, Qos, Slice, Tenant, TenantSettings
from gpushare.core.placement.ask import NO_LIMIT, Room
from gpushare.core.state import ClusterState

ROOT = ""
# A tree is never deeper; admission sees to that.
DEPTH_MAX = 8


class Branch:
    """One tenant with all below it. `settings` of the root are empty."""

    def __init__(self, name: str, settings: TenantSettings) -> None:
        self.name = name
        self.settings = settings
        self.parent: str | None = None
        self.children: list[str] = []
        self.charge_milli = 0
        self.by_model: Counter[str] = Counter()
        self.guaranteed_charge_milli = 0
        self.used_cpu_milli = 0
        self.used_memory_mib = 0
        self.running_jobs = 0
        self.guarantee_milli = settings.guaranteed_milli
        self.model_guarantees: Counter[str] = Counter({q.model: q.guaranteed_milli for q in settings.model_quotas})

    def borrowed_milli(self) -> int:
        """What it uses beyond its guarantee."""
        uncovered = sum(max(0, used - self.model_guarantees[model]) for model, used in self.by_model.items())
        return max(0, uncovered - self.guarantee_milli)

    def is_below_guarantee(self) -> bool:
        """Some of what is always its own is not in use."""
        if self.guarantee_milli and self.charge_milli < self.guarantee_milli:
            return True
        return any(self.by_model[model] < milli for model, milli in self.model_guarantees.items() if milli)

    def covers(self, charge_milli: int, models: tuple[str, ...]) -> bool:
        """Whether so much more, on cards of any of `models` (empty: of any model), stays within the guarantee."""
        if self.charge_milli + charge_milli <= self.guarantee_milli:
            return True
        named = models or tuple(self.model_guarantees)
        return any(self.by_model[m] + charge_milli <= self.model_guarantees[m] for m in named)


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
        for tenant in state.tenants.values():
            if not tenant.deleted:
                self._count(tenant)
        self._sum_guarantees()

    def path(self, tenant: str) -> tuple[Branch, ...]:
        """The tenant's branch and those above it, the root left out."""
        return self._paths[tenant]

    def room(self, job: Job) -> Room:
        """What `job` may add to its tenant and to every tenant above it."""
        path = self.path(job.tenant)
        rooms = [b.settings.limit_milli - b.charge_milli for b in path if b.settings.limit_milli is not None]
        if job.spec.qos is Qos.GUARANTEED:
            rooms.append(self.guaranteed_ever(job) - path[0].guaranteed_charge_milli)
        models: dict[str, int] = {}
        for branch in path:
            for quota in branch.settings.model_quotas:
                if quota.limit_milli is not None:
                    left = quota.limit_milli - branch.by_model[quota.model]
                    models[quota.model] = min(models.get(quota.model, left), left)
        cpus = [b.settings.cpu_limit_milli - b.used_cpu_milli for b in path if b.settings.cpu_limit_milli is not None]
        hosts = [
            b.settings.memory_limit_mib - b.used_memory_mib for b in path if b.settings.memory_limit_mib is not None
        ]
        if not rooms and not models and not cpus and not hosts:
            return NO_LIMIT
        return Room(min(rooms, default=None), tuple(models.items()), min(cpus, default=None), min(hosts, default=None))

    def guaranteed_ever(self, job: Job) -> int:
        """What jobs of QoS guaranteed may have together of the job's tenant, on the models that it can use."""
        own = self.path(job.tenant)[0]
        models = job.spec.resources.gpu_models or tuple(own.model_guarantees)
        return own.guarantee_milli + sum(own.model_guarantees[m] for m in models)

    def claim_of(self, job: Job, charge_milli: int) -> Branch | None:
        """The lowest tenant on the job's path that would stay within its guarantee with the job; None: no claim."""
        if charge_milli == 0:
            return None
        models = job.spec.resources.gpu_models
        return next((b for b in self.path(job.tenant) if b.covers(charge_milli, models)), None)

    def may_reclaim(self, claimed_by: Branch, tenant: str) -> bool:
        """Whether `tenant` and all above it, up to where `claimed_by` branches off, use more than is theirs."""
        claim_path = {b.name for b in self.path(claimed_by.name)}
        if tenant not in self._paths or any(b.name == claimed_by.name for b in self.path(tenant)):
            return False
        return all(b.borrowed_milli() > 0 for b in self.path(tenant) if b.name not in claim_path)

    def add(self, job: Job, slices: tuple[Slice, ...], models: tuple[str, ...], sign: int = 1) -> None:
        """Count what the pass placed (`sign` 1) or will take away (-1); `models` one a slice, "" for a CPU task."""
        for branch in self.path(job.tenant):
            branch.running_jobs += sign
            for piece, model in zip(slices, models, strict=True):
                branch.charge_milli += sign * piece.charge_milli
                if model:
                    branch.by_model[model] += sign * piece.charge_milli
                if job.spec.qos is Qos.GUARANTEED:
                    branch.guaranteed_charge_milli += sign * piece.charge_milli
                branch.used_cpu_milli += sign * piece.cpu_milli
                branch.used_memory_mib += sign * piece.memory_mib

    def _climb(self, tenant: str) -> Iterator[Branch]:
        name: str | None = tenant
        for _ in range(DEPTH_MAX + 1):
            if not name:
                return
            yield self.branches[name]
            name = self.branches[name].parent

    def _count(self, tenant: Tenant) -> None:
        for branch in self.path(tenant.name):
            branch.charge_milli += tenant.charge_milli
            branch.by_model.update(tenant.charge_by_model)
            branch.guaranteed_charge_milli += tenant.guaranteed_charge_milli
            branch.used_cpu_milli += tenant.used_cpu_milli
            branch.used_memory_mib += tenant.used_memory_mib
            branch.running_jobs += tenant.running_jobs

    def _sum_guarantees(self) -> None:
        """Deepest first, so that a parent sees its children's sums."""
        for branch in sorted(self.branches.values(), key=lambda b: -len(self._paths[b.name])):
            children = [self.branches[c] for c in branch.children]
            branch.guarantee_milli = max(branch.guarantee_milli, sum(c.guarantee_milli for c in children))
            for model in {m for c in children for m in c.model_guarantees}:
                below = sum(c.model_guarantees[model] for c in children)
                branch.model_guarantees[model] = max(branch.model_guarantees[model], below)


def least_room_ever(tree: QuotaTree, job: Job) -> int | None:
    """The most that the tenants on the path could ever run of a job like this, were nothing else running."""
    path = tree.path(job.tenant)
    limits = [b.settings.limit_milli for b in path if b.settings.limit_milli is not None]
    models = job.spec.resources.gpu_models
    if models:
        quotas = [[b.settings.model_quota(m) for m in models] for b in path]
        limits += [most for row in quotas if (most := _most(row)) is not None]
    return min(limits, default=None)


def _most(quotas: list[ModelQuota]) -> int | None:
    limits = [q.limit_milli for q in quotas]
    known = [limit for limit in limits if limit is not None]
    return max(known) if len(known) == len(limits) and known else None
