"""The scheduler's orders as its messages carry them -> the agent core's.

Imports the generated messages, the cluster's nouns and the agent core's. What a message leaves out is what an agent of
this version took for granted before it could be said.
"""

from __future__ import annotations

from gpushare.core.kinds import OnDisconnect, SignalTarget, VisibleDevices
from gpushare.core.model import WHOLE_CARD_MILLI, EarlySignal
from gpushare.v1 import agent_pb2, job_pb2
from gpushare_agent.core import Gang, ResumeOrder, StartOrder

_VISIBLE = {job_pb2.VISIBLE_DEVICES_INDEX: VisibleDevices.INDEX}
_ON_DISCONNECT = {job_pb2.ON_DISCONNECT_STOP_AND_REQUEUE: OnDisconnect.STOP_AND_REQUEUE}


def start_order(message: agent_pb2.StartAttempt) -> StartOrder:
    return StartOrder(
        attempt_id=message.attempt_id,
        term=message.term,
        job_id=message.job_id,
        task_index=message.task_index,
        task_count=message.task_count,
        array_index=message.array_index if message.HasField("array_index") else None,
        number=message.number,
        unix_user=message.unix_user,
        argv=tuple(message.argv),
        script=message.script,
        env=dict(message.env),
        working_directory=message.working_directory,
        pty=message.pty,
        stdin=message.stdin,
        window_rows=message.window.rows,
        window_columns=message.window.columns,
        gpu_uuids=tuple(message.gpu_uuids),
        whole=message.whole,
        gpu_milli=message.gpu_milli,
        gpu_memory_mib=message.gpu_memory_mib,
        cpu_milli=message.cpu_milli,
        memory_mib=message.memory_mib,
        max_run_ms=message.max_run_ms,
        grace_ms=message.grace_ms,
        on_disconnect=_ON_DISCONNECT.get(message.on_disconnect, OnDisconnect.KEEP),
        tier=message.tier,
        capacity_milli=message.capacity_milli or WHOLE_CARD_MILLI,
        gang=_gang(message.gang) if message.HasField("gang") else None,
        visible_devices=_VISIBLE.get(message.visible_devices, VisibleDevices.UUID),
        early_signal=_early_signal(message.early_signal) if message.HasField("early_signal") else None,
        output_path=message.output_path,
        error_path=message.error_path,
    )


def _gang(message: agent_pb2.Gang) -> Gang:
    return Gang(**{field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields})


def resume_order(message: agent_pb2.ResumeAttempt) -> ResumeOrder:
    return ResumeOrder(
        attempt_id=message.attempt_id,
        term=message.term,
        gpu_uuids=tuple(message.gpu_uuids),
        whole=message.whole,
        gpu_milli=message.gpu_milli,
        gpu_memory_mib=message.gpu_memory_mib,
        capacity_milli=message.capacity_milli or WHOLE_CARD_MILLI,
    )


def _early_signal(message: job_pb2.EarlySignal) -> EarlySignal:
    target = SignalTarget.ALL if message.target == job_pb2.SIGNAL_TARGET_ALL else SignalTarget.LEADER
    return EarlySignal(message.signal, message.before.ToMilliseconds(), target)
