"""Protobuf <-> the core's nouns, for jobs and tokens; names and times for all.

Imports the generated messages, the core's nouns and the errors. Shape only: what a value may be is the core's to say,
so numbers, names and texts pass through as they came, and only what has no counterpart in the core (an unknown enum
number, a Duration that is none, a resource name that cannot be parsed) is refused here. What a reader may not see is
left out here and nowhere else (`auth.JobView`); what other tenants see is chosen in `convert_foreign`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gpushare import names
from gpushare.core import ledger
from gpushare.core.commands import RawJob, RawResources
from gpushare.core.explain import Wait
from gpushare.core.kinds import (
    AttemptState,
    DependencyKind,
    Enforcement,
    JobState,
    OnDisconnect,
    OnTaskFailure,
    PreemptionMode,
    Qos,
    Role,
    SignalTarget,
    Topology,
    VisibleDevices,
)
from gpushare.core.model import Attempt, Dependency, EarlySignal, Job, JobSpec, Principal, TaskRequest, Token
from gpushare.core.sentences import Sees, own_tenant
from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler.auth import JobView
from gpushare.scheduler.convert_foreign import foreign_job
from gpushare.v1 import job_pb2, tenant_pb2

ALL_TENANTS: Final = "-"
#: A command longer than this is left out of listings.
BASIC_ARGV_MAX_CHARS: Final = 16_384

_JOB_ID = re.compile(r"[1-9][0-9]{0,18}(_(0|[1-9][0-9]{0,9}))?")
_TOKEN_ID = re.compile(r"[a-z0-9]{1,40}")
_NANOS_PER_MS = 1_000_000
_NANOS_PER_S = 1_000_000_000
_Noun = TypeVar("_Noun", bound=Enum)
# Year 1 to 9999 in ms: what Timestamp holds.
_TIMESTAMP_MS_MIN, _TIMESTAMP_MS_MAX = -62_135_596_800_000, 253_402_300_799_999

# Enum values go out under their names and come in as numbers.
JOB_STATES: Final = {state: f"JOB_STATE_{state.value}" for state in JobState}
JOB_STATES_IN: Final = {job_pb2.JobState.Value(name): state for state, name in JOB_STATES.items()}
ATTEMPT_STATES: Final = {state: f"ATTEMPT_STATE_{state.value}" for state in AttemptState}
ATTEMPT_STATES_IN: Final = {job_pb2.AttemptState.Value(name): state for state, name in ATTEMPT_STATES.items()}
ON_DISCONNECT: Final = {choice: f"ON_DISCONNECT_{choice.value.upper()}" for choice in OnDisconnect}
_ON_DISCONNECT_IN: Final = {job_pb2.OnDisconnect.Value(name): choice for choice, name in ON_DISCONNECT.items()}
QOS: Final = {choice: f"QOS_{choice.name}" for choice in Qos}
_QOS_IN: Final = {job_pb2.Qos.Value(name): choice for choice, name in QOS.items()}
PREEMPTIONS: Final = {choice: f"PREEMPTION_{choice.name}" for choice in PreemptionMode}
_PREEMPTIONS_IN: Final = {job_pb2.Preemption.Value(name): choice for choice, name in PREEMPTIONS.items()}
ON_TASK_FAILURE: Final = {choice: f"ON_TASK_FAILURE_{choice.name}" for choice in OnTaskFailure}
_ON_TASK_FAILURE_IN: Final = {job_pb2.OnTaskFailure.Value(name): choice for choice, name in ON_TASK_FAILURE.items()}
TOPOLOGIES: Final = {choice: f"TOPOLOGY_{choice.name}" for choice in Topology}
_TOPOLOGIES_IN: Final = {job_pb2.Topology.Value(name): choice for choice, name in TOPOLOGIES.items()}
VISIBLE_DEVICES: Final = {choice: f"VISIBLE_DEVICES_{choice.name}" for choice in VisibleDevices}
_VISIBLE_DEVICES_IN: Final = {job_pb2.VisibleDevices.Value(name): choice for choice, name in VISIBLE_DEVICES.items()}
SIGNAL_TARGETS: Final = {target: f"SIGNAL_TARGET_{target.name}" for target in SignalTarget}
_SIGNAL_TARGETS_IN: Final = {job_pb2.SignalTarget.Value(name): target for target, name in SIGNAL_TARGETS.items()}
DEPENDENCY_KINDS: Final = {kind: f"DEPENDENCY_KIND_{kind.name}" for kind in DependencyKind}
_DEPENDENCY_KINDS_IN: Final = {job_pb2.DependencyKind.Value(name): kind for kind, name in DEPENDENCY_KINDS.items()}
ENFORCEMENTS: Final = {level: f"ENFORCEMENT_{level.name if level else 'UNSPECIFIED'}" for level in Enforcement}
ENFORCEMENTS_IN: Final = {job_pb2.Enforcement.Value(name): level for level, name in ENFORCEMENTS.items()}
# The system's own role has no token, hence no number.
ROLES: Final[dict[Role, str]] = {role: f"ROLE_{role.name}" for role in Role if role is not Role.SYSTEM}
_ROLES_IN: Final = {tenant_pb2.Role.Value(name): role for role, name in ROLES.items()}

# Ends whose sentence quotes the command or a path of the job.
_DETAIL_NAMES_COMMAND: Final = frozenset({Reason.EXEC, Reason.WORKDIR, Reason.LAUNCH_DENIED, Reason.NOT_STARTED})


# -- resource names


def tenant_name(tenant: str) -> str:
    return f"tenants/{tenant}"


def job_name(key: str) -> str:
    """ "vision/42_3" -> "tenants/vision/jobs/42_3"."""
    tenant, _, job_id = key.partition("/")
    return f"tenants/{tenant}/jobs/{job_id}"


def node_name(node: str) -> str:
    return f"nodes/{node}"


def reservation_name(reservation: str) -> str:
    return f"reservations/{reservation}"


def token_name(token_id: str) -> str:
    return f"tokens/{token_id}"


def not_found(name: str) -> GpushareError:
    """The one answer for what is absent and for what the caller may not see."""
    return error_of(Reason.NOT_FOUND, f"There is no {names.shown(name, 200)} that the caller may see.")


def parse_job_name(name: str) -> tuple[str, str]:
    """(tenant, id) of "tenants/{tenant}/jobs/{id}". Raises NOT_FOUND for anything else: no such job can exist."""
    parts = name.split("/")
    if len(parts) == 4 and parts[0] == "tenants" and parts[2] == "jobs":
        _, tenant, _, job_id = parts
        if is_name(tenant) and _JOB_ID.fullmatch(job_id):
            return tenant, job_id
    raise not_found(name)


def is_job_id(text: str) -> bool:
    return _JOB_ID.fullmatch(text) is not None


def parse_tenant_name(name: str) -> str:
    """The tenant of "tenants/{tenant}". Raises NOT_FOUND for anything else."""
    return _parse_two(name, "tenants", is_name)


def parse_node_name(name: str) -> str:
    """The node of "nodes/{node}". Raises NOT_FOUND for anything else."""
    return _parse_two(name, "nodes", is_name)


def parse_reservation_name(name: str) -> str:
    """The name of "reservations/{name}". Raises NOT_FOUND for anything else."""
    return _parse_two(name, "reservations", is_name)


def parse_token_name(name: str) -> str:
    """The id of "tokens/{id}". Raises NOT_FOUND for anything else."""
    return _parse_two(name, "tokens", lambda text: _TOKEN_ID.fullmatch(text) is not None)


def parse_parent(parent: str, *, wildcard: bool = False) -> str:
    """The tenant of a parent "tenants/{tenant}"; `wildcard` allows "tenants/-". Raises INVALID_FIELD."""
    prefix, _, tenant = parent.partition("/")
    if prefix == "tenants" and (is_name(tenant) or (wildcard and tenant == ALL_TENANTS)):
        return tenant
    accepted = 'tenants/{tenant}, or "tenants/-" for all that you may see' if wildcard else "tenants/{tenant}"
    raise invalid_field("parent", f"{names.shown(parent)} is not a parent; accepted: {accepted}")


def is_name(text: str) -> bool:
    """True for what a tenant, user, node or job may be called."""
    try:
        names.check_name(text)
    except names.TextError:
        return False
    return True


def _parse_two(name: str, collection: str, is_id: Callable[[str], bool]) -> str:
    prefix, _, rest = name.partition("/")
    if prefix == collection and is_id(rest):
        return rest
    raise not_found(name)


# -- times


def timestamp(ms: int | None) -> Timestamp | None:
    """Wall time in ms since 1970, or None where there is none; held to what a Timestamp can say."""
    if ms is None:
        return None
    stamp = Timestamp()
    stamp.FromMilliseconds(max(_TIMESTAMP_MS_MIN, min(ms, _TIMESTAMP_MS_MAX)))
    return stamp


def stamp_ms(stamp: Timestamp) -> int:
    """Wall time in ms, whatever the fields hold."""
    return stamp.seconds * 1000 + stamp.nanos // _NANOS_PER_MS


def duration_ms(duration: Duration, field: str) -> int:
    """ms, of any size and sign. Raises INVALID_FIELD for parts of a ms, and for fields that are no Duration."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(nanos) >= _NANOS_PER_S or (seconds > 0 and nanos < 0) or (seconds < 0 and nanos > 0):
        raise invalid_field(field, f"seconds {seconds} and nanos {nanos} make no duration")
    if nanos % _NANOS_PER_MS:
        raise invalid_field(field, "has a part of a millisecond; accepted: whole milliseconds")
    return seconds * 1000 + nanos // _NANOS_PER_MS


