"""Why a job waits, as one stable word and one sentence for a person.

Pure. A sentence names what stands in the way with its figures. A job of another tenant is named only where its reader
may know of it, which the shell says (`Sees`). Only the sentence asked for is made: some look at every card, and a
listing asks for many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from gpushare.core import due
from gpushare.core.capacity import host_need, least_charge
from gpushare.core.due import Readiness
from gpushare.core.kinds import DependencyKind, JobState
from gpushare.core.model import Gpu, Job, Node, TaskRequest
from gpushare.core.placement.claims import Claim
from gpushare.core.quota import Branch, QuotaTree
from gpushare.core.reservations import RESERVATION_CLAIM
from gpushare.core.shared_paths import placed_request, shares
from gpushare.core.state import WAITING_STATES, ClusterState
from gpushare.quantity import format_cpu_milli, format_duration_ms, format_memory_mib
from gpushare.reasons import SENTENCES, Reason

_TOLD_MAX = 5
# What a suspended job meets on its node; it is told as RESUMING.
_ROOM = frozenset(
    {Reason.NO_CAPACITY, Reason.HOST_CAPACITY, Reason.HELD, Reason.RESERVED, Reason.NODES_UNAVAILABLE}
) | {Reason.GPU_UNHEALTHY, Reason.OCCUPIED}


#: Whether the reader may know that jobs of this tenant are there; "": who holds cards besides gpushare.
Sees = Callable[[str], bool]


class Wait(msgspec.Struct, frozen=True):
    """One stable word and one sentence; `expected_start_ms` where a pass has planned the start."""

    reason: Reason
    detail: str
    expected_start_ms: int | None = None


def wait_of(
    state: ClusterState,
    job: Job,
    reason: Reason | None,
    now_ms: int,
    starts_ms: Mapping[str, int] = MappingProxyType({}),
    sees: Sees | None = None,
) -> Wait | None:
    """The wait of a job for a listing: `reason` is the last pass's verdict on it, None when not judged yet;
    `starts_ms` the starts that this pass has planned. Without `sees` no other tenant is named."""
    if job.state not in WAITING_STATES:
        return None
    if job.not_before_ms > now_ms:
        return backoff(job, now_ms)
    if reason is None:
        return Wait(Reason.SCHEDULING, "the next scheduling pass will look at it")
    reason = told_reason(job, reason)
    return Wait(reason, sentence(state, job, reason, now_ms, sees=sees), starts_ms.get(job.key))


def told_reason(job: Job, reason: Reason) -> Reason:
    """What a person is told: lack of room is another matter for a suspended job, which waits for its own node."""
    return Reason.RESUMING if job.state is JobState.SUSPENDED and reason in _ROOM else reason


def backoff(job: Job, now_ms: int) -> Wait:
    wait = format_duration_ms(max(1000, (job.not_before_ms - now_ms + 999) // 1000 * 1000))
    return Wait(Reason.RETRY_BACKOFF, f"try {job.round} ended with {job.reason}; the next starts in {wait} at most")


class _Asked(NamedTuple):
    """What a sentence may need."""

    state: ClusterState
    job: Job
    now_ms: int
    claim: Claim | None
    sees: Sees

    @property
    def need(self) -> str:
        spec = self.job.spec
        return describe(spec.resources) + (f" x {spec.tasks} tasks" if spec.tasks > 1 else "")


def sentence(
    state: ClusterState,
    job: Job,
    reason: Reason,
    now_ms: int,
    claim: Claim | None = None,
    sees: Sees | None = None,
) -> str:
    """`claim`: what keeps the room that the job would fit, where that is known. Without `sees` no other tenant is
    named."""
    made = _SENTENCES.get(reason)
    if made is None:
        return SENTENCES[reason][0].rstrip(".")
    return made(_Asked(state, job, now_ms, claim, sees or own_tenant(job)))


_SENTENCES: Final[Mapping[Reason, Callable[[_Asked], str]]] = {
    Reason.TENANT_LIMIT: lambda a: _over_limit(a.state, a.job),
    Reason.TENANT_LIMIT_NEVER: lambda a: _never_within_limit(a.state, a.job),
    Reason.QUOTA: lambda a: _over_guarantee(a.state, a.job),
    Reason.QUOTA_NEVER: lambda a: _never_within_guarantee(a.state, a.job),
    Reason.HOST_LIMIT: lambda a: _over_host_limit(a.state, a.job),
    Reason.TENANT_CAP: lambda a: _at_tenant_cap(a.state, a.job),
    Reason.USER_CAP: lambda a: _at_user_cap(a.state, a.job),
    Reason.ARRAY_CAP: lambda a: _at_array_cap(a.state, a.job),
    Reason.DEPENDENCY: lambda a: _depends(a.state, a.job),
    Reason.RESERVED: lambda a: _reserved(a.state, a.job, a.claim, a.now_ms, a.sees),
    Reason.HELD: lambda a: _held(a.job, a.claim, a.now_ms, a.sees),
    Reason.PREEMPTING: lambda a: _preempting(a.state, a.job, a.sees),
    Reason.RESUMING: lambda a: _resuming(a.job, a.need),
    Reason.NO_NODES: lambda a: (
        "no node with cards is registered yet; an admin adds one with `gpushare node join-token NODE`"
    ),
    Reason.NO_CAPACITY: lambda a: f"no card has room for {a.need} now{_beside_the_cordoned(a.state)}",
    Reason.HOST_CAPACITY: lambda a: f"cards have room, but no node has the CPU or host memory for {a.need} now",
    Reason.OCCUPIED: lambda a: (
        f"{_strangers(a.state, a.sees)} hold what {a.need} needs; they are not gpushare's to stop"
    ),
    Reason.GPU_UNHEALTHY: lambda a: f"the cards that it could use are out of service: {_unhealthy(a.state)}",
    Reason.NODES_UNAVAILABLE: lambda a: (
        f"the nodes that it could use are cordoned, draining, asleep or out of reach: {_unavailable(a.state)}"
    ),
    Reason.FENCE_UNAVAILABLE: lambda a: (
        f"no card offers a fence as strong as {a.job.spec.resources.min_enforcement.name.lower()}, so as things are it "
        "waits for ever; ask for a weaker --fence, or for whole cards"
    ),
    Reason.MODEL_UNAVAILABLE: lambda a: f"no registered card matches {a.need}",
    Reason.LABELS_UNAVAILABLE: lambda a: (
        f"no registered node carries the labels {dict(a.job.spec.resources.node_labels)}"
    ),
    Reason.PATH_MISSING: lambda a: _without_path(a.state, a.job),
}


# -- words


def _without_path(state: ClusterState, job: Job) -> str:
    sharing = [name for name, node in sorted(state.nodes.items()) if shares(placed_request(job), node.shared_paths)]
    return (
        f"the nodes that could take it do not have its directory: it is under {job.shared_path}, which "
        f"{_listed(sharing)} share; submit it from elsewhere, or let --node-label and --model allow these"
    )


def describe(request: TaskRequest) -> str:
    """A request in few words, for sentences."""
    if request.is_cpu:
        return "a CPU task"
    if not request.is_share:
        return f"{request.gpus} whole GPU{'s' if request.gpus > 1 else ''}" + _of_a(request)
    parts = [f"{cards(request.gpu_milli)} of a card"] if request.gpu_milli is not None else []
    if request.gpu_memory_mib is not None:
        parts.append(f"{request.gpu_memory_mib} MiB")
    return " and ".join(parts) + _of_a(request)


def _of_a(request: TaskRequest) -> str:
    return f" of a {' or a '.join(request.gpu_models)}" if request.gpu_model else ""


def cards(milli: int) -> str:
    """Thousandths as cards: "0.25", "2"."""
    return f"{milli / 1000:.3f}".rstrip("0").rstrip(".")


def own_tenant(job: Job) -> Sees:
    return lambda tenant: tenant == job.tenant


def named(job: Job, other: str, sees: Sees) -> str:
    """Another job as a reader of `job` may hear of it: by id in the job's tenant, with its own tenant's name, or as
    nobody's in particular."""
    tenant, _, job_id = other.partition("/")
    if tenant == job.tenant:
        return f"job {job_id}"
    return f"job {other}" if sees(tenant) else "a job of another tenant"


