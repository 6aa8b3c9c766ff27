import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from gpushare.v1 import job_pb2 as _job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_ACTIVE: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]
    NODE_STATE_UNREACHABLE: _ClassVar[NodeState]
    NODE_STATE_LOST: _ClassVar[NodeState]

class GpuState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GPU_STATE_UNSPECIFIED: _ClassVar[GpuState]
    GPU_STATE_HEALTHY: _ClassVar[GpuState]
    GPU_STATE_DEGRADED: _ClassVar[GpuState]
    GPU_STATE_DIRTY: _ClassVar[GpuState]
    GPU_STATE_DRAINED: _ClassVar[GpuState]
    GPU_STATE_QUARANTINED: _ClassVar[GpuState]
    GPU_STATE_LOST: _ClassVar[GpuState]

class Power(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POWER_UNSPECIFIED: _ClassVar[Power]
    POWER_ON: _ClassVar[Power]
    POWER_DOWN: _ClassVar[Power]
    POWER_WAKING: _ClassVar[Power]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_ACTIVE: NodeState
NODE_STATE_DRAINING: NodeState
NODE_STATE_UNREACHABLE: NodeState
NODE_STATE_LOST: NodeState
GPU_STATE_UNSPECIFIED: GpuState
GPU_STATE_HEALTHY: GpuState
GPU_STATE_DEGRADED: GpuState
GPU_STATE_DIRTY: GpuState
GPU_STATE_DRAINED: GpuState
GPU_STATE_QUARANTINED: GpuState
GPU_STATE_LOST: GpuState
POWER_UNSPECIFIED: Power
POWER_ON: Power
POWER_DOWN: Power
POWER_WAKING: Power

class Stranger(_message.Message):
    __slots__ = ("pid", "user", "memory_mib")
    PID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    pid: int
    user: str
    memory_mib: int
    def __init__(self, pid: _Optional[int] = ..., user: _Optional[str] = ..., memory_mib: _Optional[int] = ...) -> None: ...

class TierOffer(_message.Message):
    __slots__ = ("tier", "enforcement", "absent_because", "can_suspend")
    TIER_FIELD_NUMBER: _ClassVar[int]
    ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    ABSENT_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    CAN_SUSPEND_FIELD_NUMBER: _ClassVar[int]
    tier: str
    enforcement: _job_pb2.Enforcement
    absent_because: str
    can_suspend: bool
    def __init__(self, tier: _Optional[str] = ..., enforcement: _Optional[_Union[_job_pb2.Enforcement, str]] = ..., absent_because: _Optional[str] = ..., can_suspend: _Optional[bool] = ...) -> None: ...

class GpuSample(_message.Message):
    __slots__ = ("used_mib", "free_mib", "sm_percent", "power_mw", "energy_mj", "temperature_c", "sample_time")
    USED_MIB_FIELD_NUMBER: _ClassVar[int]
    FREE_MIB_FIELD_NUMBER: _ClassVar[int]
    SM_PERCENT_FIELD_NUMBER: _ClassVar[int]
    POWER_MW_FIELD_NUMBER: _ClassVar[int]
    ENERGY_MJ_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TIME_FIELD_NUMBER: _ClassVar[int]
    used_mib: int
    free_mib: int
    sm_percent: int
    power_mw: int
    energy_mj: int
    temperature_c: int
    sample_time: _timestamp_pb2.Timestamp
    def __init__(self, used_mib: _Optional[int] = ..., free_mib: _Optional[int] = ..., sm_percent: _Optional[int] = ..., power_mw: _Optional[int] = ..., energy_mj: _Optional[int] = ..., temperature_c: _Optional[int] = ..., sample_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("uuid", "index", "model", "total_mib", "usable_mib", "state", "reason", "detail", "allocated_milli", "allocated_mib", "tiers", "strangers", "sample", "simulated", "attempt_ids", "capacity_milli", "domain")
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MIB_FIELD_NUMBER: _ClassVar[int]
    USABLE_MIB_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_MILLI_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_MIB_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    STRANGERS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_MILLI_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    model: str
    total_mib: int
    usable_mib: int
    state: GpuState
    reason: str
    detail: str
    allocated_milli: int
    allocated_mib: int
    tiers: _containers.RepeatedCompositeFieldContainer[TierOffer]
    strangers: _containers.RepeatedCompositeFieldContainer[Stranger]
    sample: GpuSample
    simulated: bool
    attempt_ids: _containers.RepeatedScalarFieldContainer[str]
    capacity_milli: int
    domain: str
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., model: _Optional[str] = ..., total_mib: _Optional[int] = ..., usable_mib: _Optional[int] = ..., state: _Optional[_Union[GpuState, str]] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., allocated_milli: _Optional[int] = ..., allocated_mib: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[TierOffer, _Mapping]]] = ..., strangers: _Optional[_Iterable[_Union[Stranger, _Mapping]]] = ..., sample: _Optional[_Union[GpuSample, _Mapping]] = ..., simulated: _Optional[bool] = ..., attempt_ids: _Optional[_Iterable[str]] = ..., capacity_milli: _Optional[int] = ..., domain: _Optional[str] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "state", "cordoned", "reason", "detail", "drained", "cpu_milli", "memory_mib", "allocated_cpu_milli", "allocated_memory_mib", "labels", "gpus", "containment", "agent_version", "driver_version", "last_seen_time", "ready", "clock_skew_ms", "compute_overcommit_milli", "power", "address", "idle_since_time", "task_count", "shared_paths", "warnings", "trust_logins")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    CONTAINMENT_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_TIME_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SKEW_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_OVERCOMMIT_MILLI_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    TASK_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARED_PATHS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    TRUST_LOGINS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: NodeState
    cordoned: bool
    reason: str
    detail: str
    drained: bool
    cpu_milli: int
    memory_mib: int
    allocated_cpu_milli: int
    allocated_memory_mib: int
    labels: _containers.ScalarMap[str, str]
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    containment: str
    agent_version: str
    driver_version: str
    last_seen_time: _timestamp_pb2.Timestamp
    ready: bool
    clock_skew_ms: int
    compute_overcommit_milli: int
    power: Power
    address: str
    idle_since_time: _timestamp_pb2.Timestamp
    task_count: int
    shared_paths: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    trust_logins: bool
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., cordoned: _Optional[bool] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., drained: _Optional[bool] = ..., cpu_milli: _Optional[int] = ..., memory_mib: _Optional[int] = ..., allocated_cpu_milli: _Optional[int] = ..., allocated_memory_mib: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., containment: _Optional[str] = ..., agent_version: _Optional[str] = ..., driver_version: _Optional[str] = ..., last_seen_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ready: _Optional[bool] = ..., clock_skew_ms: _Optional[int] = ..., compute_overcommit_milli: _Optional[int] = ..., power: _Optional[_Union[Power, str]] = ..., address: _Optional[str] = ..., idle_since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., task_count: _Optional[int] = ..., shared_paths: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ..., trust_logins: _Optional[bool] = ...) -> None: ...

class GetNodeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "next_page_token")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    next_page_token: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CordonNodeRequest(_message.Message):
    __slots__ = ("name", "detail", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    detail: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., detail: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class UncordonNodeRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("name", "detail", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    detail: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., detail: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeclareNodeDeadRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpdateNodeRequest(_message.Message):
    __slots__ = ("name", "compute_overcommit_milli", "request_id", "trust_logins")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_OVERCOMMIT_MILLI_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRUST_LOGINS_FIELD_NUMBER: _ClassVar[int]
    name: str
    compute_overcommit_milli: int
    request_id: str
    trust_logins: bool
    def __init__(self, name: _Optional[str] = ..., compute_overcommit_milli: _Optional[int] = ..., request_id: _Optional[str] = ..., trust_logins: _Optional[bool] = ...) -> None: ...

class CreateJoinTokenRequest(_message.Message):
    __slots__ = ("node", "ttl", "request_id")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    node: str
    ttl: _duration_pb2.Duration
    request_id: str
    def __init__(self, node: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateJoinTokenResponse(_message.Message):
    __slots__ = ("join", "expire_time")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    join: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, join: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReservedCard(_message.Message):
    __slots__ = ("node", "gpu_uuid", "gpu_milli", "gpu_memory_mib")
    NODE_FIELD_NUMBER: _ClassVar[int]
    GPU_UUID_FIELD_NUMBER: _ClassVar[int]
    GPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    node: str
    gpu_uuid: str
    gpu_milli: int
    gpu_memory_mib: int
    def __init__(self, node: _Optional[str] = ..., gpu_uuid: _Optional[str] = ..., gpu_milli: _Optional[int] = ..., gpu_memory_mib: _Optional[int] = ...) -> None: ...

class Reservation(_message.Message):
    __slots__ = ("name", "tenant", "users", "maintenance", "nodes", "cards", "start_time", "end_time", "repeat", "until_time", "detail", "created_by", "create_time", "next_start_time", "next_end_time", "redacted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    CARDS_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    REPEAT_FIELD_NUMBER: _ClassVar[int]
    UNTIL_TIME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    NEXT_START_TIME_FIELD_NUMBER: _ClassVar[int]
    NEXT_END_TIME_FIELD_NUMBER: _ClassVar[int]
    REDACTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    tenant: str
    users: _containers.RepeatedScalarFieldContainer[str]
    maintenance: bool
    nodes: _containers.RepeatedScalarFieldContainer[str]
    cards: _containers.RepeatedCompositeFieldContainer[ReservedCard]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    repeat: _duration_pb2.Duration
    until_time: _timestamp_pb2.Timestamp
    detail: str
    created_by: str
    create_time: _timestamp_pb2.Timestamp
    next_start_time: _timestamp_pb2.Timestamp
    next_end_time: _timestamp_pb2.Timestamp
    redacted: bool
    def __init__(self, name: _Optional[str] = ..., tenant: _Optional[str] = ..., users: _Optional[_Iterable[str]] = ..., maintenance: _Optional[bool] = ..., nodes: _Optional[_Iterable[str]] = ..., cards: _Optional[_Iterable[_Union[ReservedCard, _Mapping]]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., repeat: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., until_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., detail: _Optional[str] = ..., created_by: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., next_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., next_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., redacted: _Optional[bool] = ...) -> None: ...

class CreateReservationRequest(_message.Message):
    __slots__ = ("reservation_id", "tenant", "users", "maintenance", "nodes", "gpus", "gpu_milli", "gpu_memory_mib", "gpu_model", "start_time", "end_time", "repeat", "until_time", "detail", "force", "request_id")
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    GPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    GPU_MODEL_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    REPEAT_FIELD_NUMBER: _ClassVar[int]
    UNTIL_TIME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    reservation_id: str
    tenant: str
    users: _containers.RepeatedScalarFieldContainer[str]
    maintenance: bool
    nodes: _containers.RepeatedScalarFieldContainer[str]
    gpus: int
    gpu_milli: int
    gpu_memory_mib: int
    gpu_model: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    repeat: _duration_pb2.Duration
    until_time: _timestamp_pb2.Timestamp
    detail: str
    force: bool
    request_id: str
    def __init__(self, reservation_id: _Optional[str] = ..., tenant: _Optional[str] = ..., users: _Optional[_Iterable[str]] = ..., maintenance: _Optional[bool] = ..., nodes: _Optional[_Iterable[str]] = ..., gpus: _Optional[int] = ..., gpu_milli: _Optional[int] = ..., gpu_memory_mib: _Optional[int] = ..., gpu_model: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., repeat: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., until_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., detail: _Optional[str] = ..., force: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateReservationResponse(_message.Message):
    __slots__ = ("reservation", "jobs_in_the_way")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    JOBS_IN_THE_WAY_FIELD_NUMBER: _ClassVar[int]
    reservation: Reservation
    jobs_in_the_way: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reservation: _Optional[_Union[Reservation, _Mapping]] = ..., jobs_in_the_way: _Optional[_Iterable[str]] = ...) -> None: ...

class ListReservationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReservationsResponse(_message.Message):
    __slots__ = ("reservations", "next_page_token")
    RESERVATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    reservations: _containers.RepeatedCompositeFieldContainer[Reservation]
    next_page_token: str
    def __init__(self, reservations: _Optional[_Iterable[_Union[Reservation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteReservationRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteReservationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RepackMove(_message.Message):
    __slots__ = ("job", "node", "from_gpu_uuids", "to_gpu_uuids", "gpu_memory_mib")
    JOB_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FROM_GPU_UUIDS_FIELD_NUMBER: _ClassVar[int]
    TO_GPU_UUIDS_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    job: str
    node: str
    from_gpu_uuids: _containers.RepeatedScalarFieldContainer[str]
    to_gpu_uuids: _containers.RepeatedScalarFieldContainer[str]
    gpu_memory_mib: int
    def __init__(self, job: _Optional[str] = ..., node: _Optional[str] = ..., from_gpu_uuids: _Optional[_Iterable[str]] = ..., to_gpu_uuids: _Optional[_Iterable[str]] = ..., gpu_memory_mib: _Optional[int] = ...) -> None: ...

class RepackOpened(_message.Message):
    __slots__ = ("node", "gpus")
    NODE_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    node: str
    gpus: int
    def __init__(self, node: _Optional[str] = ..., gpus: _Optional[int] = ...) -> None: ...

class RepackPlan(_message.Message):
    __slots__ = ("moves", "opened", "largest_share_before_milli", "largest_share_after_milli", "fragmentation_before_milli", "fragmentation_after_milli", "gpu_memory_mib")
    MOVES_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SHARE_BEFORE_MILLI_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SHARE_AFTER_MILLI_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTATION_BEFORE_MILLI_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTATION_AFTER_MILLI_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[RepackMove]
    opened: _containers.RepeatedCompositeFieldContainer[RepackOpened]
    largest_share_before_milli: int
    largest_share_after_milli: int
    fragmentation_before_milli: int
    fragmentation_after_milli: int
    gpu_memory_mib: int
    def __init__(self, moves: _Optional[_Iterable[_Union[RepackMove, _Mapping]]] = ..., opened: _Optional[_Iterable[_Union[RepackOpened, _Mapping]]] = ..., largest_share_before_milli: _Optional[int] = ..., largest_share_after_milli: _Optional[int] = ..., fragmentation_before_milli: _Optional[int] = ..., fragmentation_after_milli: _Optional[int] = ..., gpu_memory_mib: _Optional[int] = ...) -> None: ...

class PlanRepackRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ApplyRepackRequest(_message.Message):
    __slots__ = ("jobs", "request_id")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    def __init__(self, jobs: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ...) -> None: ...