def duration(ms: int) -> Duration:
    made = Duration()
    made.FromMilliseconds(ms)
    return made


# -- jobs, in


def raw_job(spec: job_pb2.JobSpec) -> RawJob:
    """What was sent, unchecked. Raises INVALID_FIELD for an unknown enum number or a malformed duration."""
    # Only what is set, since that is little of what there is.
    sent: dict[str, Any] = {field.name: value for field, value in spec.ListFields()}
    window = sent.pop("window", None)
    made: dict[str, Any] = {_IN_JOB.get(name, name): _as_in_job(name, value) for name, value in sent.items()}
    if window is not None:
        made["window_rows"], made["window_columns"] = window.rows, window.columns
    return RawJob(**made)


# Durations, which have another name in the core.
_IN_JOB: Final = {
    "max_run_duration": "max_run_ms",
    "grace_duration": "grace_ms",
    "start_within": "start_within_ms",
}
_CHOICES_IN: Final[dict[str, Mapping[int, Enum]]] = {
    "on_disconnect": _ON_DISCONNECT_IN,
    "qos": _QOS_IN,
    "preemption": _PREEMPTIONS_IN,
    "on_task_failure": _ON_TASK_FAILURE_IN,
    "topology": _TOPOLOGIES_IN,
    "visible_devices": _VISIBLE_DEVICES_IN,
}


