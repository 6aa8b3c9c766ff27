"""Why a queued job waits, what it waits for, when room appears, and what would start it now.

Pure, and true by construction: every answer comes from the same filters and the same scratch plan that the scheduling
pass uses. A suggestion is given only after the plan has placed the job with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from gpushare.core.brain import Brain
from gpushare.core.capacity import least_charge
from gpushare.core.commands import CoreSettings
from gpushare.core.cycle import Cycle
from gpushare.core.model import Attempt, Gpu, Job, JobState, Node, TaskRequest
from gpushare.core.placement.filters import Refusals, gang_refusals
from gpushare.core.placement.place import place_gang
from gpushare.core.state import WAITING_STATES, ClusterState
from gpushare.core.waiting import line_key
from gpushare.reasons import Reason


class Wait(msgspec.Struct, frozen=True):
    """One stable word and one sentence; `expected_start_ms` where a pass has planned the start."""

    reason: Reason
    detail: str
    expected_start_ms: int | None = None


class FilterCount(msgspec.Struct, frozen=True):
    """`gpus` cards (or nodes, for a CPU job) that one filter refused, on these nodes."""

    reason: Reason
    detail: str
    gpus: int
    nodes: tuple[str, ...]


class Counterfactual(msgspec.Struct, frozen=True):
    """A change with which the job would start at `start_ms`: in words, and as the command line writes it."""

    change: str
    flag: str
    start_ms: int


class Explanation(msgspec.Struct, frozen=True):
    """`earliest_start_ms`, `expected_start_ms` None: unknown. `blocking_jobs`: keys of jobs whose end makes the room.
    `ahead`: keys of queued jobs that go first, of `ahead_count` in all. `claimant`: the job for which the room that
    this one would fit is kept. `victims`: jobs that have been making way for this one since `hold_ms`."""

    job: str
    state: JobState
    stage: str = ""
    wait: Wait | None = None
    filters: tuple[FilterCount, ...] = ()
    blocking_jobs: tuple[str, ...] = ()
    earliest_start_ms: int | None = None
    suggestion: str = ""
    counterfactuals: tuple[Counterfactual, ...] = ()
    expected_start_ms: int | None = None
    ahead: tuple[str, ...] = ()
    ahead_count: int = 0
    claimant: str = ""
    victims: tuple[str, ...] = ()
    hold_ms: int | None = None


_STAGES = {
    Reason.TENANT_LIMIT: "limit",
    Reason.TENANT_LIMIT_NEVER: "limit",
    Reason.FENCE_UNAVAILABLE: "fence",
    Reason.NODES_UNAVAILABLE: "health",
    Reason.GPU_UNHEALTHY: "health",
    Reason.OCCUPIED: "health",
    Reason.RETRY_BACKOFF: "order",
    Reason.SCHEDULING: "order",
}


def wait_of(state: ClusterState, job: Job, reason: Reason | None, now_ms: int) -> Wait | None:
    """The wait of a job for a listing: `reason` is the last pass's verdict on its shape, None when not judged yet."""
    if job.state not in WAITING_STATES:
        return None
    if job.not_before_ms > now_ms:
        return _backoff(job, now_ms)
    if reason is None:
        return Wait(Reason.SCHEDULING, "the next scheduling pass will look at it")
    return Wait(reason, _sentence(state, job, reason))


def explain(
    state: ClusterState, job: Job, now_ms: int, settings: CoreSettings, brain: Brain | None = None
) -> Explanation:
    """Everything there is to say of `job` now: what the next pass would say of it, by running that pass on scratch."""
    if job.state not in WAITING_STATES:
        return Explanation(job=job.key, state=job.state)
    if job.not_before_ms > now_ms:
        return Explanation(
            job=job.key,
            state=job.state,
            stage="order",
            wait=_backoff(job, now_ms),
            earliest_start_ms=job.not_before_ms,
        )
    cycle = Cycle(state, now_ms, settings, brain or Brain(state, settings))
    found = cycle.run()
    if job.key in cycle.started:
        wait = Wait(Reason.SCHEDULING, "it fits now and starts with the next scheduling pass")
        return Explanation(job=job.key, state=job.state, stage="order", wait=wait, earliest_start_ms=now_ms)
    reason = found.job_waits.get(job.key) or found.waits.get(line_key(job)) or Reason.SCHEDULING
    ask = cycle.ask(job)
    blocking, earliest_ms = _when_room(cycle, job)
    return Explanation(
        job=job.key,
        state=job.state,
        stage=_STAGES.get(reason, "capacity"),
        wait=Wait(reason, _sentence(state, job, reason)),
        filters=_filter_counts(state, gang_refusals(cycle.plan, ask, job.spec.least_tasks)),
        blocking_jobs=blocking,
        earliest_start_ms=earliest_ms,
        suggestion=_suggestion(cycle, job),
    )


