"""Who would wait, start or be reclaimed if tenants had other settings: two passes on scratch, and what differs.

Pure. Both passes are the scheduler's own, at the same moment, on copies: one with the settings as they are, one with
the changed ones. So the answer is what the next pass after such a change would do; minimum run times are taken to be
over, so that whoever has to make way a little later is named, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from gpushare.core import tenant_rules
from gpushare.core.brain import Brain
from gpushare.core.commands import CoreSettings, Rejection
from gpushare.core.events import (
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
)
from gpushare.core.model import Job, TenantSettings
from gpushare.core.sentences import sentence
from gpushare.core.state import ClusterState
from gpushare.core.waiting import line_key
from gpushare.core.whatif import World
from gpushare.quantity import format_duration_ms
from gpushare.reasons import Reason

# Waits that settings of tenants make; the others are for room, a time or another job.
QUOTA_REASONS = frozenset(
    {
        Reason.TENANT_LIMIT,
        Reason.TENANT_LIMIT_NEVER,
        Reason.QUOTA,
        Reason.QUOTA_NEVER,
        Reason.TENANT_CAP,
        Reason.USER_CAP,
        Reason.HOST_LIMIT,
    }
)
# A preview looks further than a pass that shares its time with others.
_PLACEMENTS_MAX = 4096


class Effect(StrEnum):
    WOULD_WAIT = "would wait"
    WOULD_BE_RECLAIMED = "would be reclaimed"
    WOULD_START = "would start"


class PreviewedJob(msgspec.Struct, frozen=True):
    job: str
    effect: Effect
    detail: str


class _Outlook(NamedTuple):
    """What one pass decides: jobs that start, jobs that make way (for whom), and why the others wait. `state` is the
    copy that it decided on."""

    state: ClusterState
    starts: frozenset[str]
    makes_way: dict[str, str]
    waits: dict[str, Reason]

    def gets_room(self, key: str) -> bool:
        return key in self.starts or self.waits.get(key) is Reason.PREEMPTING


def preview(
    state: ClusterState,
    changes: Mapping[str, TenantSettings],
    now_ms: int,
    settings: CoreSettings,
    brain: Brain | None = None,
) -> tuple[PreviewedJob, ...] | Rejection:
    """The jobs whose outlook `changes` (whole settings, by tenant that exists) alter, by key; or why these cannot be
    set. `brain`: the scheduler's, so that the forks decide as it does. Changes nothing."""
    return QuotaQuestion(state, changes, now_ms, settings, brain).answer()


class QuotaQuestion:
    """A `preview` in two steps, like `explain.Question`."""

    def __init__(
        self,
        state: ClusterState,
        changes: Mapping[str, TenantSettings],
        now_ms: int,
        settings: CoreSettings,
        brain: Brain | None = None,
    ) -> None:
        self._changes, self._settings = changes, settings
        self._world = World(state, now_ms, _wide(settings), brain)

    def answer(self) -> tuple[PreviewedJob, ...] | Rejection:
        now, changed = self._world.fork(), self._world.fork()
        _set(changed.state, self._changes)
        for name, has in self._changes.items():
            bad = (
                tenant_rules.bad_values(has, self._settings)
                or tenant_rules.bad_place(changed.state.tenants, name, has)
                or tenant_rules.bad_guarantees(changed.state.tenants, name, has)
            )
            if bad is not None:
                return bad
        told = _differences(_outlook(now), _outlook(changed))
        return tuple(_with_minimum(self._world.state, job, self._world.now_ms, self._settings) for job in told)


def _differences(before: _Outlook, after: _Outlook) -> list[PreviewedJob]:
    touched = {*before.starts, *before.makes_way, *before.waits, *after.starts, *after.makes_way, *after.waits}
    effects = ((key, _effect(key, before, after)) for key in sorted(touched))
    return [PreviewedJob(key, *effect) for key, effect in effects if effect is not None]


def _wide(settings: CoreSettings) -> CoreSettings:
    return msgspec.structs.replace(settings, placements_per_cycle=_PLACEMENTS_MAX, min_run_ms=0)


def _set(state: ClusterState, changes: Mapping[str, TenantSettings]) -> None:
    """On a copy."""
    for name, settings in changes.items():
        state.tenants[name].settings = settings


def _outlook(world: World) -> _Outlook:
    state = world.state
    for tenant in state.tenants.values():
        tenant.settings = msgspec.structs.replace(tenant.settings, min_run_ms=None)
    found = world.look().found
    starts: set[str] = set()
    makes_way: dict[str, str] = {}
    for event in found.events:
        if isinstance(event, AttemptsAllocated):
            starts.add(event.job)
        elif isinstance(event, AttemptResumed):
            starts.add(state.must_attempt(event.attempt).job_key)
        elif isinstance(event, AttemptStopRequested | AttemptSuspendRequested):
            makes_way[state.must_attempt(event.attempt).job_key] = event.claimant
    waits: dict[str, Reason] = {}
    for key in state.lines:
        reason = found.job_waits.get(key) or found.waits.get(line_key(state.jobs[key]))
        if reason is not None and key not in starts:
            waits[key] = reason
    return _Outlook(state, frozenset(starts), makes_way, waits)


def _effect(key: str, before: _Outlook, after: _Outlook) -> tuple[Effect, str] | None:
    """The effect on one job, and why; None for no effect."""
    job = after.state.jobs[key]
    if key in after.makes_way and key not in before.makes_way:
        return Effect.WOULD_BE_RECLAIMED, f"it would make way for {after.makes_way[key]}"
    if after.gets_room(key) and not before.gets_room(key):
        return Effect.WOULD_START, "at once" if key in after.starts else "once others have made way"
    if key not in after.waits:
        return None
    reason = after.waits[key]
    is_new = reason in QUOTA_REASONS and key in before.waits and before.waits[key] not in QUOTA_REASONS
    if before.gets_room(key) or is_new:
        # Previews are for those who see every tenant.
        told = sentence(after.state, job, reason, after.state.at_ms, sees=lambda tenant: True)
        return Effect.WOULD_WAIT, f"{reason}: {told}"
    return None


def _with_minimum(state: ClusterState, told: PreviewedJob, now_ms: int, settings: CoreSettings) -> PreviewedJob:
    """A job that has not run for its minimum yet is not touched before."""
    if told.effect is not Effect.WOULD_BE_RECLAIMED:
        return told
    left_ms = _minimum_left_ms(state, state.jobs[told.job], now_ms, settings)
    if left_ms <= 0:
        return told
    seconds = format_duration_ms(-(-left_ms // 1000) * 1000)
    return msgspec.structs.replace(told, detail=f"{told.detail}, in {seconds}: it has not run its minimum time yet")


def _minimum_left_ms(state: ClusterState, job: Job, now_ms: int, settings: CoreSettings) -> int:
    own = state.tenants[job.tenant].settings.min_run_ms
    since = [a.held_since_ms or a.started_ms or a.allocated_ms for a in job.live()]
    return min(since, default=now_ms) + (settings.min_run_ms if own is None else own) - now_ms