def _as_in_job(name: str, value: Any) -> Any:
    """A field of a JobSpec that is set, in the core's terms."""
    if name in _IN_JOB:
        return duration_ms(value, name)
    match name:
        case "argv" | "array_indexes" | "requeue_exit_codes":
            return tuple(value)
        case "env" | "captured_env" | "labels":
            return dict(value)
        case "resources":
            return raw_resources(value)
        case "after":
            return tuple(_dependency_in(each) for each in value)
        case "early_signal":
            return _early_signal_in(value)
        case _:
            choices = _CHOICES_IN.get(name)
            return value if choices is None else _choice_in(value, name, choices)


def _early_signal_in(asked: job_pb2.EarlySignal) -> EarlySignal:
    target = _choice_in(asked.target, "early_signal.target", _SIGNAL_TARGETS_IN)
    before_ms = duration_ms(asked.before, "early_signal.before")
    return EarlySignal(asked.signal, before_ms, target or SignalTarget.LEADER)


def _dependency_in(asked: job_pb2.Dependency) -> Dependency:
    """Raises NOT_FOUND for what names no job, as for a job that is not there."""
    kind = _choice_in(asked.kind, "after.kind", _DEPENDENCY_KINDS_IN)
    tenant, job_id = parse_job_name(asked.job)
    return Dependency(f"{tenant}/{job_id}", kind or DependencyKind.AFTEROK)


def raw_resources(asked: job_pb2.Resources) -> RawResources:
    sent: dict[str, Any] = {field.name: value for field, value in asked.ListFields()}
    if "node_labels" in sent:
        sent["node_labels"] = dict(sent["node_labels"])
    return RawResources(**sent)


def job_state_in(number: int, field: str = "state") -> JobState | None:
    """None for unspecified. Raises INVALID_FIELD for an unknown number."""
    if number == job_pb2.JOB_STATE_UNSPECIFIED:
        return None
    if number not in JOB_STATES_IN:
        raise invalid_field(field, f"{number} is no state of a job")
    return JOB_STATES_IN[number]


def role_in(number: int, field: str = "role") -> Role:
    if number not in _ROLES_IN:
        raise invalid_field(field, f"{number} is no role; accepted: admin, operator, tenant-admin, user, viewer")
    return _ROLES_IN[number]


def _choice_in(number: int, field: str, choices: Mapping[int, _Noun]) -> _Noun | None:
    """None for unspecified, which is 0 in every enum. Raises INVALID_FIELD for an unknown number."""
    if number == 0:
        return None
    if number not in choices:
        accepted = ", ".join(str(choice.value) for choice in choices.values())
        raise invalid_field(field, f"{number} is no such choice; accepted: {accepted}")
    return choices[number]


