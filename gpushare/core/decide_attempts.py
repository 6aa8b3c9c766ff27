"""What an agent's word about an attempt changes. Pure.

A report is idempotent: the end of an attempt is taken once, a late or repeated report changes nothing, and an attempt
that has ended never comes back.
"""

from __future__ import annotations

from gpushare import names
from gpushare.core.commands import (
    AttemptReport,
    Call,
    CoreSettings,
    EndAttempt,
    Outcome,
    Rejection,
    ReportAttempt,
    ReportRebooted,
)
from gpushare.core.events import AttemptChanged, AttemptEnded
from gpushare.core.kinds import AttemptState
from gpushare.core.lifecycle import ATTEMPT_MOVES, consequences
from gpushare.core.model import ENDED_ATTEMPT_STATES, Attempt
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

_DETAIL_MAX_CHARS = 2000


def report(
    state: ClusterState, command: ReportAttempt, call: Call, now_ms: int, settings: CoreSettings
) -> Outcome | Rejection:
    """Take one report of the agent on `command.node`. STALE_ATTEMPT: unknown or ended, to be forgotten."""
    said = command.report
    attempt = state.attempt(said.attempt)
    if attempt is None:
        return Rejection(Reason.STALE_ATTEMPT, f"no attempt {names.shown(said.attempt)} is known here")
    if attempt.slice.node != command.node:
        return Rejection(
            Reason.PERMISSION_DENIED, f"attempt {attempt.id} is on node {attempt.slice.node}, not on {command.node}"
        )
    bad = _bad_report(said)
    if bad:
        return Rejection(Reason.BAD_REPORT, f"attempt {attempt.id}: {bad}")
    ended = said.state in ENDED_ATTEMPT_STATES
    if not attempt.is_live:
        if ended:
            return Outcome()
        return Rejection(Reason.STALE_ATTEMPT, f"attempt {attempt.id} has ended as {attempt.state}")
    return _ended(state, attempt, said, now_ms, settings) if ended else _changed(attempt, said)


def _bad_report(said: AttemptReport) -> str:
    if said.state in (AttemptState.ALLOCATED, AttemptState.UNKNOWN):
        return f"an agent cannot report {said.state}"
    if said.exit_code is not None and not 0 <= said.exit_code <= 255:
        return f"exit code {said.exit_code} is not 0 to 255"
    if said.signal is not None and not 1 <= said.signal <= 64:
        return f"signal {said.signal} is not 1 to 64"
    if said.state in ENDED_ATTEMPT_STATES and said.reason not in Reason.__members__:
        return f"reason {names.shown(said.reason)} is not known"
    return ""


def _changed(attempt: Attempt, said: AttemptReport) -> Outcome:
    same = said.state is attempt.state and attempt.seen
    if same or _is_behind(attempt, said):
        # A late message, or one that an order on its way makes late: what is known already is newer.
        return Outcome()
    states = [said.state]
    if said.state is AttemptState.SUSPENDED and attempt.state in (AttemptState.ALLOCATED, AttemptState.LAUNCHING):
        # An agent tells the newest state alone: it has run before it was suspended.
        states.insert(0, AttemptState.RUNNING)
    if states[0] is not attempt.state and states[0] not in ATTEMPT_MOVES[attempt.state]:
        return Outcome()
    return Outcome(
        events=tuple(
            AttemptChanged(attempt=attempt.id, state=state, started_ms=said.started_ms, containment=said.containment)
            for state in states
        )
    )


def _is_behind(attempt: Attempt, said: AttemptReport) -> bool:
    """It runs although its cards were given to others, or is suspended although it holds some: its agent has missed an
    order, which the next Sync repeats, and until that is obeyed the ledger stands."""
    if said.state is AttemptState.RUNNING:
        return attempt.suspended_ms is not None
    return said.state is AttemptState.SUSPENDED and attempt.suspended_ms is None and not attempt.desired_suspend


def _ended(state: ClusterState, attempt: Attempt, said: AttemptReport, now_ms: int, settings: CoreSettings) -> Outcome:
    done = _finished_in_time(attempt, said)
    event = AttemptEnded(
        attempt=attempt.id,
        state=AttemptState.SUCCEEDED if done else said.state,
        reason=Reason.COMPLETED if done else Reason(said.reason),
        detail=said.detail[:_DETAIL_MAX_CHARS],
        exit_code=said.exit_code,
        signal=said.signal,
        started_ms=said.started_ms,
        ended_ms=_end_ms(attempt, said, now_ms),
    )
    return _with_consequences(state, attempt, event, now_ms, settings)


def _finished_in_time(attempt: Attempt, said: AttemptReport) -> bool:
    """It was told to make way and ended with 0 within its grace: its work is done, and nothing is to be repeated."""
    return said.state is AttemptState.STOPPED and said.reason == Reason.PREEMPTED and said.exit_code == 0


def _end_ms(attempt: Attempt, said: AttemptReport, now_ms: int) -> int | None:
    """The agent's word on when it ended, if it can be: nobody pays for the time in which nobody could report."""
    if said.ended_ms is None or not attempt.allocated_ms <= said.ended_ms <= now_ms:
        return None
    return said.ended_ms


def _with_consequences(
    state: ClusterState, attempt: Attempt, event: AttemptEnded, now_ms: int, settings: CoreSettings
) -> Outcome:
    job = state.jobs[attempt.job_key]
    return Outcome(events=(event, *consequences(job, event, now_ms, settings)), names=(job.key,))


def rebooted(
    state: ClusterState, command: ReportRebooted, call: Call, now_ms: int, settings: CoreSettings
) -> Outcome | Rejection:
    """The attempt was running when its node went down, and its end was not recorded."""
    detail = f"node {command.node} was rebooted while the task ran there"
    step = EndAttempt(command.attempt, AttemptState.FAILED, Reason.NODE_REBOOTED, detail)
    return end(state, step, call, now_ms, settings)


def end(
    state: ClusterState, command: EndAttempt, call: Call, now_ms: int, settings: CoreSettings
) -> Outcome | Rejection:
    """End a live attempt on the scheduler's own knowledge; one that has ended stays as it is."""
    attempt = state.attempt(command.attempt)
    if attempt is None or not attempt.is_live:
        return Outcome()
    event = AttemptEnded(attempt=attempt.id, state=command.state, reason=command.reason, detail=command.detail)
    return _with_consequences(state, attempt, event, now_ms, settings)
