import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from gpushare.v1 import job_pb2 as _job_pb2
from gpushare.v1 import node_pb2 as _node_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrollRequest(_message.Message):
    __slots__ = ("secret", "instance_id")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    secret: str
    instance_id: str
    def __init__(self, secret: _Optional[str] = ..., instance_id: _Optional[str] = ...) -> None: ...

class EnrollResponse(_message.Message):
    __slots__ = ("node", "token")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    node: str
    token: str
    def __init__(self, node: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class AgentMessage(_message.Message):
    __slots__ = ("hello", "sync", "renewal", "attempt_report", "gpu_report", "attempt_reports")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_REPORT_FIELD_NUMBER: _ClassVar[int]
    GPU_REPORT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_REPORTS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    sync: Sync
    renewal: Renewal
    attempt_report: AttemptReport
    gpu_report: GpuReport
    attempt_reports: AttemptReports
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., sync: _Optional[_Union[Sync, _Mapping]] = ..., renewal: _Optional[_Union[Renewal, _Mapping]] = ..., attempt_report: _Optional[_Union[AttemptReport, _Mapping]] = ..., gpu_report: _Optional[_Union[GpuReport, _Mapping]] = ..., attempt_reports: _Optional[_Union[AttemptReports, _Mapping]] = ...) -> None: ...

class SchedulerMessage(_message.Message):
    __slots__ = ("hello_ack", "lease_grant", "start_attempt", "stop_attempt", "seal_attempt", "forget_attempt", "read_logs", "cancel_read", "suspend_attempt", "resume_attempt", "set_run_limit", "open_channel", "close_channel", "order_list")
    HELLO_ACK_FIELD_NUMBER: _ClassVar[int]
    LEASE_GRANT_FIELD_NUMBER: _ClassVar[int]
    START_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STOP_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEAL_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FORGET_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    READ_LOGS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_READ_FIELD_NUMBER: _ClassVar[int]
    SUSPEND_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RESUME_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SET_RUN_LIMIT_FIELD_NUMBER: _ClassVar[int]
    OPEN_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    CLOSE_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    ORDER_LIST_FIELD_NUMBER: _ClassVar[int]
    hello_ack: HelloAck
    lease_grant: LeaseGrant
    start_attempt: StartAttempt
    stop_attempt: StopAttempt
    seal_attempt: SealAttempt
    forget_attempt: ForgetAttempt
    read_logs: ReadLogs
    cancel_read: CancelRead
    suspend_attempt: SuspendAttempt
    resume_attempt: ResumeAttempt
    set_run_limit: SetRunLimit
    open_channel: OpenChannel
    close_channel: CloseChannel
    order_list: OrderList
    def __init__(self, hello_ack: _Optional[_Union[HelloAck, _Mapping]] = ..., lease_grant: _Optional[_Union[LeaseGrant, _Mapping]] = ..., start_attempt: _Optional[_Union[StartAttempt, _Mapping]] = ..., stop_attempt: _Optional[_Union[StopAttempt, _Mapping]] = ..., seal_attempt: _Optional[_Union[SealAttempt, _Mapping]] = ..., forget_attempt: _Optional[_Union[ForgetAttempt, _Mapping]] = ..., read_logs: _Optional[_Union[ReadLogs, _Mapping]] = ..., cancel_read: _Optional[_Union[CancelRead, _Mapping]] = ..., suspend_attempt: _Optional[_Union[SuspendAttempt, _Mapping]] = ..., resume_attempt: _Optional[_Union[ResumeAttempt, _Mapping]] = ..., set_run_limit: _Optional[_Union[SetRunLimit, _Mapping]] = ..., open_channel: _Optional[_Union[OpenChannel, _Mapping]] = ..., close_channel: _Optional[_Union[CloseChannel, _Mapping]] = ..., order_list: _Optional[_Union[OrderList, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("instance_id", "boot_id", "start_counter", "agent_version", "wall_time", "highest_term", "node", "takes_order_lists")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    START_COUNTER_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    WALL_TIME_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_TERM_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TAKES_ORDER_LISTS_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    boot_id: str
    start_counter: int
    agent_version: str
    wall_time: _timestamp_pb2.Timestamp
    highest_term: int
    node: str
    takes_order_lists: bool
    def __init__(self, instance_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., start_counter: _Optional[int] = ..., agent_version: _Optional[str] = ..., wall_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., highest_term: _Optional[int] = ..., node: _Optional[str] = ..., takes_order_lists: _Optional[bool] = ...) -> None: ...

class HelloAck(_message.Message):
    __slots__ = ("term", "lease_ttl_ms", "node", "takes_attempt_reports")
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TAKES_ATTEMPT_REPORTS_FIELD_NUMBER: _ClassVar[int]
    term: int
    lease_ttl_ms: int
    node: str
    takes_attempt_reports: bool
    def __init__(self, term: _Optional[int] = ..., lease_ttl_ms: _Optional[int] = ..., node: _Optional[str] = ..., takes_attempt_reports: _Optional[bool] = ...) -> None: ...

class GpuInventory(_message.Message):
    __slots__ = ("uuid", "index", "model", "total_mib", "usable_mib", "tiers", "simulated", "domain")
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MIB_FIELD_NUMBER: _ClassVar[int]
    USABLE_MIB_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    model: str
    total_mib: int
    usable_mib: int
    tiers: _containers.RepeatedCompositeFieldContainer[_node_pb2.TierOffer]
    simulated: bool
    domain: str
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., model: _Optional[str] = ..., total_mib: _Optional[int] = ..., usable_mib: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[_node_pb2.TierOffer, _Mapping]]] = ..., simulated: _Optional[bool] = ..., domain: _Optional[str] = ...) -> None: ...

