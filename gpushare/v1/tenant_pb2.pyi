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

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_ADMIN: _ClassVar[Role]
    ROLE_OPERATOR: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_VIEWER: _ClassVar[Role]
    ROLE_AGENT: _ClassVar[Role]
    ROLE_TENANT_ADMIN: _ClassVar[Role]

class QuotaEffect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUOTA_EFFECT_UNSPECIFIED: _ClassVar[QuotaEffect]
    QUOTA_EFFECT_WOULD_WAIT: _ClassVar[QuotaEffect]
    QUOTA_EFFECT_WOULD_BE_RECLAIMED: _ClassVar[QuotaEffect]
    QUOTA_EFFECT_WOULD_START: _ClassVar[QuotaEffect]
ROLE_UNSPECIFIED: Role
ROLE_ADMIN: Role
ROLE_OPERATOR: Role
ROLE_USER: Role
ROLE_VIEWER: Role
ROLE_AGENT: Role
ROLE_TENANT_ADMIN: Role
QUOTA_EFFECT_UNSPECIFIED: QuotaEffect
QUOTA_EFFECT_WOULD_WAIT: QuotaEffect
QUOTA_EFFECT_WOULD_BE_RECLAIMED: QuotaEffect
QUOTA_EFFECT_WOULD_START: QuotaEffect

class ModelQuota(_message.Message):
    __slots__ = ("model", "guaranteed_milli", "limit_milli")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_MILLI_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MILLI_FIELD_NUMBER: _ClassVar[int]
    model: str
    guaranteed_milli: int
    limit_milli: int
    def __init__(self, model: _Optional[str] = ..., guaranteed_milli: _Optional[int] = ..., limit_milli: _Optional[int] = ...) -> None: ...

class ModelUse(_message.Message):
    __slots__ = ("model", "charge_milli")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHARGE_MILLI_FIELD_NUMBER: _ClassVar[int]
    model: str
    charge_milli: int
    def __init__(self, model: _Optional[str] = ..., charge_milli: _Optional[int] = ...) -> None: ...

