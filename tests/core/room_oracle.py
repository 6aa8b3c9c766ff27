"""What could start now, by going through nodes and cards one by one: an independent second opinion on a pass.

It knows no arrays, no cached scores and no scratch plan, and leaves out whatever is promised to somebody: cards that
any claim of others touches within the job's time, and all that is claimed of a node's CPU and memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gpushare.core import due
from gpushare.core.capacity import host_need, matches_model, share_on
from gpushare.core.due import Readiness
from gpushare.core.kinds import AttemptState, JobState, Qos, Topology
from gpushare.core.model import Attempt, Job, Node
from gpushare.core.placement.claims import Claim, Owner
from gpushare.core.state import ClusterState

LIVE_STATES = (JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED, JobState.CANCELLING)


class Oracle:
    """Of one state at one moment, with the claims that a pass left; no tenant has guarantees or limits by model."""

    def __init__(self, state: ClusterState, claims: Iterable[Claim], now_ms: int) -> None:
        self.state, self.now_ms = state, now_ms
        self.claims = [c for c in claims if c.end_ms is None or c.end_ms > now_ms]
        self.live: dict[str, list[Attempt]] = {name: [] for name in state.nodes}
        for job in state.jobs.values():
            for attempt in job.attempts:
                if attempt.is_live:
                    self.live[attempt.slice.node].append(attempt)

    def could_start(self) -> list[str]:
        """Keys of queued jobs that nothing keeps from starting."""
        jobs = [self.state.jobs[key] for key in self.state.lines]
        return sorted(j.key for j in jobs if j.state is JobState.QUEUED and self.is_allowed(j) and self.fits(j))

    # -- may it?

    def could_ever_fit(self, job: Job) -> bool:
        """On the cluster as it is, were nothing else there."""
        return self.fits(job, frozenset(self.state.jobs))

    def is_allowed(self, job: Job) -> bool:
        if job.not_before_ms > self.now_ms or due.waits_for(self.state, job)[0] is not Readiness.READY:
            return False
        # Claimants count as if they ran: whoever has a limit may be kept back by one.
        has_claimants = self.state.holds and job.key not in self.state.holds
        if has_claimants and any(_is_limited(self.state, name) for name in self.path(job.tenant)):
            return False
        running = [j for j in self.state.jobs.values() if j.state in LIVE_STATES]
        for name in self.path(job.tenant):
            has = self.state.tenants[name].settings
            below = [j for j in running if name in self.path(j.tenant)]
            if has.max_running_jobs is not None and len(below) >= has.max_running_jobs:
                return False
            more = self.charge(job)
            if has.limit_milli is not None and self.used(name) + more > has.limit_milli:
                return False
            if has.cpu_limit_milli is not None or has.memory_limit_mib is not None:
                return False
        own = self.state.tenants[job.tenant].settings
        mine = [j for j in running if (j.tenant, j.created_by.user) == (job.tenant, job.created_by.user)]
        if own.max_running_per_user is not None and len(mine) >= own.max_running_per_user:
            return False
        cap = job.spec.array_max_running
        if cap and sum(j.array_id == job.array_id and j.tenant == job.tenant for j in running) >= cap:
            return False
        if job.spec.qos is Qos.GUARANTEED:
            used = sum(
                a.slice.charge_milli
                for each in self.live.values()
                for a in each
                if a.tenant == job.tenant
                and a.suspended_ms is None
                and self.state.jobs[a.job_key].spec.qos is Qos.GUARANTEED
            )
            return used + self.charge(job) <= self.own_guarantee(job.tenant)
        return True

    def path(self, tenant: str) -> list[str]:
        names = []
        while tenant:
            names.append(tenant)
            tenant = self.state.tenants[tenant].settings.parent
        return names

    def used(self, tenant: str) -> int:
        """The charge of all below it."""
        attempts = (a for each in self.live.values() for a in each if a.suspended_ms is None)
        return sum(a.slice.charge_milli for a in attempts if tenant in self.path(a.tenant))

    def guarantee(self, tenant: str) -> int:
        children = [t for t in self.state.tenants.values() if t.settings.parent == tenant]
        below = sum(self.guarantee(t.name) for t in children)
        return max(below, self.state.tenants[tenant].settings.guaranteed_milli)

    def own_guarantee(self, tenant: str) -> int:
        children = [t for t in self.state.tenants.values() if t.settings.parent == tenant]
        return self.guarantee(tenant) - sum(self.guarantee(t.name) for t in children)

    def charge(self, job: Job) -> int:
        """Of its fewest tasks, on the dearest card that it can be on."""
        request = job.spec.resources
        if request.is_cpu:
            return 0
        if not request.is_share:
            return 1000 * request.gpus * job.spec.least_tasks
        cards = [g.inventory for n in self.state.nodes.values() for g in n.gpus.values()]
        charges = (share_on(request, c.usable_mib).charge_milli for c in cards)
        return max(charges, default=0) * job.spec.least_tasks

    # -- is there room?

    def fits(self, job: Job, without: frozenset[str] = frozenset()) -> bool:
        """Whether its fewest tasks fit on what is nobody's, were the jobs `without` gone."""
        counts = [self._tasks_on(job, node, without) for node in self.state.nodes.values()]
        if job.spec.topology is Topology.DOMAIN:
            return False
        held = max(counts, default=0) if job.spec.topology is Topology.NODE else sum(counts)
        return held >= job.spec.least_tasks

    def _tasks_on(self, job: Job, node: Node, without: frozenset[str]) -> int:
        request = job.spec.resources
        if not node.is_placeable or any(node.labels.get(k) != v for k, v in request.node_labels):
            return 0
        claims = self._met(job)
        if any(c.whole_node and node.name in c.hosts for c in claims):
            return 0
        taken = {uuid for c in claims for name, uuid in c.cards if name == node.name}
        here = [a for a in self.live[node.name] if a.job_key not in without]
        cpu = node.cpu_milli - sum(a.slice.cpu_milli for a in here)
        memory = node.memory_mib - sum(a.slice.memory_mib for a in here)
        cpu -= sum(c.hosts[node.name][0] for c in claims if node.name in c.hosts)
        memory -= sum(c.hosts[node.name][1] for c in claims if node.name in c.hosts)
        milli: Counter[str] = Counter()
        mib: Counter[str] = Counter()
        for attempt in here:
            if attempt.suspended_ms is None:
                for uuid, held in zip(attempt.slice.gpu_uuids, attempt.slice.held_mib, strict=True):
                    milli[uuid] += attempt.slice.gpu_milli
                    mib[uuid] += held
        tasks, share_milli = 0, 1000 * request.gpus
        for gpu in node.gpus.values():
            usable = gpu.inventory.usable_mib
            if gpu.uuid in taken or not gpu.is_placeable or gpu.condition.strangers:
                continue
            if request.is_cpu or not matches_model(request, gpu.inventory.model, usable):
                continue
            if request.is_share:
                share = share_on(request, usable)
                share_milli = share.milli
                free = (gpu.capacity_milli - milli[gpu.uuid], usable - mib[gpu.uuid])
                tasks += max(0, min(free[0] // share.milli, free[1] // share.mib))
            else:
                tasks += not milli[gpu.uuid]
        if request.gpus:
            tasks //= request.gpus
        need_cpu, need_memory = host_need(request, node, share_milli)
        most = [room // need for room, need in ((cpu, need_cpu), (memory, need_memory)) if need]
        if request.is_cpu:
            return max(0, min(most, default=0))
        return max(0, min([tasks, *most]))

    def _met(self, job: Job) -> list[Claim]:
        """Claims of others that the job would meet."""
        end_ms = self.now_ms + job.spec.max_run_ms if job.spec.max_run_ms else None
        owner = Owner(job.tenant, job.created_by.user, job.key)
        return [c for c in self.claims if not c.entitles(owner) and (end_ms is None or c.start_ms < end_ms)]

    # -- whom could it take back from?

    def could_reclaim(self, min_run_ms: int) -> list[tuple[str, str]]:
        """(waiting job of one task, a job by whose leaving it could start), where the first has a claim on the second.
        Nothing is said while capacity is held for anybody, or somebody leaves for whom it may wait."""
        leaving = (a.desired_stop or a.desired_suspend for each in self.live.values() for a in each)
        if self.state.holds or any(leaving):
            return []
        found = []
        jobs = [self.state.jobs[key] for key in self.state.lines]
        victims = [j for j in self.state.jobs.values() if self._may_go(j, min_run_ms)]
        for job in jobs:
            if job.state is not JobState.QUEUED or job.spec.least_tasks > 1 or not self.is_allowed(job):
                continue
            more = self.charge(job)
            claim = next((n for n in self.path(job.tenant) if self.used(n) + more <= self.guarantee(n)), None)
            if claim is None or not more:
                continue
            may_go = (v for v in victims if self._borrows(v, claim) and v.preempted_for != job.key)
            found += [(job.key, v.key) for v in may_go if self.fits(job, frozenset({v.key}))][:1]
        return found

    def _may_go(self, job: Job, min_run_ms: int) -> bool:
        live = job.live()
        if job.spec.qos is Qos.GUARANTEED or job.state not in (JobState.STARTING, JobState.RUNNING) or not live:
            return False
        if any(a.desired_stop or a.desired_suspend or a.state is AttemptState.UNKNOWN for a in live):
            return False
        own = self.state.tenants[job.tenant].settings.min_run_ms
        since_ms = min(a.held_since_ms or a.started_ms or a.allocated_ms for a in live)
        return self.now_ms - since_ms >= (min_run_ms if own is None else own)

    def _borrows(self, victim: Job, claim: str) -> bool:
        above = self.path(claim)
        if claim in self.path(victim.tenant):
            return False
        if victim.tenant in above:
            own = sum(a.slice.charge_milli for each in self.live.values() for a in each if a.tenant == victim.tenant)
            return own > self.own_guarantee(victim.tenant)
        return all(self.used(n) > self.guarantee(n) for n in self.path(victim.tenant) if n not in above)


def _is_limited(state: ClusterState, tenant: str) -> bool:
    has = state.tenants[tenant].settings
    caps = (has.limit_milli, has.max_running_jobs, has.max_running_per_user, has.cpu_limit_milli, has.memory_limit_mib)
    return any(cap is not None for cap in caps)