class Sync(_message.Message):
    __slots__ = ("cpu_milli", "memory_mib", "labels", "containment", "driver_version", "gpus", "conditions", "attempts", "address", "shared_paths", "warnings")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CONTAINMENT_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SHARED_PATHS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    cpu_milli: int
    memory_mib: int
    labels: _containers.ScalarMap[str, str]
    containment: str
    driver_version: str
    gpus: _containers.RepeatedCompositeFieldContainer[GpuInventory]
    conditions: _containers.RepeatedCompositeFieldContainer[GpuCondition]
    attempts: _containers.RepeatedCompositeFieldContainer[AttemptReport]
    address: str
    shared_paths: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cpu_milli: _Optional[int] = ..., memory_mib: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., containment: _Optional[str] = ..., driver_version: _Optional[str] = ..., gpus: _Optional[_Iterable[_Union[GpuInventory, _Mapping]]] = ..., conditions: _Optional[_Iterable[_Union[GpuCondition, _Mapping]]] = ..., attempts: _Optional[_Iterable[_Union[AttemptReport, _Mapping]]] = ..., address: _Optional[str] = ..., shared_paths: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class AttemptReport(_message.Message):
    __slots__ = ("attempt_id", "state", "reason", "detail", "exit_code", "signal", "start_time", "end_time", "containment")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CONTAINMENT_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    state: _job_pb2.AttemptState
    reason: str
    detail: str
    exit_code: int
    signal: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    containment: str
    def __init__(self, attempt_id: _Optional[str] = ..., state: _Optional[_Union[_job_pb2.AttemptState, str]] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., containment: _Optional[str] = ...) -> None: ...

class AttemptReports(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[AttemptReport]
    def __init__(self, reports: _Optional[_Iterable[_Union[AttemptReport, _Mapping]]] = ...) -> None: ...

class GpuCondition(_message.Message):
    __slots__ = ("uuid", "state", "reason", "detail", "strangers")
    UUID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STRANGERS_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    state: _node_pb2.GpuState
    reason: str
    detail: str
    strangers: _containers.RepeatedCompositeFieldContainer[_node_pb2.Stranger]
    def __init__(self, uuid: _Optional[str] = ..., state: _Optional[_Union[_node_pb2.GpuState, str]] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., strangers: _Optional[_Iterable[_Union[_node_pb2.Stranger, _Mapping]]] = ...) -> None: ...

class AttemptUse(_message.Message):
    __slots__ = ("used_mib", "sm_percent")
    USED_MIB_FIELD_NUMBER: _ClassVar[int]
    SM_PERCENT_FIELD_NUMBER: _ClassVar[int]
    used_mib: int
    sm_percent: int
    def __init__(self, used_mib: _Optional[int] = ..., sm_percent: _Optional[int] = ...) -> None: ...

class GpuReport(_message.Message):
    __slots__ = ("conditions", "samples", "attempt_use")
    class SamplesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _node_pb2.GpuSample
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_node_pb2.GpuSample, _Mapping]] = ...) -> None: ...
    class AttemptUseEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: AttemptUse
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[AttemptUse, _Mapping]] = ...) -> None: ...
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_USE_FIELD_NUMBER: _ClassVar[int]
    conditions: _containers.RepeatedCompositeFieldContainer[GpuCondition]
    samples: _containers.MessageMap[str, _node_pb2.GpuSample]
    attempt_use: _containers.MessageMap[str, AttemptUse]
    def __init__(self, conditions: _Optional[_Iterable[_Union[GpuCondition, _Mapping]]] = ..., samples: _Optional[_Mapping[str, _node_pb2.GpuSample]] = ..., attempt_use: _Optional[_Mapping[str, AttemptUse]] = ...) -> None: ...

