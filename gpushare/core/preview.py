"""Who would wait, start or be reclaimed if tenants had other settings: two passes on scratch, and what differs.

Pure. Both passes are the scheduler's own, at the same moment: one with the settings as they are, one with the changed
ones. So the answer is what the next pass after such a change would do, on a fleet of its own that nobody else sees.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from gpushare.core import tenant_rules
from gpushare.core.brain import Brain
from gpushare.core.commands import CoreSettings, Rejection
from gpushare.core.cycle import schedule
from gpushare.core.events import (
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
)
from gpushare.core.model import TenantSettings
from gpushare.core.state import ClusterState
from gpushare.core.waiting import line_key
from gpushare.reasons import SENTENCES, Reason

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
    """What one pass decides: jobs that start, jobs that make way (for whom), and why the others wait."""

    starts: frozenset[str]
    makes_way: dict[str, str]
    waits: dict[str, Reason]


def preview(
    state: ClusterState, changes: Mapping[str, TenantSettings], now_ms: int, settings: CoreSettings
) -> tuple[PreviewedJob, ...] | Rejection:
    """The jobs whose outlook `changes` (whole settings, by tenant) alter, by key; or why these cannot be set."""
    changed = _with_settings(state, changes)
    for name, has in changes.items():
        bad = (
            tenant_rules.bad_values(has, settings)
            or tenant_rules.bad_place(changed.tenants, name, has)
            or tenant_rules.bad_guarantees(changed.tenants, name, has)
        )
        if bad is not None:
            return bad
    before = _outlook(_with_settings(state, {}), now_ms, settings)
    after = _outlook(changed, now_ms, settings)
    touched = {*before.starts, *before.makes_way, *before.waits, *after.starts, *after.makes_way, *after.waits}
    effects = ((key, _effect(key, before, after)) for key in sorted(touched))
    return tuple(PreviewedJob(key, *effect) for key, effect in effects if effect is not None)


def _with_settings(state: ClusterState, changes: Mapping[str, TenantSettings]) -> ClusterState:
    """The same records under other settings, for reading alone."""
    shadow = copy.copy(state)
    shadow.touched = set(state.nodes)
    shadow.tenants = {
        name: msgspec.structs.replace(tenant, settings=changes[name]) if name in changes else tenant
        for name, tenant in state.tenants.items()
    }
    return shadow


def _outlook(state: ClusterState, now_ms: int, settings: CoreSettings) -> _Outlook:
    wide = msgspec.structs.replace(settings, placements_per_cycle=_PLACEMENTS_MAX)
    found = schedule(state, now_ms, wide, Brain(state, wide))
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
    return _Outlook(frozenset(starts), makes_way, waits)


def _effect(key: str, before: _Outlook, after: _Outlook) -> tuple[Effect, str] | None:
    """The effect on one job, and why; None for no effect."""
    if key in after.makes_way and key not in before.makes_way:
        claimant = after.makes_way[key]
        return Effect.WOULD_BE_RECLAIMED, f"it would make way for {claimant}" if claimant else ""
    if _gets_room(key, after) and not _gets_room(key, before):
        why = "once others have made way" if key not in after.starts else "at once"
        return Effect.WOULD_START, why
    if key not in after.waits:
        return None
    reason = after.waits[key]
    held = reason in QUOTA_REASONS and before.waits.get(key) not in QUOTA_REASONS
    if _gets_room(key, before) or (held and key in before.waits):
        return Effect.WOULD_WAIT, f"{reason}: {SENTENCES[reason][0]}"
    return None


def _gets_room(key: str, outlook: _Outlook) -> bool:
    return key in outlook.starts or outlook.waits.get(key) is Reason.PREEMPTING
