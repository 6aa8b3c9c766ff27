"""Protobuf <-> the core's nouns, for nodes, cards and everything that passes between scheduler and agent.

Imports the generated messages, the core's nouns and `convert`. What an agent says goes to the core as it came: whether
it can be true is decided there. Only what has no counterpart in the core (an unknown enum number) is refused here, as
BAD_REPORT. Times that an agent reports are for display and are held to what can be stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from gpushare.core.commands import AttemptReport, Outcome, SyncNode
from gpushare.core.gangs import RANK_ENV, GangPlace
from gpushare.core.kinds import GpuState, NodeState, Power
from gpushare.core.model import Gpu, GpuCondition, GpuInventory, Node, Stranger, TierOffer
from gpushare.core.orders import (
    ForgetOrder,
    LimitOrder,
    Order,
    ResumeOrder,
    SealOrder,
    StartOrder,
    StopOrder,
    SuspendOrder,
)
from gpushare.core.repack import RepackPlan
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of
from gpushare.outputpath import expand_output_path
from gpushare.reasons import Reason
from gpushare.scheduler import convert
from gpushare.v1 import agent_pb2, node_pb2

NODE_STATES: Final = {state: f"NODE_STATE_{state.value}" for state in NodeState}
POWERS: Final = {power: f"POWER_{power.name}" for power in Power}
GPU_STATES: Final = {state: f"GPU_STATE_{state.value}" for state in GpuState}
_GPU_STATES_IN: Final = {node_pb2.GpuState.Value(name): state for state, name in GPU_STATES.items()}

_WALL_MS_MAX = 253_402_300_799_999
_DETAIL_MAX_CHARS = 2000
CLOCK_SKEW_SHOWN_MS = 60_000


# -- from agents


def sync_command(node: str, hello: agent_pb2.Hello, sync: agent_pb2.Sync) -> SyncNode:
    """An agent's whole truth. Raises BAD_REPORT for a number that means nothing."""
    return SyncNode(
        node=node,
        instance_id=hello.instance_id,
        boot_id=hello.boot_id,
        start_counter=hello.start_counter,
        agent_version=hello.agent_version,
        cpu_milli=sync.cpu_milli,
        memory_mib=sync.memory_mib,
        labels=dict(sync.labels),
        containment=sync.containment,
        driver_version=sync.driver_version,
        address=sync.address,
        shared_paths=tuple(sync.shared_paths),
        warnings=tuple(sync.warnings),
        gpus=tuple(_inventory(card) for card in sync.gpus),
        conditions=conditions(sync.conditions),
        attempts=tuple(attempt_report(each) for each in sync.attempts),
    )


def _inventory(card: agent_pb2.GpuInventory) -> GpuInventory:
    return GpuInventory(
        uuid=card.uuid,
        index=card.index,
        model=card.model,
        total_mib=card.total_mib,
        usable_mib=card.usable_mib,
        tiers=tuple(_tier(offer) for offer in card.tiers),
        simulated=card.simulated,
        domain=card.domain,
    )


def _tier(offer: node_pb2.TierOffer) -> TierOffer:
    level = convert.ENFORCEMENTS_IN.get(offer.enforcement)
    if level is None:
        raise _bad(f"{offer.enforcement} is no level of enforcement")
    return TierOffer(
        tier=offer.tier,
        enforcement=level,
        absent_because=offer.absent_because,
        can_suspend=offer.can_suspend,
    )


def conditions(told: Collection[agent_pb2.GpuCondition]) -> tuple[GpuCondition, ...]:
    return tuple(_condition(each) for each in told)


def _condition(told: agent_pb2.GpuCondition) -> GpuCondition:
    state = _GPU_STATES_IN.get(told.state)
    if state is None:
        raise _bad(f"{told.state} is no state of a card")
    return GpuCondition(
        uuid=told.uuid,
        state=state,
        reason=told.reason,
        detail=told.detail[:_DETAIL_MAX_CHARS],
        strangers=tuple(Stranger(pid=s.pid, user=s.user, memory_mib=s.memory_mib) for s in told.strangers),
    )


def attempt_report(told: agent_pb2.AttemptReport) -> AttemptReport:
    state = convert.ATTEMPT_STATES_IN.get(told.state)
    if state is None:
        raise _bad(f"{told.state} is no state of an attempt")
    return AttemptReport(
        attempt=told.attempt_id,
        state=state,
        reason=told.reason,
        detail=told.detail[:_DETAIL_MAX_CHARS],
        exit_code=told.exit_code if told.HasField("exit_code") else None,
        signal=told.signal if told.HasField("signal") else None,
        started_ms=_wall_ms(told.start_time) if told.HasField("start_time") else None,
        ended_ms=_wall_ms(told.end_time) if told.HasField("end_time") else None,
        containment=told.containment,
    )


