import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_STARTING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUSPENDED: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class AttemptState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTEMPT_STATE_UNSPECIFIED: _ClassVar[AttemptState]
    ATTEMPT_STATE_ALLOCATED: _ClassVar[AttemptState]
    ATTEMPT_STATE_LAUNCHING: _ClassVar[AttemptState]
    ATTEMPT_STATE_RUNNING: _ClassVar[AttemptState]
    ATTEMPT_STATE_SUSPENDED: _ClassVar[AttemptState]
    ATTEMPT_STATE_STOPPING: _ClassVar[AttemptState]
    ATTEMPT_STATE_UNKNOWN: _ClassVar[AttemptState]
    ATTEMPT_STATE_SUCCEEDED: _ClassVar[AttemptState]
    ATTEMPT_STATE_FAILED: _ClassVar[AttemptState]
    ATTEMPT_STATE_STOPPED: _ClassVar[AttemptState]

class Enforcement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENFORCEMENT_UNSPECIFIED: _ClassVar[Enforcement]
    ENFORCEMENT_SOFT: _ClassVar[Enforcement]
    ENFORCEMENT_SERVER: _ClassVar[Enforcement]
    ENFORCEMENT_HARD: _ClassVar[Enforcement]

class OnDisconnect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_DISCONNECT_UNSPECIFIED: _ClassVar[OnDisconnect]
    ON_DISCONNECT_KEEP: _ClassVar[OnDisconnect]
    ON_DISCONNECT_STOP_AND_REQUEUE: _ClassVar[OnDisconnect]