def _backoff(job: Job, now_ms: int) -> Wait:
    seconds = (job.not_before_ms - now_ms + 999) // 1000
    return Wait(
        Reason.RETRY_BACKOFF, f"try {job.round} ended with {job.reason}; the next starts in {seconds} s at most"
    )


# -- sentences


def _sentence(state: ClusterState, job: Job, reason: Reason) -> str:
    """Only the sentence asked for is made: some of them look at every card, and every queued job of a listing asks."""
    request = job.spec.resources
    need = describe(request) + (f" x {job.spec.tasks} tasks" if job.spec.tasks > 1 else "")
    sentences: dict[Reason, Callable[[], str]] = {
        Reason.TENANT_LIMIT: lambda: _over_limit(state, job),
        Reason.TENANT_LIMIT_NEVER: lambda: _never_within_limit(state, job),
        Reason.NO_NODES: lambda: (
            "no node with cards is registered yet; an admin adds one with `gpushare node join-token NODE`"
        ),
        Reason.NO_CAPACITY: lambda: f"no card has room for {need} now",
        Reason.HOST_CAPACITY: lambda: f"cards have room, but no node has the CPU or host memory for {need} now",
        Reason.OCCUPIED: lambda: f"{_strangers(state)} hold what {need} needs; they are not gpushare's to stop",
        Reason.GPU_UNHEALTHY: lambda: f"the cards that it could use are out of service: {_unhealthy(state)}",
        Reason.NODES_UNAVAILABLE: lambda: (
            f"the nodes that it could use are cordoned, draining or out of reach: {_unavailable(state)}"
        ),
        Reason.FENCE_UNAVAILABLE: lambda: f"no card offers a fence as strong as {request.min_enforcement.name.lower()}",
        Reason.MODEL_UNAVAILABLE: lambda: f"no registered card matches {need}",
        Reason.LABELS_UNAVAILABLE: lambda: f"no registered node carries the labels {dict(request.node_labels)}",
    }
    return sentences[reason]() if reason in sentences else str(reason)


def _over_limit(state: ClusterState, job: Job) -> str:
    tenant = state.tenants[job.tenant]
    return (
        f"tenant {job.tenant} uses {_cards(tenant.charge_milli)} of its limit of "
        f"{_cards(tenant.settings.limit_milli or 0)} cards and this needs {_cards(_least(state, job))}; it starts when "
        "jobs of the tenant end"
    )


def _never_within_limit(state: ClusterState, job: Job) -> str:
    limit = state.tenants[job.tenant].settings.limit_milli or 0
    return (
        f"it needs {_cards(_least(state, job))} cards at least and tenant {job.tenant} may use {_cards(limit)}; "
        "ask for less, or ask an admin for a higher limit"
    )


def _least(state: ClusterState, job: Job) -> int:
    return (least_charge(state, job.spec.resources) or 0) * job.spec.tasks


def describe(request: TaskRequest) -> str:
    """A request in few words, for sentences."""
    if request.is_cpu:
        return "a CPU task"
    if not request.is_share:
        return f"{request.gpus} whole GPU{'s' if request.gpus > 1 else ''}"
    parts = [f"{_cards(request.gpu_milli)} of a card"] if request.gpu_milli is not None else []
    if request.gpu_memory_mib is not None:
        parts.append(f"{request.gpu_memory_mib} MiB")
    return " and ".join(parts) + (f" of a {request.gpu_model}" if request.gpu_model else "")


def _cards(milli: int) -> str:
    return f"{milli / 1000:.3f}".rstrip("0").rstrip(".")


def _strangers(state: ClusterState) -> str:
    told = [
        f"pid {s.pid} of {s.user or 'an unknown user'} ({s.memory_mib} MiB on {gpu.uuid} of {node.name})"
        for node, gpu in _all_cards(state)
        for s in gpu.condition.strangers
    ]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return "other people's processes " + ", ".join(told[:3]) + more


def _unavailable(state: ClusterState) -> str:
    away = [
        f"{n.name} ({'cordoned' if n.cordoned else 'not connected' if n.state.value == 'ACTIVE' else n.state.lower()})"
        for n in state.nodes.values()
        if not n.is_placeable
    ]
    return ", ".join(away[:5]) + (f" and {len(away) - 5} more" if len(away) > 5 else "")


