"""What is particular to jobs of several tasks: where they meet, which rank each has, and which of them are missing.

Pure. A gang's ranks are the places of its tasks, in task order, among those that were placed by the time of a launch: a
task that was added later counts all that were there before it, one that was replaced gets its old rank again. Nothing
here changes the state; the pass asks `missing_tasks` and `gang_port` before it places, and orders ask `place_of`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

from gpushare.core.commands import CoreSettings
from gpushare.core.kinds import AttemptState, JobState, OnTaskFailure
from gpushare.core.lifecycle import INFRA_REASONS, own_failures
from gpushare.core.model import Attempt, Job, Node
from gpushare.core.state import ClusterState

# Variables of a gang's tasks. What was found in the submitter's environment gives way to them.
RANK_ENV = frozenset(
    {
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
    }
)


class GangPlace(NamedTuple):
    """One task's place in its gang: of `world_size` tasks on `nodes` nodes, of which `local_world_size` are on its own.
    Ranks count from 0; `master_addr` and `master_port` are rank 0's."""

    master_addr: str
    master_port: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    nodes: int


def peers_of(job: Job, attempt: Attempt) -> list[Attempt]:
    """The gang as it was when `attempt` was placed, itself included, by rank."""
    last = {a.task: a for a in job.attempts if job.base_round <= a.number <= attempt.number}
    return [last[task] for task in sorted(last)]


def place_of(state: ClusterState, job: Job, attempt: Attempt) -> GangPlace | None:
    """Where `attempt` stands in its gang; None for a job of one task, or one that was placed without a port."""
    if job.spec.tasks == 1 or not job.master_port:
        return None
    peers = peers_of(job, attempt)
    rank = next(rank for rank, peer in enumerate(peers) if peer.task == attempt.task)
    here = [peer.task for peer in peers if peer.slice.node == attempt.slice.node]
    nodes = list(dict.fromkeys(peer.slice.node for peer in peers))
    first = state.nodes[peers[0].slice.node]
    return GangPlace(
        master_addr=first.address or first.name,
        master_port=job.master_port,
        rank=rank,
        world_size=len(peers),
        local_rank=here.index(attempt.task),
        local_world_size=len(here),
        node_rank=nodes.index(attempt.slice.node),
        nodes=len(nodes),
    )


def gang_port(state: ClusterState, node: str, ports: range, taken: Container[int] = ()) -> int:
    """One of `ports` for a gang whose first task is placed on `node`: no other live gang meets at it, nor is it one of
    `taken`, which the same pass gave out. It moves on with the journal, so that a gang that starts again does not meet
    connections of its earlier life. 0 where every port is in use."""
    used = set(_ports_at(state, state.nodes[node]))
    turned = (ports[(state.seq + step) % len(ports)] for step in range(len(ports)))
    return next((port for port in turned if port not in used and port not in taken), 0)


def _ports_at(state: ClusterState, node: Node) -> Iterator[int]:
    """Where live gangs meet on this host. Nodes of one address are one host."""
    for other in state.nodes.values():
        if other is node or (other.address and other.address == node.address):
            for attempt_id in other.attempts:
                job = state.jobs[state.attempts[attempt_id].job_key]
                if job.master_port:
                    yield job.master_port


class Missing(NamedTuple):
    """`tasks` may be placed now, by number; `wake_ms` is when more of them may, None when none will."""

    tasks: tuple[int, ...]
    wake_ms: int | None


NONE_MISSING = Missing((), None)


def missing_tasks(job: Job, now_ms: int, settings: CoreSettings) -> Missing:
    """The tasks by which a running gang may grow: those that were never placed, until the first has succeeded (what
    comes then would wait for peers that are gone); and where it goes on without a task that ended badly, that task:
    after a loss as often as the cluster's setting says, after its own failure as often as the job has retries, and
    after the same pauses as a whole job."""
    if job.state not in (JobState.STARTING, JobState.RUNNING) or any(a.desired_stop for a in job.live()):
        return NONE_MISSING
    last = {a.task: a for a in job.current()}
    again = _restarts(job, settings)
    new_ms = None if any(a.state is AttemptState.SUCCEEDED for a in last.values()) else 0
    tasks, later = [], []
    for task in range(job.spec.tasks):
        known = last.get(task)
        ready_ms = new_ms if known is None else again.get(known.id)
        if ready_ms is None:
            continue
        if ready_ms <= now_ms:
            tasks.append(task)
        else:
            later.append(ready_ms)
    return Missing(tuple(tasks), min(later, default=None))


def _restarts(job: Job, settings: CoreSettings) -> dict[str, int]:
    """When the task of each of these ended attempts may be placed again."""
    if job.spec.on_task_failure is OnTaskFailure.STOP:
        return {}
    failed = own_failures(job)[: job.spec.max_retries]
    again = {a.id: (a.ended_ms or 0) + settings.retry_backoff_ms for a in failed}
    lost = [a for a in job.attempts if _is_lost(a) and a.number >= job.base_round]
    lost.sort(key=lambda a: (a.ended_ms or 0, a.number, a.task))
    for place, attempt in enumerate(lost, job.infra_retries):
        if place < settings.infra_retries:
            wait_ms = min(settings.infra_backoff_ms << place, settings.infra_backoff_max_ms)
            again[attempt.id] = (attempt.ended_ms or 0) + wait_ms
    return again


def _is_lost(attempt: Attempt) -> bool:
    ended_badly = attempt.state in (AttemptState.FAILED, AttemptState.STOPPED)
    return ended_badly and attempt.reason in INFRA_REASONS