def clock_skew_ms(hello: agent_pb2.Hello, now_ms: int) -> int:
    """How far the agent's wall clock is ahead of `now_ms`, where that is worth a word; else 0."""
    skew_ms = _wall_ms(hello.wall_time) - now_ms if hello.HasField("wall_time") else 0
    return skew_ms if abs(skew_ms) > CLOCK_SKEW_SHOWN_MS else 0


def _wall_ms(stamp: Timestamp) -> int:
    return max(0, min(convert.stamp_ms(stamp), _WALL_MS_MAX))


def _bad(detail: str) -> GpushareError:
    return error_of(Reason.BAD_REPORT, f"The agent's report cannot be read: {detail}.")


# -- to agents


def order_message(order: Order, term: int) -> agent_pb2.SchedulerMessage:
    if isinstance(order, StartOrder):
        return agent_pb2.SchedulerMessage(start_attempt=_start(order, term))
    if isinstance(order, StopOrder):
        return agent_pb2.SchedulerMessage(
            stop_attempt=agent_pb2.StopAttempt(
                attempt_id=order.attempt_id,
                term=term,
                reason=order.reason.value,
                grace_ms=order.grace_ms,
                detail=order.detail,
            )
        )
    if isinstance(order, SuspendOrder):
        suspend = agent_pb2.SuspendAttempt(attempt_id=order.attempt_id, term=term)
        return agent_pb2.SchedulerMessage(suspend_attempt=suspend)
    if isinstance(order, ResumeOrder):
        return agent_pb2.SchedulerMessage(resume_attempt=_resume(order, term))
    if isinstance(order, LimitOrder):
        limit = agent_pb2.SetRunLimit(attempt_id=order.attempt_id, term=term, max_run_ms=order.max_run_ms)
        return agent_pb2.SchedulerMessage(set_run_limit=limit)
    if isinstance(order, SealOrder):
        return agent_pb2.SchedulerMessage(seal_attempt=agent_pb2.SealAttempt(attempt_id=order.attempt_id, term=term))
    assert isinstance(order, ForgetOrder)
    return agent_pb2.SchedulerMessage(forget_attempt=agent_pb2.ForgetAttempt(attempt_id=order.attempt_id, term=term))


def _resume(order: ResumeOrder, term: int) -> agent_pb2.ResumeAttempt:
    held = order.slice
    return agent_pb2.ResumeAttempt(
        attempt_id=order.attempt_id,
        term=term,
        gpu_uuids=held.gpu_uuids,
        whole=held.whole,
        gpu_milli=held.gpu_milli,
        gpu_memory_mib=held.gpu_memory_mib,
        capacity_milli=order.capacity_milli,
    )


def _gang(place: GangPlace | None) -> agent_pb2.Gang | None:
    return None if place is None else agent_pb2.Gang(**place._asdict())


def _start(order: StartOrder, term: int) -> agent_pb2.StartAttempt:
    attempt, job, spec, held = order.attempt, order.job, order.job.spec, order.attempt.slice
    return agent_pb2.StartAttempt(
        attempt_id=attempt.id,
        term=term,
        job_id=job.id,
        task_index=attempt.task,
        task_count=order.task_count,
        array_index=job.array_index,
        number=attempt.number,
        unix_user=spec.unix_user,
        argv=spec.argv,
        script=spec.script,
        env=_env(order),
        working_directory=spec.working_directory,
        pty=spec.pty,
        gpu_uuids=held.gpu_uuids,
        whole=held.whole,
        gpu_milli=held.gpu_milli,
        gpu_memory_mib=held.gpu_memory_mib,
        cpu_milli=held.cpu_milli,
        memory_mib=held.memory_mib,
        max_run_ms=spec.max_run_ms,
        grace_ms=spec.grace_ms,
        on_disconnect=convert.ON_DISCONNECT[spec.on_disconnect],
        visible_devices=convert.VISIBLE_DEVICES[spec.visible_devices],
        tier=held.tier,
        gang=_gang(order.gang),
        capacity_milli=order.capacity_milli,
        output_path=_output_path(spec.output_path, order),
        error_path=_output_path(spec.error_path, order),
        early_signal=None if spec.early_signal is None else convert.early_signal(spec.early_signal),
        stdin=spec.stdin,
        window=convert.window(spec),
    )


def _output_path(pattern: str, order: StartOrder) -> str:
    job = order.job
    return expand_output_path(
        pattern, job_id=job.id, task=order.attempt.task, user=job.created_by.user, name=job.spec.name
    )


def _env(order: StartOrder) -> dict[str, str]:
    """What was said explicitly wins over everything; what was found in the submitter's environment tells no task of a
    gang its rank."""
    spec = order.job.spec
    found = spec.captured_env
    if order.gang is not None:
        found = {name: value for name, value in found.items() if name not in RANK_ENV}
    return {**found, **spec.env}


# -- to people