# -- jobs, out


def job(found: Job, view: JobView, now_ms: int, wait: Wait | None = None, sees: Sees | None = None) -> job_pb2.Job:
    """A job as its reader may see it. `wait` says why it is queued; `sees`, whose jobs the reader may know of: without
    it, those of the same tenant."""
    sees = sees or own_tenant(found)
    hidden = view not in (JobView.FULL, JobView.BASIC)
    claimed_by = next((a.claimant for a in reversed(found.attempts) if a.claimant), found.preempted_for)
    made = job_pb2.Job(
        name=job_name(found.key),
        tenant=found.tenant,
        id=found.id,
        spec=job_spec(found.spec, view),
        state=JOB_STATES[found.state],
        reason=found.reason or "",
        detail=_shown_detail(found.reason, found.detail, hidden, _whom(found.tenant, claimed_by, sees), sees),
        created_by=principal(found.created_by),
        create_time=timestamp(found.created_ms),
        start_time=timestamp(found.started_ms),
        end_time=timestamp(found.ended_ms),
        tasks=[task_attempt(a, hidden, sees) for a in found.current()],
        infra_retries=found.infra_retries,
        retries=found.retries,
        preemptions=found.preemptions,
        preempted_for=claimant(found.preempted_for, sees),
        expected_end_time=timestamp(_expected_end_ms(found)),
        requeues=found.requeues,
        submitted_run_duration=None if found.submitted_run_ms is None else duration(found.submitted_run_ms),
        array_id=found.array_id,
        redacted=hidden,
        charge_milli_seconds=charge_milli_ms(found.attempts, now_ms) // 1000,
    )
    if wait is not None:
        made.wait.reason, made.wait.detail = wait.reason.value, wait.detail
        if wait.expected_start_ms is not None:
            made.expected_start_time.FromMilliseconds(wait.expected_start_ms)
    if found.cancelled_by is not None:
        made.cancelled_by.CopyFrom(principal(found.cancelled_by))
    if found.exit_code is not None:
        made.exit_code = found.exit_code
    if found.signal is not None:
        made.signal = found.signal
    if found.array_index is not None:
        made.array_index = found.array_index
    return foreign_job(made) if view is JobView.FOREIGN else made


def job_spec(spec: JobSpec, view: JobView) -> job_pb2.JobSpec:
    hidden = view not in (JobView.FULL, JobView.BASIC)
    full = view is JobView.FULL
    made = job_pb2.JobSpec(
        display_name=spec.display_name,
        argv=spec.argv if full or (not hidden and _is_short(spec.argv)) else (),
        script=spec.script if full else b"",
        env=spec.env if full else {},
        captured_env=spec.captured_env if full else {},
        working_directory="" if hidden else spec.working_directory,
        resources=resources(spec.resources),
        tasks=spec.tasks,
        priority=spec.priority,
        max_retries=spec.max_retries,
        on_disconnect=ON_DISCONNECT[spec.on_disconnect],
        grace_duration=duration(spec.grace_ms),
        labels=spec.labels,
        pty=spec.pty,
        min_tasks=spec.min_tasks,
        qos=QOS[spec.qos],
        preemption=PREEMPTIONS[spec.preemption],
        on_task_failure=ON_TASK_FAILURE[spec.on_task_failure],
        topology=TOPOLOGIES[spec.topology],
        after=[job_pb2.Dependency(job=job_name(each.job), kind=DEPENDENCY_KINDS[each.kind]) for each in spec.after],
        array_max_running=spec.array_max_running,
        output_path="" if hidden else spec.output_path,
        error_path="" if hidden else spec.error_path,
        visible_devices=VISIBLE_DEVICES[spec.visible_devices],
        early_signal=None if spec.early_signal is None else early_signal(spec.early_signal),
        requeue_exit_codes=spec.requeue_exit_codes,
        stdin=spec.stdin,
        window=window(spec),
    )
    if spec.name:
        made.name = spec.name
    if spec.max_run_ms:
        made.max_run_duration.CopyFrom(duration(spec.max_run_ms))
    if spec.start_within_ms:
        made.start_within.CopyFrom(duration(spec.start_within_ms))
    return made


def early_signal(asked: EarlySignal) -> job_pb2.EarlySignal:
    before = duration(asked.before_ms)
    return job_pb2.EarlySignal(signal=asked.signal, before=before, target=SIGNAL_TARGETS[asked.target])