def _unhealthy(state: ClusterState) -> str:
    """Why and where, the most frequent first: the whole answer where a driver took all cards of a node away."""
    counts = Counter(
        (gpu.condition.reason or str(gpu.condition.state), node.name)
        for node, gpu in _all_cards(state)
        if not gpu.is_placeable
    )
    told = [f"{count} on {node} ({reason})" for (reason, node), count in counts.most_common()]
    return ", ".join(told[:5]) + (f" and {len(told) - 5} more" if len(told) > 5 else "")


def _filter_counts(state: ClusterState, refusals: Refusals) -> tuple[FilterCount, ...]:
    return tuple(
        FilterCount(
            reason=reason,
            detail=_FILTER_WORDS.get(reason, ""),
            gpus=len(set(places)),
            nodes=tuple(sorted({node for node, _ in places}))[:20],
        )
        for reason, places in refusals.by_reason.items()
    )


_FILTER_WORDS = {
    Reason.MODEL_UNAVAILABLE: "another model, or too little memory on the whole card",
    Reason.LABELS_UNAVAILABLE: "node without the labels asked for",
    Reason.FENCE_UNAVAILABLE: "no tier as strong as asked",
    Reason.NODES_UNAVAILABLE: "node cordoned, draining or out of reach",
    Reason.GPU_UNHEALTHY: "card out of service",
    Reason.HOST_CAPACITY: "too little CPU or host memory free on the node",
    Reason.NO_CAPACITY: "too little free of the card",
    Reason.OCCUPIED: "held by processes that are not gpushare's",
    Reason.TENANT_LIMIT: "the tenant's limit would be passed",
}


# -- what-if


def _when_room(cycle: Cycle, job: Job) -> tuple[tuple[str, ...], int | None]:
    """Let running jobs end in the order of their time limits until `job` fits: who must end, and when that is at the
    latest. Jobs without a limit end last and make the time unknown."""
    state, plan = cycle.state, cycle.plan
    endings = sorted((_end_ms(state, a), a.job_key) for n in state.nodes.values() for a in state.live_attempts(n))
    checkpoint = plan.checkpoint()
    blocking: dict[str, None] = {}
    try:
        for end_ms, key in endings:
            if key in blocking:
                continue
            blocking[key] = None
            ended = state.jobs[key]
            for attempt in ended.live():
                plan.give(attempt.tenant, attempt.slice, job=key)
            cycle.count(ended, [a.slice for a in ended.live()], -1)
            if place_gang(plan, cycle.ask(job), job.spec.tasks, job.spec.least_tasks) is not None:
                return tuple(blocking), None if end_ms == _NEVER_MS else end_ms
    finally:
        plan.rollback(checkpoint)
        for key in blocking:
            cycle.count(state.jobs[key], [a.slice for a in state.jobs[key].live()], +1)
    return (), None


_NEVER_MS = 2**62


def _end_ms(state: ClusterState, attempt: Attempt) -> int:
    limit_ms = state.jobs[attempt.job_key].spec.max_run_ms
    return (attempt.started_ms or attempt.allocated_ms) + limit_ms if limit_ms else _NEVER_MS


def _suggestion(cycle: Cycle, job: Job) -> str:
    """The largest smaller share that starts now, found by trying it on the plan."""
    request = job.spec.resources
    if not request.is_share:
        return ""
    milli, mib = _largest_gap(cycle.state)
    smaller = msgspec.structs.replace(
        request,
        gpu_milli=None if request.gpu_milli is None else min(request.gpu_milli, milli),
        gpu_memory_mib=None if request.gpu_memory_mib is None else min(request.gpu_memory_mib, mib),
    )
    if smaller == request or smaller.gpu_milli == 0 or smaller.gpu_memory_mib == 0:
        return ""
    ask = cycle.ask(job)._replace(request=smaller)
    checkpoint = cycle.plan.checkpoint()
    found = place_gang(cycle.plan, ask, job.spec.tasks, job.spec.least_tasks)
    cycle.plan.rollback(checkpoint)
    return "" if found is None else f"it would start now with {describe(smaller)}"


def _largest_gap(state: ClusterState) -> tuple[int, int]:
    """(milli, MiB) free on the placeable card with the most free share."""
    gaps = [(g.free_milli, g.free_mib) for n, g in _all_cards(state) if n.is_placeable and g.is_placeable]
    return max(gaps, default=(0, 0))


def _all_cards(state: ClusterState) -> list[tuple[Node, Gpu]]:
    return [(node, gpu) for node in state.nodes.values() for gpu in node.gpus.values()]