class Tenant(_message.Message):
    __slots__ = ("name", "display_name", "limit_milli", "max_queued_jobs", "default_request", "max_priority", "create_time", "running_charge_milli", "queued_jobs", "running_jobs", "parent", "guaranteed_milli", "weight", "model_quotas", "max_running_jobs", "max_running_per_user", "cpu_limit_milli", "memory_limit_mib", "min_run", "used_charge_milli", "guaranteed_charge_milli", "borrowed_charge_milli", "average_charge_milli", "model_use", "allocated_cpu_milli", "allocated_memory_mib", "unix_groups", "unix_users", "isolated", "default_run", "max_run", "notices")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MILLI_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    RUNNING_CHARGE_MILLI_FIELD_NUMBER: _ClassVar[int]
    QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_MILLI_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_QUOTAS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_PER_USER_FIELD_NUMBER: _ClassVar[int]
    CPU_LIMIT_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_MIB_FIELD_NUMBER: _ClassVar[int]
    MIN_RUN_FIELD_NUMBER: _ClassVar[int]
    USED_CHARGE_MILLI_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_CHARGE_MILLI_FIELD_NUMBER: _ClassVar[int]
    BORROWED_CHARGE_MILLI_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_CHARGE_MILLI_FIELD_NUMBER: _ClassVar[int]
    MODEL_USE_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    UNIX_GROUPS_FIELD_NUMBER: _ClassVar[int]
    UNIX_USERS_FIELD_NUMBER: _ClassVar[int]
    ISOLATED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_RUN_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    limit_milli: int
    max_queued_jobs: int
    default_request: _job_pb2.Resources
    max_priority: int
    create_time: _timestamp_pb2.Timestamp
    running_charge_milli: int
    queued_jobs: int
    running_jobs: int
    parent: str
    guaranteed_milli: int
    weight: int
    model_quotas: _containers.RepeatedCompositeFieldContainer[ModelQuota]
    max_running_jobs: int
    max_running_per_user: int
    cpu_limit_milli: int
    memory_limit_mib: int
    min_run: _duration_pb2.Duration
    used_charge_milli: int
    guaranteed_charge_milli: int
    borrowed_charge_milli: int
    average_charge_milli: int
    model_use: _containers.RepeatedCompositeFieldContainer[ModelUse]
    allocated_cpu_milli: int
    allocated_memory_mib: int
    unix_groups: _containers.RepeatedScalarFieldContainer[str]
    unix_users: _containers.RepeatedScalarFieldContainer[str]
    isolated: bool
    default_run: _duration_pb2.Duration
    max_run: _duration_pb2.Duration
    notices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., limit_milli: _Optional[int] = ..., max_queued_jobs: _Optional[int] = ..., default_request: _Optional[_Union[_job_pb2.Resources, _Mapping]] = ..., max_priority: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., running_charge_milli: _Optional[int] = ..., queued_jobs: _Optional[int] = ..., running_jobs: _Optional[int] = ..., parent: _Optional[str] = ..., guaranteed_milli: _Optional[int] = ..., weight: _Optional[int] = ..., model_quotas: _Optional[_Iterable[_Union[ModelQuota, _Mapping]]] = ..., max_running_jobs: _Optional[int] = ..., max_running_per_user: _Optional[int] = ..., cpu_limit_milli: _Optional[int] = ..., memory_limit_mib: _Optional[int] = ..., min_run: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., used_charge_milli: _Optional[int] = ..., guaranteed_charge_milli: _Optional[int] = ..., borrowed_charge_milli: _Optional[int] = ..., average_charge_milli: _Optional[int] = ..., model_use: _Optional[_Iterable[_Union[ModelUse, _Mapping]]] = ..., allocated_cpu_milli: _Optional[int] = ..., allocated_memory_mib: _Optional[int] = ..., unix_groups: _Optional[_Iterable[str]] = ..., unix_users: _Optional[_Iterable[str]] = ..., isolated: _Optional[bool] = ..., default_run: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_run: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., notices: _Optional[_Iterable[str]] = ...) -> None: ...

class TenantSettings(_message.Message):
    __slots__ = ("display_name", "limit_milli", "no_limit", "max_queued_jobs", "default_request", "max_priority", "parent", "guaranteed_milli", "weight", "model_quotas", "no_model_quotas", "max_running_jobs", "max_running_per_user", "cpu_limit_milli", "memory_limit_mib", "min_run", "unset", "default_run", "max_run", "unix_groups", "unix_users", "isolated")
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MILLI_FIELD_NUMBER: _ClassVar[int]
    NO_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_MILLI_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_QUOTAS_FIELD_NUMBER: _ClassVar[int]
    NO_MODEL_QUOTAS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_PER_USER_FIELD_NUMBER: _ClassVar[int]
    CPU_LIMIT_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_MIB_FIELD_NUMBER: _ClassVar[int]
    MIN_RUN_FIELD_NUMBER: _ClassVar[int]
    UNSET_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_RUN_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_FIELD_NUMBER: _ClassVar[int]
    UNIX_GROUPS_FIELD_NUMBER: _ClassVar[int]
    UNIX_USERS_FIELD_NUMBER: _ClassVar[int]
    ISOLATED_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    limit_milli: int
    no_limit: bool
    max_queued_jobs: int
    default_request: _job_pb2.Resources
    max_priority: int
    parent: str
    guaranteed_milli: int
    weight: int
    model_quotas: _containers.RepeatedCompositeFieldContainer[ModelQuota]
    no_model_quotas: _containers.RepeatedScalarFieldContainer[str]
    max_running_jobs: int
    max_running_per_user: int
    cpu_limit_milli: int
    memory_limit_mib: int
    min_run: _duration_pb2.Duration
    unset: _containers.RepeatedScalarFieldContainer[str]
    default_run: _duration_pb2.Duration
    max_run: _duration_pb2.Duration
    unix_groups: _containers.RepeatedScalarFieldContainer[str]
    unix_users: _containers.RepeatedScalarFieldContainer[str]
    isolated: bool
    def __init__(self, display_name: _Optional[str] = ..., limit_milli: _Optional[int] = ..., no_limit: _Optional[bool] = ..., max_queued_jobs: _Optional[int] = ..., default_request: _Optional[_Union[_job_pb2.Resources, _Mapping]] = ..., max_priority: _Optional[int] = ..., parent: _Optional[str] = ..., guaranteed_milli: _Optional[int] = ..., weight: _Optional[int] = ..., model_quotas: _Optional[_Iterable[_Union[ModelQuota, _Mapping]]] = ..., no_model_quotas: _Optional[_Iterable[str]] = ..., max_running_jobs: _Optional[int] = ..., max_running_per_user: _Optional[int] = ..., cpu_limit_milli: _Optional[int] = ..., memory_limit_mib: _Optional[int] = ..., min_run: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., unset: _Optional[_Iterable[str]] = ..., default_run: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_run: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., unix_groups: _Optional[_Iterable[str]] = ..., unix_users: _Optional[_Iterable[str]] = ..., isolated: _Optional[bool] = ...) -> None: ...