def from_now(at_ms: int, now_ms: int) -> str:
    """ "in 5m": whole minutes where it is longer than that, else seconds; never too short."""
    unit = 60_000 if at_ms - now_ms > 600_000 else 1000
    return f"in {format_duration_ms(max(unit, -(-(at_ms - now_ms) // unit) * unit))}"


def _listed(told: list[str]) -> str:
    return ", ".join(told[:_TOLD_MAX]) + (f" and {len(told) - _TOLD_MAX} more" if len(told) > _TOLD_MAX else "")


# -- limits and caps


def _least(state: ClusterState, job: Job) -> int:
    return (least_charge(state, job.spec.resources) or 0) * job.spec.least_tasks


def _over_limit(state: ClusterState, job: Job) -> str:
    need = _least(state, job)
    path = QuotaTree(state).path(job.tenant)
    limited = [(b, b.charge_milli, b.settings.limit_milli, "") for b in path if b.settings.limit_milli is not None]
    limited += [
        (b, b.by_model[q.model], q.limit_milli, f" of {q.model}")
        for b in path
        for q in b.settings.model_quotas
        if q.limit_milli is not None and q.model in (job.spec.resources.gpu_models or (q.model,))
    ]
    if not limited:
        return "the tenant's limit would be passed; it starts when jobs of the tenant end"
    passed = [each for each in limited if each[1] + need > (each[2] or 0)]
    branch, used, limit, model = (passed or limited)[0]
    return (
        f"tenant {branch.name} uses {cards(used)} of its limit of {cards(limit or 0)} cards{model} and this needs "
        f"{cards(need)}; it starts when jobs of the tenant end"
    )


