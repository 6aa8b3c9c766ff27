"""What the command to repack changes: the moves of a plan made now, for the jobs that were named. Pure."""

from __future__ import annotations

from gpushare import names
from gpushare.core.commands import ApplyRepack, Call, CoreSettings, Outcome, Rejection
from gpushare.core.repack import moves_events, plan_repack
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason


def apply(
    state: ClusterState, command: ApplyRepack, call: Call, now_ms: int, settings: CoreSettings
) -> Outcome | Rejection:
    """All or none. Jobs may have begun, ended or stopped since the plan that the caller saw."""
    if not command.jobs:
        return Rejection(Reason.INVALID_FIELD, "jobs: name the jobs of the plan that are to move", field="jobs")
    moves = {move.job: move for move in plan_repack(state, now_ms, settings).moves}
    gone = [key for key in command.jobs if key not in moves]
    if gone:
        told = names.shown(gone[0])
        return Rejection(
            Reason.INVALID_FIELD,
            f"jobs: {told} is no move of the present plan; things have changed, so look at the plan again",
            field="jobs",
        )
    chosen = list(dict.fromkeys(command.jobs))
    events = moves_events([moves[key] for key in chosen], now_ms)
    return Outcome(events=tuple(events), names=tuple(chosen))