def node(
    found: Node,
    *,
    last_seen_ms: int,
    clock_skew_ms: int,
    samples: Mapping[str, node_pb2.GpuSample],
    visible_attempts: Collection[str],
    full: bool,
    names_strangers: bool,
) -> node_pb2.Node:
    """A node and its cards. Without `full` what is wrong with a node is told by its reason alone, without
    `names_strangers` whose processes sit on a card is left out. `visible_attempts` are those of its live attempts that
    the reader may see."""
    return node_pb2.Node(
        name=convert.node_name(found.name),
        state=NODE_STATES[found.state],
        cordoned=found.cordoned,
        reason=found.reason or "",
        detail="; ".join(filter(None, (found.detail, found.power_detail))) if full else "",
        drained=found.drain and not found.attempts,
        cpu_milli=found.cpu_milli,
        memory_mib=found.memory_mib,
        allocated_cpu_milli=found.used_cpu_milli,
        allocated_memory_mib=found.used_memory_mib,
        labels=found.labels,
        gpus=[
            _gpu(card, samples.get(card.uuid), visible_attempts, names_strangers)
            for card in sorted(found.gpus.values(), key=lambda each: (each.inventory.index, each.uuid))
        ],
        containment=found.containment,
        agent_version=found.agent_version,
        driver_version=found.driver_version,
        last_seen_time=convert.timestamp(last_seen_ms or None),
        ready=found.ready,
        clock_skew_ms=clock_skew_ms,
        compute_overcommit_milli=found.compute_overcommit_milli,
        power=POWERS[found.power],
        address=found.address,
        shared_paths=found.shared_paths,
        idle_since_time=convert.timestamp(found.idle_since_ms or None),
        task_count=len(found.attempts),
        warnings=found.warnings if full else (),
        trust_logins=found.trust_logins,
    )


def _gpu(
    card: Gpu, sample: node_pb2.GpuSample | None, visible_attempts: Collection[str], names_strangers: bool
) -> node_pb2.Gpu:
    inventory, condition = card.inventory, card.condition
    lost = not card.present
    return node_pb2.Gpu(
        uuid=inventory.uuid,
        index=inventory.index,
        model=inventory.model,
        total_mib=inventory.total_mib,
        usable_mib=inventory.usable_mib,
        state=GPU_STATES[GpuState.LOST if lost else condition.state],
        reason=Reason.GPU_LOST if lost else condition.reason,
        detail="the agent no longer finds this card" if lost else _shown_detail(condition, names_strangers),
        allocated_milli=card.used_milli,
        allocated_mib=card.used_mib,
        tiers=[
            node_pb2.TierOffer(
                tier=offer.tier,
                enforcement=convert.ENFORCEMENTS[offer.enforcement],
                absent_because=offer.absent_because,
                can_suspend=offer.can_suspend,
            )
            for offer in inventory.tiers
        ],
        strangers=[
            node_pb2.Stranger(
                pid=s.pid if names_strangers else 0, user=s.user if names_strangers else "", memory_mib=s.memory_mib
            )
            for s in condition.strangers
        ],
        sample=sample,
        simulated=inventory.simulated,
        attempt_ids=[each for each in card.holds if each in visible_attempts],
        capacity_milli=card.capacity_milli,
        domain=inventory.domain,
    )


def repack_plan(found: RepackPlan) -> node_pb2.RepackPlan:
    return node_pb2.RepackPlan(
        moves=[
            node_pb2.RepackMove(
                job=convert.job_name(move.job),
                node=move.node,
                from_gpu_uuids=[move.from_uuid],
                to_gpu_uuids=[move.to_uuid],
                gpu_memory_mib=move.gpu_memory_mib,
            )
            for move in found.moves
        ],
        opened=[node_pb2.RepackOpened(node=name, gpus=cards) for name, cards in found.opened],
        largest_share_before_milli=found.largest_share_before_milli,
        largest_share_after_milli=found.largest_share_after_milli,
        fragmentation_before_milli=found.fragmentation_before_milli,
        fragmentation_after_milli=found.fragmentation_after_milli,
        gpu_memory_mib=found.gpu_memory_mib,
    )


def moves_under_way(state: ClusterState, outcome: Outcome) -> node_pb2.RepackPlan:
    """The moves of these jobs that have not ended: from where each is, to where room is held for it."""
    made = node_pb2.RepackPlan()
    for key in outcome.names:
        hold, job = state.holds.get(key), state.jobs.get(key)
        if hold is None or job is None:
            continue
        for attempt, piece in zip(job.current(), hold.slices, strict=False):
            made.moves.add(
                job=convert.job_name(key),
                node=piece.node,
                from_gpu_uuids=attempt.slice.gpu_uuids,
                to_gpu_uuids=piece.gpu_uuids,
                gpu_memory_mib=sum(attempt.slice.held_mib),
            )
    return made


def _shown_detail(condition: GpuCondition, names_strangers: bool) -> str:
    """An agent's sentence about a card with strangers on it may name them."""
    return condition.detail if names_strangers or not condition.strangers else ""