def _never_within_limit(state: ClusterState, job: Job) -> str:
    need = _least(state, job)
    path = QuotaTree(state).path(job.tenant)
    found = [(b.settings.limit_milli, b.name) for b in path if b.settings.limit_milli is not None]
    models = job.spec.resources.gpu_models
    for branch in path:
        limits = [branch.settings.model_quota(model).limit_milli for model in models]
        known = [limit for limit in limits if limit is not None]
        if known and len(known) == len(limits):
            found.append((max(known), branch.name))
    limit, name = min(found, default=(0, job.tenant))
    return (
        f"it needs {cards(need)} cards at least and tenant {name} may use {cards(limit)}, so as things are it "
        "waits for ever; ask for less, or ask an admin for a higher limit"
    )


def _over_guarantee(state: ClusterState, job: Job) -> str:
    tree = QuotaTree(state)
    own = tree.path(job.tenant)[0]
    return (
        f"jobs of QoS guaranteed use {cards(own.guaranteed_charge_milli)} of the {cards(tree.guaranteed_ever(job))} "
        f"cards that tenant {job.tenant} is guaranteed and this needs {cards(_least(state, job))}; it starts when such "
        "jobs end, or submit it with --qos burst"
    )


def _never_within_guarantee(state: ClusterState, job: Job) -> str:
    ever = QuotaTree(state).guaranteed_ever(job)
    return (
        f"it needs {cards(_least(state, job))} cards at least, its QoS is guaranteed, and tenant {job.tenant} is "
        f"guaranteed {cards(ever)}, so as things are it waits for ever; "
        f"submit it with --qos burst, ask for less, or ask an admin for a higher guarantee"
    )