class Qos(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QOS_UNSPECIFIED: _ClassVar[Qos]
    QOS_GUARANTEED: _ClassVar[Qos]
    QOS_BURST: _ClassVar[Qos]

class Preemption(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREEMPTION_UNSPECIFIED: _ClassVar[Preemption]
    PREEMPTION_SUSPEND: _ClassVar[Preemption]
    PREEMPTION_REQUEUE: _ClassVar[Preemption]
    PREEMPTION_CANCEL: _ClassVar[Preemption]

class OnTaskFailure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_TASK_FAILURE_UNSPECIFIED: _ClassVar[OnTaskFailure]
    ON_TASK_FAILURE_STOP: _ClassVar[OnTaskFailure]
    ON_TASK_FAILURE_CONTINUE: _ClassVar[OnTaskFailure]

class Topology(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOPOLOGY_UNSPECIFIED: _ClassVar[Topology]
    TOPOLOGY_ANY: _ClassVar[Topology]
    TOPOLOGY_NODE: _ClassVar[Topology]
    TOPOLOGY_DOMAIN: _ClassVar[Topology]

class DependencyKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPENDENCY_KIND_UNSPECIFIED: _ClassVar[DependencyKind]
    DEPENDENCY_KIND_AFTER: _ClassVar[DependencyKind]
    DEPENDENCY_KIND_AFTERANY: _ClassVar[DependencyKind]
    DEPENDENCY_KIND_AFTEROK: _ClassVar[DependencyKind]

class VisibleDevices(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VISIBLE_DEVICES_UNSPECIFIED: _ClassVar[VisibleDevices]
    VISIBLE_DEVICES_UUID: _ClassVar[VisibleDevices]
    VISIBLE_DEVICES_INDEX: _ClassVar[VisibleDevices]

class SignalTarget(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGNAL_TARGET_UNSPECIFIED: _ClassVar[SignalTarget]
    SIGNAL_TARGET_LEADER: _ClassVar[SignalTarget]
    SIGNAL_TARGET_ALL: _ClassVar[SignalTarget]

class OutputStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_STREAM_UNSPECIFIED: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDOUT: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDERR: _ClassVar[OutputStream]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_STARTING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUSPENDED: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
ATTEMPT_STATE_UNSPECIFIED: AttemptState
ATTEMPT_STATE_ALLOCATED: AttemptState
ATTEMPT_STATE_LAUNCHING: AttemptState
ATTEMPT_STATE_RUNNING: AttemptState
ATTEMPT_STATE_SUSPENDED: AttemptState
ATTEMPT_STATE_STOPPING: AttemptState
ATTEMPT_STATE_UNKNOWN: AttemptState
ATTEMPT_STATE_SUCCEEDED: AttemptState
ATTEMPT_STATE_FAILED: AttemptState
ATTEMPT_STATE_STOPPED: AttemptState
ENFORCEMENT_UNSPECIFIED: Enforcement
ENFORCEMENT_SOFT: Enforcement
ENFORCEMENT_SERVER: Enforcement
ENFORCEMENT_HARD: Enforcement
ON_DISCONNECT_UNSPECIFIED: OnDisconnect
ON_DISCONNECT_KEEP: OnDisconnect
ON_DISCONNECT_STOP_AND_REQUEUE: OnDisconnect
QOS_UNSPECIFIED: Qos
QOS_GUARANTEED: Qos
QOS_BURST: Qos
PREEMPTION_UNSPECIFIED: Preemption
PREEMPTION_SUSPEND: Preemption
PREEMPTION_REQUEUE: Preemption
PREEMPTION_CANCEL: Preemption
ON_TASK_FAILURE_UNSPECIFIED: OnTaskFailure
ON_TASK_FAILURE_STOP: OnTaskFailure
ON_TASK_FAILURE_CONTINUE: OnTaskFailure
TOPOLOGY_UNSPECIFIED: Topology
TOPOLOGY_ANY: Topology
TOPOLOGY_NODE: Topology
TOPOLOGY_DOMAIN: Topology
DEPENDENCY_KIND_UNSPECIFIED: DependencyKind
DEPENDENCY_KIND_AFTER: DependencyKind
DEPENDENCY_KIND_AFTERANY: DependencyKind
DEPENDENCY_KIND_AFTEROK: DependencyKind
VISIBLE_DEVICES_UNSPECIFIED: VisibleDevices
VISIBLE_DEVICES_UUID: VisibleDevices
VISIBLE_DEVICES_INDEX: VisibleDevices
SIGNAL_TARGET_UNSPECIFIED: SignalTarget
SIGNAL_TARGET_LEADER: SignalTarget
SIGNAL_TARGET_ALL: SignalTarget
OUTPUT_STREAM_UNSPECIFIED: OutputStream
OUTPUT_STREAM_STDOUT: OutputStream
OUTPUT_STREAM_STDERR: OutputStream

class Resources(_message.Message):
    __slots__ = ("gpus", "gpu_milli", "gpu_memory_mib", "cpu_milli", "memory_mib", "gpu_model", "min_gpu_memory_mib", "node_labels", "min_enforcement")
    class NodeLabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GPUS_FIELD_NUMBER: _ClassVar[int]
    GPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    GPU_MODEL_FIELD_NUMBER: _ClassVar[int]
    MIN_GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    NODE_LABELS_FIELD_NUMBER: _ClassVar[int]
    MIN_ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    gpus: int
    gpu_milli: int
    gpu_memory_mib: int
    cpu_milli: int
    memory_mib: int
    gpu_model: str
    min_gpu_memory_mib: int
    node_labels: _containers.ScalarMap[str, str]
    min_enforcement: Enforcement
    def __init__(self, gpus: _Optional[int] = ..., gpu_milli: _Optional[int] = ..., gpu_memory_mib: _Optional[int] = ..., cpu_milli: _Optional[int] = ..., memory_mib: _Optional[int] = ..., gpu_model: _Optional[str] = ..., min_gpu_memory_mib: _Optional[int] = ..., node_labels: _Optional[_Mapping[str, str]] = ..., min_enforcement: _Optional[_Union[Enforcement, str]] = ...) -> None: ...

class Dependency(_message.Message):
    __slots__ = ("job", "kind")
    JOB_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    job: str
    kind: DependencyKind
    def __init__(self, job: _Optional[str] = ..., kind: _Optional[_Union[DependencyKind, str]] = ...) -> None: ...

class EarlySignal(_message.Message):
    __slots__ = ("signal", "before", "target")
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    signal: str
    before: _duration_pb2.Duration
    target: SignalTarget
    def __init__(self, signal: _Optional[str] = ..., before: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., target: _Optional[_Union[SignalTarget, str]] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("name", "display_name", "argv", "script", "env", "captured_env", "working_directory", "resources", "tasks", "array_indexes", "max_run_duration", "priority", "max_retries", "on_disconnect", "grace_duration", "labels", "pty", "min_tasks", "qos", "preemption", "on_task_failure", "topology", "after", "array_max_running", "start_within", "output_path", "error_path", "visible_devices", "early_signal", "requeue_exit_codes", "stdin", "window")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class CapturedEnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    SCRIPT_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ARRAY_INDEXES_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_DURATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    GRACE_DURATION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PTY_FIELD_NUMBER: _ClassVar[int]
    MIN_TASKS_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTION_FIELD_NUMBER: _ClassVar[int]
    ON_TASK_FAILURE_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    ARRAY_MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    START_WITHIN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    ERROR_PATH_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_DEVICES_FIELD_NUMBER: _ClassVar[int]
    EARLY_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    REQUEUE_EXIT_CODES_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    argv: _containers.RepeatedScalarFieldContainer[str]
    script: bytes
    env: _containers.ScalarMap[str, str]
    captured_env: _containers.ScalarMap[str, str]
    working_directory: str
    resources: Resources
    tasks: int
    array_indexes: _containers.RepeatedScalarFieldContainer[int]
    max_run_duration: _duration_pb2.Duration
    priority: int
    max_retries: int
    on_disconnect: OnDisconnect
    grace_duration: _duration_pb2.Duration
    labels: _containers.ScalarMap[str, str]
    pty: bool
    min_tasks: int
    qos: Qos
    preemption: Preemption
    on_task_failure: OnTaskFailure
    topology: Topology
    after: _containers.RepeatedCompositeFieldContainer[Dependency]
    array_max_running: int
    start_within: _duration_pb2.Duration
    output_path: str
    error_path: str
    visible_devices: VisibleDevices
    early_signal: EarlySignal
    requeue_exit_codes: _containers.RepeatedScalarFieldContainer[int]
    stdin: bool
    window: WindowSize
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., argv: _Optional[_Iterable[str]] = ..., script: _Optional[bytes] = ..., env: _Optional[_Mapping[str, str]] = ..., captured_env: _Optional[_Mapping[str, str]] = ..., working_directory: _Optional[str] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., tasks: _Optional[int] = ..., array_indexes: _Optional[_Iterable[int]] = ..., max_run_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., priority: _Optional[int] = ..., max_retries: _Optional[int] = ..., on_disconnect: _Optional[_Union[OnDisconnect, str]] = ..., grace_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., pty: _Optional[bool] = ..., min_tasks: _Optional[int] = ..., qos: _Optional[_Union[Qos, str]] = ..., preemption: _Optional[_Union[Preemption, str]] = ..., on_task_failure: _Optional[_Union[OnTaskFailure, str]] = ..., topology: _Optional[_Union[Topology, str]] = ..., after: _Optional[_Iterable[_Union[Dependency, _Mapping]]] = ..., array_max_running: _Optional[int] = ..., start_within: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., output_path: _Optional[str] = ..., error_path: _Optional[str] = ..., visible_devices: _Optional[_Union[VisibleDevices, str]] = ..., early_signal: _Optional[_Union[EarlySignal, _Mapping]] = ..., requeue_exit_codes: _Optional[_Iterable[int]] = ..., stdin: _Optional[bool] = ..., window: _Optional[_Union[WindowSize, _Mapping]] = ...) -> None: ...

class WindowSize(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ...) -> None: ...

class Principal(_message.Message):
    __slots__ = ("user", "role", "tenant")
    USER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    user: str
    role: str
    tenant: str
    def __init__(self, user: _Optional[str] = ..., role: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: str
    detail: str
    def __init__(self, reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class TaskAttempt(_message.Message):
    __slots__ = ("attempt_id", "task_index", "number", "state", "reason", "detail", "node", "gpu_uuids", "gpu_milli", "gpu_memory_mib", "cpu_milli", "memory_mib", "charge_milli", "tier", "enforcement", "containment", "exit_code", "signal", "allocate_time", "start_time", "end_time", "used_mib", "sm_percent", "suspend_time", "claimant")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    GPU_UUIDS_FIELD_NUMBER: _ClassVar[int]
    GPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    CHARGE_MILLI_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    CONTAINMENT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    ALLOCATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    USED_MIB_FIELD_NUMBER: _ClassVar[int]
    SM_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SUSPEND_TIME_FIELD_NUMBER: _ClassVar[int]
    CLAIMANT_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    task_index: int
    number: int
    state: AttemptState
    reason: str
    detail: str
    node: str
    gpu_uuids: _containers.RepeatedScalarFieldContainer[str]
    gpu_milli: int
    gpu_memory_mib: int
    cpu_milli: int
    memory_mib: int
    charge_milli: int
    tier: str
    enforcement: Enforcement
    containment: str
    exit_code: int
    signal: int
    allocate_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    used_mib: int
    sm_percent: int
    suspend_time: _timestamp_pb2.Timestamp
    claimant: str
    def __init__(self, attempt_id: _Optional[str] = ..., task_index: _Optional[int] = ..., number: _Optional[int] = ..., state: _Optional[_Union[AttemptState, str]] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., node: _Optional[str] = ..., gpu_uuids: _Optional[_Iterable[str]] = ..., gpu_milli: _Optional[int] = ..., gpu_memory_mib: _Optional[int] = ..., cpu_milli: _Optional[int] = ..., memory_mib: _Optional[int] = ..., charge_milli: _Optional[int] = ..., tier: _Optional[str] = ..., enforcement: _Optional[_Union[Enforcement, str]] = ..., containment: _Optional[str] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., allocate_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., used_mib: _Optional[int] = ..., sm_percent: _Optional[int] = ..., suspend_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., claimant: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("name", "tenant", "id", "spec", "state", "reason", "detail", "wait", "exit_code", "signal", "created_by", "cancelled_by", "create_time", "start_time", "end_time", "tasks", "infra_retries", "retries", "array_id", "array_index", "redacted", "charge_milli_seconds", "preemptions", "preempted_for", "expected_start_time", "expected_end_time", "foreign", "requeues", "submitted_run_duration")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    INFRA_RETRIES_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    ARRAY_ID_FIELD_NUMBER: _ClassVar[int]
    ARRAY_INDEX_FIELD_NUMBER: _ClassVar[int]
    REDACTED_FIELD_NUMBER: _ClassVar[int]
    CHARGE_MILLI_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FOR_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_START_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_END_TIME_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    REQUEUES_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_RUN_DURATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    tenant: str
    id: str
    spec: JobSpec
    state: JobState
    reason: str
    detail: str
    wait: Wait
    exit_code: int
    signal: int
    created_by: Principal
    cancelled_by: Principal
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    tasks: _containers.RepeatedCompositeFieldContainer[TaskAttempt]
    infra_retries: int
    retries: int
    array_id: str
    array_index: int
    redacted: bool
    charge_milli_seconds: int
    preemptions: int
    preempted_for: str
    expected_start_time: _timestamp_pb2.Timestamp
    expected_end_time: _timestamp_pb2.Timestamp
    foreign: bool
    requeues: int
    submitted_run_duration: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., tenant: _Optional[str] = ..., id: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., created_by: _Optional[_Union[Principal, _Mapping]] = ..., cancelled_by: _Optional[_Union[Principal, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tasks: _Optional[_Iterable[_Union[TaskAttempt, _Mapping]]] = ..., infra_retries: _Optional[int] = ..., retries: _Optional[int] = ..., array_id: _Optional[str] = ..., array_index: _Optional[int] = ..., redacted: _Optional[bool] = ..., charge_milli_seconds: _Optional[int] = ..., preemptions: _Optional[int] = ..., preempted_for: _Optional[str] = ..., expected_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expected_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., foreign: _Optional[bool] = ..., requeues: _Optional[int] = ..., submitted_run_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CreateJobRequest(_message.Message):
    __slots__ = ("parent", "job", "request_id", "validate_only")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    parent: str
    job: JobSpec
    request_id: str
    validate_only: bool
    def __init__(self, parent: _Optional[str] = ..., job: _Optional[_Union[JobSpec, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class CreateJobResponse(_message.Message):
    __slots__ = ("jobs", "dropped_env", "default_request_used", "notices")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ENV_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_REQUEST_USED_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    dropped_env: _containers.RepeatedScalarFieldContainer[str]
    default_request_used: bool
    notices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., dropped_env: _Optional[_Iterable[str]] = ..., default_request_used: _Optional[bool] = ..., notices: _Optional[_Iterable[str]] = ...) -> None: ...

class BatchCreateJobsRequest(_message.Message):
    __slots__ = ("parent", "jobs", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    jobs: _containers.RepeatedCompositeFieldContainer[JobSpec]
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., jobs: _Optional[_Iterable[_Union[JobSpec, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class BatchCreateJobsResponse(_message.Message):
    __slots__ = ("names", "notices")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    notices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., notices: _Optional[_Iterable[str]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "state", "user", "show_ended", "array_id", "job_name")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    SHOW_ENDED_FIELD_NUMBER: _ClassVar[int]
    ARRAY_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_NAME_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    state: JobState
    user: str
    show_ended: bool
    array_id: str
    job_name: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., user: _Optional[str] = ..., show_ended: _Optional[bool] = ..., array_id: _Optional[str] = ..., job_name: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ExtendJobRequest(_message.Message):
    __slots__ = ("name", "longer_by", "max_run_duration", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LONGER_BY_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_DURATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    longer_by: _duration_pb2.Duration
    max_run_duration: _duration_pb2.Duration
    request_id: str
    def __init__(self, name: _Optional[str] = ..., longer_by: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_run_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RequeueJobRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ResubmitJobRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ExplainJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class FilterCount(_message.Message):
    __slots__ = ("reason", "detail", "gpus", "nodes")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    detail: str
    gpus: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reason: _Optional[str] = ..., detail: _Optional[str] = ..., gpus: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class Counterfactual(_message.Message):
    __slots__ = ("change", "flag", "start_time")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    change: str
    flag: str
    start_time: _timestamp_pb2.Timestamp
    def __init__(self, change: _Optional[str] = ..., flag: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class JobExplanation(_message.Message):
    __slots__ = ("name", "state", "stage", "wait", "filters", "blocking_jobs", "earliest_start_time", "suggestion", "counterfactuals", "expected_start_time", "ahead_jobs", "ahead_count", "claimant", "victims", "hold_time", "unknown_because")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    BLOCKING_JOBS_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_START_TIME_FIELD_NUMBER: _ClassVar[int]
    SUGGESTION_FIELD_NUMBER: _ClassVar[int]
    COUNTERFACTUALS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_START_TIME_FIELD_NUMBER: _ClassVar[int]
    AHEAD_JOBS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLAIMANT_FIELD_NUMBER: _ClassVar[int]
    VICTIMS_FIELD_NUMBER: _ClassVar[int]
    HOLD_TIME_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: JobState
    stage: str
    wait: Wait
    filters: _containers.RepeatedCompositeFieldContainer[FilterCount]
    blocking_jobs: _containers.RepeatedScalarFieldContainer[str]
    earliest_start_time: _timestamp_pb2.Timestamp
    suggestion: str
    counterfactuals: _containers.RepeatedCompositeFieldContainer[Counterfactual]
    expected_start_time: _timestamp_pb2.Timestamp
    ahead_jobs: _containers.RepeatedScalarFieldContainer[str]
    ahead_count: int
    claimant: str
    victims: _containers.RepeatedScalarFieldContainer[str]
    hold_time: _timestamp_pb2.Timestamp
    unknown_because: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., stage: _Optional[str] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., filters: _Optional[_Iterable[_Union[FilterCount, _Mapping]]] = ..., blocking_jobs: _Optional[_Iterable[str]] = ..., earliest_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., suggestion: _Optional[str] = ..., counterfactuals: _Optional[_Iterable[_Union[Counterfactual, _Mapping]]] = ..., expected_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ahead_jobs: _Optional[_Iterable[str]] = ..., ahead_count: _Optional[int] = ..., claimant: _Optional[str] = ..., victims: _Optional[_Iterable[str]] = ..., hold_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., unknown_because: _Optional[str] = ...) -> None: ...

class WatchJobsRequest(_message.Message):
    __slots__ = ("parent", "resume_token", "id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    resume_token: bytes
    id: str
    def __init__(self, parent: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., id: _Optional[str] = ...) -> None: ...

class WatchJobsResponse(_message.Message):
    __slots__ = ("job", "resume_token", "caught_up")
    JOB_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    job: Job
    resume_token: bytes
    caught_up: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., resume_token: _Optional[bytes] = ..., caught_up: _Optional[bool] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("name", "task_index", "attempt", "stream", "offset", "follow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    task_index: int
    attempt: int
    stream: OutputStream
    offset: int
    follow: bool
    def __init__(self, name: _Optional[str] = ..., task_index: _Optional[int] = ..., attempt: _Optional[int] = ..., stream: _Optional[_Union[OutputStream, str]] = ..., offset: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("offset", "data", "skipped_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    skipped_bytes: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., skipped_bytes: _Optional[int] = ...) -> None: ...

class ConnectionStart(_message.Message):
    __slots__ = ("name", "task_index", "attach", "exec", "forward")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    EXEC_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    name: str
    task_index: int
    attach: Attach
    exec: Exec
    forward: Forward
    def __init__(self, name: _Optional[str] = ..., task_index: _Optional[int] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., exec: _Optional[_Union[Exec, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("window",)
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    window: WindowSize
    def __init__(self, window: _Optional[_Union[WindowSize, _Mapping]] = ...) -> None: ...

class Exec(_message.Message):
    __slots__ = ("argv", "pty", "window", "term")
    ARGV_FIELD_NUMBER: _ClassVar[int]
    PTY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    argv: _containers.RepeatedScalarFieldContainer[str]
    pty: bool
    window: WindowSize
    term: str
    def __init__(self, argv: _Optional[_Iterable[str]] = ..., pty: _Optional[bool] = ..., window: _Optional[_Union[WindowSize, _Mapping]] = ..., term: _Optional[str] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class EndOfInput(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConnectRequest(_message.Message):
    __slots__ = ("start", "input", "end_of_input", "window", "taken_bytes")
    START_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    END_OF_INPUT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    start: ConnectionStart
    input: bytes
    end_of_input: EndOfInput
    window: WindowSize
    taken_bytes: int
    def __init__(self, start: _Optional[_Union[ConnectionStart, _Mapping]] = ..., input: _Optional[bytes] = ..., end_of_input: _Optional[_Union[EndOfInput, _Mapping]] = ..., window: _Optional[_Union[WindowSize, _Mapping]] = ..., taken_bytes: _Optional[int] = ...) -> None: ...

class ConnectionOpened(_message.Message):
    __slots__ = ("node", "attempt", "pty", "stdout_bytes", "stderr_bytes", "takes_input")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PTY_FIELD_NUMBER: _ClassVar[int]
    STDOUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDERR_BYTES_FIELD_NUMBER: _ClassVar[int]
    TAKES_INPUT_FIELD_NUMBER: _ClassVar[int]
    node: str
    attempt: int
    pty: bool
    stdout_bytes: int
    stderr_bytes: int
    takes_input: bool
    def __init__(self, node: _Optional[str] = ..., attempt: _Optional[int] = ..., pty: _Optional[bool] = ..., stdout_bytes: _Optional[int] = ..., stderr_bytes: _Optional[int] = ..., takes_input: _Optional[bool] = ...) -> None: ...

class ConnectionEnd(_message.Message):
    __slots__ = ("exit_code",)
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    exit_code: int
    def __init__(self, exit_code: _Optional[int] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("opened", "output", "error_output", "taken_bytes", "end")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ERROR_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    opened: ConnectionOpened
    output: bytes
    error_output: bytes
    taken_bytes: int
    end: ConnectionEnd
    def __init__(self, opened: _Optional[_Union[ConnectionOpened, _Mapping]] = ..., output: _Optional[bytes] = ..., error_output: _Optional[bytes] = ..., taken_bytes: _Optional[int] = ..., end: _Optional[_Union[ConnectionEnd, _Mapping]] = ...) -> None: ...