class OrderList(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[SchedulerMessage]
    def __init__(self, orders: _Optional[_Iterable[_Union[SchedulerMessage, _Mapping]]] = ...) -> None: ...

class StartAttempt(_message.Message):
    __slots__ = ("attempt_id", "term", "job_id", "task_index", "task_count", "array_index", "number", "unix_user", "argv", "script", "env", "working_directory", "pty", "gpu_uuids", "whole", "gpu_milli", "gpu_memory_mib", "cpu_milli", "memory_mib", "max_run_ms", "grace_ms", "on_disconnect", "tier", "gang", "capacity_milli", "output_path", "error_path", "visible_devices", "early_signal", "stdin", "window")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_INDEX_FIELD_NUMBER: _ClassVar[int]
    TASK_COUNT_FIELD_NUMBER: _ClassVar[int]
    ARRAY_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UNIX_USER_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    SCRIPT_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PTY_FIELD_NUMBER: _ClassVar[int]
    GPU_UUIDS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    GPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_MS_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    GANG_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_MILLI_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    ERROR_PATH_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_DEVICES_FIELD_NUMBER: _ClassVar[int]
    EARLY_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    term: int
    job_id: str
    task_index: int
    task_count: int
    array_index: int
    number: int
    unix_user: str
    argv: _containers.RepeatedScalarFieldContainer[str]
    script: bytes
    env: _containers.ScalarMap[str, str]
    working_directory: str
    pty: bool
    gpu_uuids: _containers.RepeatedScalarFieldContainer[str]
    whole: bool
    gpu_milli: int
    gpu_memory_mib: int
    cpu_milli: int
    memory_mib: int
    max_run_ms: int
    grace_ms: int
    on_disconnect: _job_pb2.OnDisconnect
    tier: str
    gang: Gang
    capacity_milli: int
    output_path: str
    error_path: str
    visible_devices: _job_pb2.VisibleDevices
    early_signal: _job_pb2.EarlySignal
    stdin: bool
    window: _job_pb2.WindowSize
    def __init__(self, attempt_id: _Optional[str] = ..., term: _Optional[int] = ..., job_id: _Optional[str] = ..., task_index: _Optional[int] = ..., task_count: _Optional[int] = ..., array_index: _Optional[int] = ..., number: _Optional[int] = ..., unix_user: _Optional[str] = ..., argv: _Optional[_Iterable[str]] = ..., script: _Optional[bytes] = ..., env: _Optional[_Mapping[str, str]] = ..., working_directory: _Optional[str] = ..., pty: _Optional[bool] = ..., gpu_uuids: _Optional[_Iterable[str]] = ..., whole: _Optional[bool] = ..., gpu_milli: _Optional[int] = ..., gpu_memory_mib: _Optional[int] = ..., cpu_milli: _Optional[int] = ..., memory_mib: _Optional[int] = ..., max_run_ms: _Optional[int] = ..., grace_ms: _Optional[int] = ..., on_disconnect: _Optional[_Union[_job_pb2.OnDisconnect, str]] = ..., tier: _Optional[str] = ..., gang: _Optional[_Union[Gang, _Mapping]] = ..., capacity_milli: _Optional[int] = ..., output_path: _Optional[str] = ..., error_path: _Optional[str] = ..., visible_devices: _Optional[_Union[_job_pb2.VisibleDevices, str]] = ..., early_signal: _Optional[_Union[_job_pb2.EarlySignal, _Mapping]] = ..., stdin: _Optional[bool] = ..., window: _Optional[_Union[_job_pb2.WindowSize, _Mapping]] = ...) -> None: ...

class Gang(_message.Message):
    __slots__ = ("master_addr", "master_port", "rank", "world_size", "local_rank", "local_world_size", "node_rank", "nodes")
    MASTER_ADDR_FIELD_NUMBER: _ClassVar[int]
    MASTER_PORT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_RANK_FIELD_NUMBER: _ClassVar[int]
    LOCAL_WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NODE_RANK_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    master_addr: str
    master_port: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    nodes: int
    def __init__(self, master_addr: _Optional[str] = ..., master_port: _Optional[int] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., local_rank: _Optional[int] = ..., local_world_size: _Optional[int] = ..., node_rank: _Optional[int] = ..., nodes: _Optional[int] = ...) -> None: ...

class StopAttempt(_message.Message):
    __slots__ = ("attempt_id", "term", "reason", "grace_ms", "detail")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    term: int
    reason: str
    grace_ms: int
    detail: str
    def __init__(self, attempt_id: _Optional[str] = ..., term: _Optional[int] = ..., reason: _Optional[str] = ..., grace_ms: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class SuspendAttempt(_message.Message):
    __slots__ = ("attempt_id", "term")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    term: int
    def __init__(self, attempt_id: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class ResumeAttempt(_message.Message):
    __slots__ = ("attempt_id", "term", "gpu_uuids", "whole", "gpu_milli", "gpu_memory_mib", "capacity_milli")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    GPU_UUIDS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    GPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_MILLI_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    term: int
    gpu_uuids: _containers.RepeatedScalarFieldContainer[str]
    whole: bool
    gpu_milli: int
    gpu_memory_mib: int
    capacity_milli: int
    def __init__(self, attempt_id: _Optional[str] = ..., term: _Optional[int] = ..., gpu_uuids: _Optional[_Iterable[str]] = ..., whole: _Optional[bool] = ..., gpu_milli: _Optional[int] = ..., gpu_memory_mib: _Optional[int] = ..., capacity_milli: _Optional[int] = ...) -> None: ...

class SetRunLimit(_message.Message):
    __slots__ = ("attempt_id", "term", "max_run_ms")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_MS_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    term: int
    max_run_ms: int
    def __init__(self, attempt_id: _Optional[str] = ..., term: _Optional[int] = ..., max_run_ms: _Optional[int] = ...) -> None: ...

class SealAttempt(_message.Message):
    __slots__ = ("attempt_id", "term")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    term: int
    def __init__(self, attempt_id: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class ForgetAttempt(_message.Message):
    __slots__ = ("attempt_id", "term")
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    attempt_id: str
    term: int
    def __init__(self, attempt_id: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class ReadLogs(_message.Message):
    __slots__ = ("read_id", "attempt_id", "stream", "offset", "follow")
    READ_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    read_id: str
    attempt_id: str
    stream: _job_pb2.OutputStream
    offset: int
    follow: bool
    def __init__(self, read_id: _Optional[str] = ..., attempt_id: _Optional[str] = ..., stream: _Optional[_Union[_job_pb2.OutputStream, str]] = ..., offset: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class CancelRead(_message.Message):
    __slots__ = ("read_id",)
    READ_ID_FIELD_NUMBER: _ClassVar[int]
    read_id: str
    def __init__(self, read_id: _Optional[str] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("read_id", "stream", "offset", "data", "skipped_bytes", "end", "error_reason", "error_detail")
    READ_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_DETAIL_FIELD_NUMBER: _ClassVar[int]
    read_id: str
    stream: _job_pb2.OutputStream
    offset: int
    data: bytes
    skipped_bytes: int
    end: bool
    error_reason: str
    error_detail: str
    def __init__(self, read_id: _Optional[str] = ..., stream: _Optional[_Union[_job_pb2.OutputStream, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., skipped_bytes: _Optional[int] = ..., end: _Optional[bool] = ..., error_reason: _Optional[str] = ..., error_detail: _Optional[str] = ...) -> None: ...

class LogAck(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class IssueLoginTokenRequest(_message.Message):
    __slots__ = ("unix_user", "groups", "tenant")
    UNIX_USER_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    unix_user: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    tenant: str
    def __init__(self, unix_user: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., tenant: _Optional[str] = ...) -> None: ...

class IssueLoginTokenResponse(_message.Message):
    __slots__ = ("secret", "ttl", "user", "tenant")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    secret: str
    ttl: _duration_pb2.Duration
    user: str
    tenant: str
    def __init__(self, secret: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., user: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class OpenChannel(_message.Message):
    __slots__ = ("channel_id", "attempt_id", "term", "start")
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    channel_id: str
    attempt_id: str
    term: int
    start: _job_pb2.ConnectionStart
    def __init__(self, channel_id: _Optional[str] = ..., attempt_id: _Optional[str] = ..., term: _Optional[int] = ..., start: _Optional[_Union[_job_pb2.ConnectionStart, _Mapping]] = ...) -> None: ...

class CloseChannel(_message.Message):
    __slots__ = ("channel_id",)
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    channel_id: str
    def __init__(self, channel_id: _Optional[str] = ...) -> None: ...

class ChannelOutput(_message.Message):
    __slots__ = ("channel_id", "response", "error_reason", "error_detail")
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_DETAIL_FIELD_NUMBER: _ClassVar[int]
    channel_id: str
    response: _job_pb2.ConnectResponse
    error_reason: str
    error_detail: str
    def __init__(self, channel_id: _Optional[str] = ..., response: _Optional[_Union[_job_pb2.ConnectResponse, _Mapping]] = ..., error_reason: _Optional[str] = ..., error_detail: _Optional[str] = ...) -> None: ...

class ChannelInput(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _job_pb2.ConnectRequest
    def __init__(self, request: _Optional[_Union[_job_pb2.ConnectRequest, _Mapping]] = ...) -> None: ...