def _over_host_limit(state: ClusterState, job: Job) -> str:
    cpu, memory = least_host(state, job)
    for branch in QuotaTree(state).path(job.tenant):
        has = branch.settings
        if has.cpu_limit_milli is not None and branch.used_cpu_milli + cpu > has.cpu_limit_milli:
            used, limit, need = map(format_cpu_milli, (branch.used_cpu_milli, has.cpu_limit_milli, cpu))
            return f"tenant {branch.name} uses {used} of its limit of {limit} CPUs and this needs {need}"
        if has.memory_limit_mib is not None and branch.used_memory_mib + memory > has.memory_limit_mib:
            used, limit, need = map(format_memory_mib, (branch.used_memory_mib, has.memory_limit_mib, memory))
            return f"tenant {branch.name} uses {used} of its limit of {limit} of host memory and this needs {need}"
    return "the tenant's limit of CPU or host memory would be passed; ask for less with --cpus or --host-memory"


def least_host(state: ClusterState, job: Job) -> tuple[int, int]:
    """(cpu_milli, memory_mib) that the job takes at least, over all nodes of the cluster."""
    request = job.spec.resources
    milli = 1000 * request.gpus if not request.is_share else (least_charge(state, request) or 0)
    needs = [host_need(request, node, milli) for node in state.nodes.values()]
    tasks = job.spec.least_tasks
    return min((n[0] for n in needs), default=0) * tasks, min((n[1] for n in needs), default=0) * tasks


def capped_branch(state: ClusterState, job: Job) -> Branch | None:
    """The lowest tenant on the path that runs as many jobs as it may."""
    path = QuotaTree(state).path(job.tenant)
    return next((b for b in path if b.settings.max_running_jobs is not None and _is_full(b)), None)


def _is_full(branch: Branch) -> bool:
    return branch.settings.max_running_jobs is not None and branch.running_jobs >= branch.settings.max_running_jobs


def _at_tenant_cap(state: ClusterState, job: Job) -> str:
    branch = capped_branch(state, job)
    if branch is None:
        return SENTENCES[Reason.TENANT_CAP][0].rstrip(".")
    return (
        f"tenant {branch.name} runs {branch.running_jobs} jobs and may run {branch.settings.max_running_jobs}; it "
        "starts when one of them ends"
    )


def _at_user_cap(state: ClusterState, job: Job) -> str:
    tenant, user = state.tenants[job.tenant], job.created_by.user
    person = tenant.people.get(user)
    return (
        f"{user} runs {person.running_jobs if person else 0} jobs and each user of tenant {job.tenant} may run "
        f"{tenant.settings.max_running_per_user}; it starts when one of them ends"
    )


def _at_array_cap(state: ClusterState, job: Job) -> str:
    return (
        f"{state.array_running[job.array_key]} jobs of array {job.array_id} run and its submitter allowed "
        f"{job.spec.array_max_running} at once; it starts when one of them ends"
    )


# -- other jobs and promises

_TO = {DependencyKind.AFTER: "to begin", DependencyKind.AFTERANY: "to end", DependencyKind.AFTEROK: "to succeed"}


def _depends(state: ClusterState, job: Job) -> str:
    told = []
    for dependency in job.spec.after:
        if due.readiness(state, dependency) is not Readiness.WAITS:
            continue
        name, to = dependency.job.partition("/")[2], _TO[dependency.kind]
        children = state.arrays.get(dependency.job)
        if children is None:
            told.append(f"job {name} {to}, which is {state.jobs[dependency.job].state}")
        else:
            ended = sum(state.jobs[key].is_ended for key in children if key in state.jobs)
            told.append(f"all {len(children)} jobs of array {name} {to}, of which {ended} have ended")
    return "it waits for " + "; and for ".join(told or ["another job"])


