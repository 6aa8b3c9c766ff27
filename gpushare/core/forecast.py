"""When a waiting job starts, if nothing unforeseen happens and nobody submits: the production pass, moved on in time.

Pure. Each running job ends at its time limit, what makes way uses its grace, reservations open and close, and at every
such moment the scheduler's own pass decides on a copy. So the answer is exact as long as the world keeps to that, and
there is none where something without a known end stands in the way. The work is bounded.
"""

from __future__ import annotations

from typing import NamedTuple

from gpushare.core.cycle import Pass
from gpushare.core.events import AttemptResumed, AttemptsAllocated, Event, JobEnded
from gpushare.core.kinds import JobState, Power
from gpushare.core.model import Job
from gpushare.core.sentences import Sees, named, own_tenant
from gpushare.core.whatif import World

# Passes, and decisions of passes over all of them (jobs moved, lines passed over): what one question may cost.
PASSES_MAX = 400
DECISIONS_MAX = 50_000
# Further ahead nothing is foreseen.
HORIZON_MS = 366 * 24 * 3600 * 1000

_TOLD_MAX = 3


class Forecast(NamedTuple):
    """`start_ms` None: not known, and `unknown_because` says why in half a sentence."""

    start_ms: int | None
    unknown_because: str = ""


def expected_start(
    world: World,
    job_key: str,
    *,
    passes_max: int = PASSES_MAX,
    decisions_max: int = DECISIONS_MAX,
    sees: Sees | None = None,
) -> Forecast:
    """Moves `world` on until the waiting job starts, or resumes. Without `sees` no other tenant is named."""
    sees = sees or own_tenant(world.state.jobs[job_key])
    begin_ms, decisions = world.now_ms, 0
    world.begin()
    for _ in range(passes_max):
        result = world.run_pass()
        found = _fate(world, job_key, result)
        if found is not None:
            return found
        decisions += 1 + len(result.events) + len(result.waits)
        if decisions > decisions_max:
            break
        if result.more:
            continue
        at_ms = world.next_ms()
        if at_ms is None:
            return Forecast(None, _stands_in_the_way(world, job_key, sees))
        if at_ms - begin_ms > HORIZON_MS:
            return Forecast(None, "nothing that is known to happen within a year lets it start")
        world.go_on(at_ms)
    return Forecast(None, "more happens before it than can be foreseen")


def _fate(world: World, job_key: str, result: Pass) -> Forecast | None:
    """What this pass has made of the job; None: it waits on."""
    for event in result.events:
        if _starts(world, event, job_key):
            return Forecast(world.now_ms)
        if isinstance(event, JobEnded) and event.job == job_key:
            return Forecast(None, f"it would end before: {event.detail}")
    return None


def _starts(world: World, event: Event, job_key: str) -> bool:
    if isinstance(event, AttemptsAllocated):
        return event.job == job_key and not event.grow
    if isinstance(event, AttemptResumed):
        return world.state.must_attempt(event.attempt).job_key == job_key
    return False


def _stands_in_the_way(world: World, job_key: str, sees: Sees) -> str:
    """Nothing more is known to happen."""
    state, job = world.state, world.state.jobs[job_key]
    waking = sorted(name for name in state.asleep if state.nodes[name].power is Power.WAKING)
    if waking:
        return f"node {waking[0]} has to wake first, and how long that takes is not known"
    endless = [j for j in state.jobs.values() if _is_endless(j) and _could_meet(world, job, j)]
    if not endless:
        return "nothing that is known to happen lets it start"
    endless.sort(key=lambda j: (j.tenant != job.tenant, j.submit_seq))
    told = list(dict.fromkeys(named(job, j.key, sees) for j in endless))
    more = f" and {len(told) - _TOLD_MAX} more" if len(told) > _TOLD_MAX else ""
    return f"jobs without a time limit stand in the way: {', '.join(told[:_TOLD_MAX])}{more}"


def _is_endless(job: Job) -> bool:
    begun = job.state in (JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED)
    return begun and not job.spec.max_run_ms


def _could_meet(world: World, job: Job, other: Job) -> bool:
    """Whether the end of `other` could matter to `job`: the same tenant, or a kind of place that it asks for."""
    if other.key == job.key:
        return False
    if other.tenant == job.tenant or job.spec.resources.is_cpu:
        return True
    models = job.spec.resources.gpu_models
    pieces = [a.slice for a in other.live() if a.slice.gpu_uuids]
    gpus = [world.state.nodes[piece.node].gpus[piece.gpu_uuids[0]] for piece in pieces]
    return any(not models or gpu.inventory.model in models for gpu in gpus)
