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
    __slots__ = ("tier", "enforcement", "absent_because")
    TIER_FIELD_NUMBER: _ClassVar[int]
    ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    ABSENT_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    enforcement: _job_pb2.Enforcement
    absent_because: str
    def __init__(self, tier: _Optional[str] = ..., enforcement: _Optional[_Union[_job_pb2.Enforcement, str]] = ..., absent_because: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("uuid", "index", "model", "total_mib", "usable_mib", "state", "reason", "detail", "allocated_milli", "allocated_mib", "tiers", "strangers", "sample", "simulated", "attempt_ids")
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
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., model: _Optional[str] = ..., total_mib: _Optional[int] = ..., usable_mib: _Optional[int] = ..., state: _Optional[_Union[GpuState, str]] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., allocated_milli: _Optional[int] = ..., allocated_mib: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[TierOffer, _Mapping]]] = ..., strangers: _Optional[_Iterable[_Union[Stranger, _Mapping]]] = ..., sample: _Optional[_Union[GpuSample, _Mapping]] = ..., simulated: _Optional[bool] = ..., attempt_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "state", "cordoned", "reason", "detail", "drained", "cpu_milli", "memory_mib", "allocated_cpu_milli", "allocated_memory_mib", "labels", "gpus", "containment", "agent_version", "driver_version", "last_seen_time", "ready", "clock_skew_ms")
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
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., cordoned: _Optional[bool] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., drained: _Optional[bool] = ..., cpu_milli: _Optional[int] = ..., memory_mib: _Optional[int] = ..., allocated_cpu_milli: _Optional[int] = ..., allocated_memory_mib: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., containment: _Optional[str] = ..., agent_version: _Optional[str] = ..., driver_version: _Optional[str] = ..., last_seen_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ready: _Optional[bool] = ..., clock_skew_ms: _Optional[int] = ...) -> None: ...

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