def _reserved(state: ClusterState, job: Job, claim: Claim | None, now_ms: int, sees: Sees) -> str:
    if claim is None:
        return "the room that it would fit is reserved in a window of time that it would run into"
    name = claim.id.removeprefix(RESERVATION_CLAIM).partition(" ")[0]
    found = state.reservations.get(name)
    what = "maintenance" if claim.whole_node else "reservation"
    others = bool(claim.tenant) and claim.tenant != job.tenant
    whose = f" of {f'tenant {claim.tenant}' if sees(claim.tenant) else 'another tenant'}" if others else ""
    nodes = _listed(sorted(found.nodes)) if found is not None and claim.whole_node else ""
    opens = "is open" if claim.start_ms <= now_ms else f"opens {from_now(claim.start_ms, now_ms)}"
    closes = "" if claim.end_ms is None else f" and closes {from_now(claim.end_ms, now_ms)}"
    limit = f"with --time {format_duration_ms(job.spec.max_run_ms)}" if job.spec.max_run_ms else "without a --time"
    runs = "" if claim.start_ms <= now_ms else f"; {limit} it could run into it"
    return f"{what} {name}{whose}{' on ' + nodes if nodes else ''} has the room: its window {opens}{closes}{runs}"


def _held(job: Job, claim: Claim | None, now_ms: int, sees: Sees) -> str:
    if claim is None:
        return "the room that it would fit is kept for a job ahead of it; `gpushare explain` says for which"
    whom = named(job, claim.job, sees)
    if claim.start_ms <= now_ms:
        return f"the room that it would fit is kept for {whom}, for which others make way"
    limit = f"with --time {format_duration_ms(job.spec.max_run_ms)}" if job.spec.max_run_ms else "without a --time"
    return (
        f"the room that it would fit is owed to {whom}, which starts there {from_now(claim.start_ms, now_ms)} at the "
        f"latest; {limit} this one could still be running then"
    )


def _preempting(state: ClusterState, job: Job, sees: Sees) -> str:
    hold = state.holds.get(job.key)
    victims = [] if hold is None else [key for key in hold.victims if key in state.jobs and state.jobs[key].live()]
    if not victims:
        return "other jobs are making way for it"
    counts = Counter(named(job, key, sees) for key in victims)
    told = [name if count == 1 else f"{count} jobs of other tenants" for name, count in counts.items()]
    verb = "is" if len(victims) == 1 else "are"
    return f"{_listed(told)} {verb} making way for it; it starts at the end of their grace"


def _resuming(job: Job, need: str) -> str:
    node = job.current()[0].slice.node
    return f"it is suspended on node {node}, where no card has room for {need} now; it goes on there, or cancel it"


# -- the state of nodes and cards


def all_cards(state: ClusterState) -> list[tuple[Node, Gpu]]:
    return [(node, gpu) for node in state.nodes.values() for gpu in node.gpus.values()]


def _strangers(state: ClusterState, sees: Sees) -> str:
    told = [
        (f"pid {s.pid} of {s.user or 'an unknown user'} " if sees("") else "")
        + f"({s.memory_mib} MiB on {gpu.uuid} of {node.name})"
        for node, gpu in all_cards(state)
        for s in gpu.condition.strangers
    ]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return "other people's processes " + ", ".join(told[:3]) + more


def _unavailable(state: ClusterState) -> str:
    return _listed([f"{n.name} ({_why_away(n)})" for n in state.nodes.values() if not n.is_placeable])


def _beside_the_cordoned(state: ClusterState) -> str:
    """Room there may be on nodes that an admin has closed: whoever waits for it is told."""
    closed = [node for node in state.nodes.values() if node.cordoned and node.gpus]
    return f"; closed to new tasks: {_listed([f'{n.name} ({_why_away(n)})' for n in closed])}" if closed else ""


def _why_away(node: Node) -> str:
    if node.cordoned:
        return "draining" if node.drain else "cordoned"
    if node.power.value != "on":
        return "asleep" if node.power.value == "down" else "waking"
    return "not connected" if node.state.value == "ACTIVE" else node.state.lower()


def _unhealthy(state: ClusterState) -> str:
    """Why and where, the most frequent first: the whole answer where a driver took all cards of a node away."""
    counts = Counter(
        (gpu.condition.reason or str(gpu.condition.state), node.name)
        for node, gpu in all_cards(state)
        if not gpu.is_placeable
    )
    return _listed([f"{count} on {node} ({reason})" for (reason, node), count in counts.most_common()])