class CreateTenantRequest(_message.Message):
    __slots__ = ("tenant_id", "settings", "request_id")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    settings: TenantSettings
    request_id: str
    def __init__(self, tenant_id: _Optional[str] = ..., settings: _Optional[_Union[TenantSettings, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetTenantRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListTenantsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTenantsResponse(_message.Message):
    __slots__ = ("tenants", "next_page_token")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    next_page_token: str
    def __init__(self, tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateTenantRequest(_message.Message):
    __slots__ = ("name", "settings", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    settings: TenantSettings
    request_id: str
    def __init__(self, name: _Optional[str] = ..., settings: _Optional[_Union[TenantSettings, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteTenantRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteTenantResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Token(_message.Message):
    __slots__ = ("name", "user", "role", "tenant", "unix_user", "node", "create_time", "expire_time", "revoke_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    UNIX_USER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REVOKE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    user: str
    role: Role
    tenant: str
    unix_user: str
    node: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    revoke_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., user: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., tenant: _Optional[str] = ..., unix_user: _Optional[str] = ..., node: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revoke_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("user", "role", "tenant", "unix_user", "ttl", "request_id")
    USER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    UNIX_USER_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    user: str
    role: Role
    tenant: str
    unix_user: str
    ttl: _duration_pb2.Duration
    request_id: str
    def __init__(self, user: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., tenant: _Optional[str] = ..., unix_user: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("token", "secret", "join")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    token: Token
    secret: str
    join: str
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., secret: _Optional[str] = ..., join: _Optional[str] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "tenant")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    tenant: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListTokensResponse(_message.Message):
    __slots__ = ("tokens", "next_page_token")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    next_page_token: str
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WhoAmIRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetOwnTokenRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class QuotaChange(_message.Message):
    __slots__ = ("name", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    settings: TenantSettings
    def __init__(self, name: _Optional[str] = ..., settings: _Optional[_Union[TenantSettings, _Mapping]] = ...) -> None: ...

class PreviewQuotaRequest(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[QuotaChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[QuotaChange, _Mapping]]] = ...) -> None: ...

class PreviewedJob(_message.Message):
    __slots__ = ("name", "effect", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    effect: QuotaEffect
    detail: str
    def __init__(self, name: _Optional[str] = ..., effect: _Optional[_Union[QuotaEffect, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class PreviewQuotaResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[PreviewedJob]
    def __init__(self, jobs: _Optional[_Iterable[_Union[PreviewedJob, _Mapping]]] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...