def window(spec: JobSpec) -> job_pb2.WindowSize | None:
    """None where none was given."""
    if not (spec.window_rows or spec.window_columns):
        return None
    return job_pb2.WindowSize(rows=spec.window_rows, columns=spec.window_columns)


def claimant(job_key: str, sees: Sees) -> str:
    """For whom somebody makes way, or room is kept, where the reader may know of it; else ""."""
    tenant, slash, _ = job_key.partition("/")
    return job_name(job_key) if slash and sees(tenant) else ""


def _whom(tenant: str, job_key: str, sees: Sees) -> str:
    """For whom a job of `tenant` makes way, in words; "" for one of the same tenant, and for nobody."""
    other, slash, _ = job_key.partition("/")
    if not slash or other == tenant:
        return ""
    return f"job {job_key}" if sees(other) else "a job of another tenant"


def _expected_end_ms(found: Job) -> int | None:
    """When the time limit ends its last task; None where it does not run, or has no limit."""
    running = [a for a in found.live() if a.suspended_ms is None]
    if not running or not found.spec.max_run_ms:
        return None
    return max(a.started_ms or a.allocated_ms for a in running) + found.spec.max_run_ms


def _is_short(argv: tuple[str, ...]) -> bool:
    return sum(len(arg) for arg in argv) <= BASIC_ARGV_MAX_CHARS


def resources(request: TaskRequest) -> job_pb2.Resources:
    made = job_pb2.Resources(
        gpu_milli=request.gpu_milli,
        gpu_memory_mib=request.gpu_memory_mib,
        cpu_milli=request.cpu_milli,
        memory_mib=request.memory_mib,
        gpu_model=request.gpu_model,
        min_gpu_memory_mib=request.min_gpu_memory_mib or None,
        node_labels=dict(request.node_labels),
        min_enforcement=ENFORCEMENTS[request.min_enforcement],
    )
    if not request.is_share:
        made.gpus = request.gpus
    return made


def task_attempt(attempt: Attempt, hidden: bool, sees: Sees) -> job_pb2.TaskAttempt:
    held = attempt.slice
    reason = attempt.reason or attempt.stop_reason
    whom = _whom(attempt.tenant, attempt.claimant, sees)
    return job_pb2.TaskAttempt(
        attempt_id=attempt.id,
        task_index=attempt.task,
        number=attempt.number,
        state=ATTEMPT_STATES[attempt.state],
        reason=reason or "",
        detail=_shown_detail(reason, attempt.detail or attempt.stop_detail, hidden, whom, sees),
        node=held.node,
        gpu_uuids=held.gpu_uuids,
        gpu_milli=held.gpu_milli,
        gpu_memory_mib=held.gpu_memory_mib,
        cpu_milli=held.cpu_milli,
        memory_mib=held.memory_mib,
        charge_milli=held.charge_milli,
        tier=held.tier,
        enforcement=ENFORCEMENTS[held.enforcement],
        containment=attempt.containment,
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        allocate_time=timestamp(attempt.allocated_ms),
        start_time=timestamp(attempt.started_ms),
        end_time=timestamp(attempt.ended_ms),
        suspend_time=timestamp(attempt.suspended_ms),
        claimant=claimant(attempt.claimant, sees),
    )


def principal(who: Principal) -> job_pb2.Principal:
    return job_pb2.Principal(user=who.user, role=who.role.value, tenant=who.tenant)


def charge_milli_ms(attempts: Iterable[Attempt], now_ms: int) -> int:
    """Charge times ms in which cards were held so far, in thousandths of a card."""
    return sum(ledger.held_charge_milli_ms(a, now_ms) for a in attempts)


def _shown_detail(reason: Reason | None, detail: str, hidden: bool, whom: str, sees: Sees) -> str:
    """`whom`: for which job of another tenant it makes way."""
    if reason is Reason.PREEMPTED and whom:
        return f"makes way for {whom}"
    if reason is Reason.OCCUPIED and not sees(""):
        # It names other people's processes.
        return ""
    return "" if hidden and reason in _DETAIL_NAMES_COMMAND else detail


# -- tokens


def token(found: Token) -> tenant_pb2.Token:
    who = found.principal
    return tenant_pb2.Token(
        name=token_name(found.id),
        user=who.user,
        role=ROLES[who.role],
        tenant=who.tenant,
        unix_user=who.unix_user,
        node=who.node or found.login_node,
        create_time=timestamp(found.created_ms),
        expire_time=timestamp(found.expires_ms or None),
        revoke_time=timestamp(found.revoked_ms or None),
    )
