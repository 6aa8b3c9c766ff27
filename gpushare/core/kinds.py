"""The kinds and states of the cluster's nouns, as enumerations.

Pure: enum alone. Invariant: a value is what journals and messages hold, so it is never renamed.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Role(StrEnum):
    """What a token may do; SYSTEM is the scheduler itself."""

    ADMIN = "admin"
    OPERATOR = "operator"
    TENANT_ADMIN = "tenant-admin"
    USER = "user"
    VIEWER = "viewer"
    AGENT = "agent"
    SYSTEM = "system"


class JobState(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class AttemptState(StrEnum):
    ALLOCATED = "ALLOCATED"
    LAUNCHING = "LAUNCHING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    STOPPING = "STOPPING"
    UNKNOWN = "UNKNOWN"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class NodeState(StrEnum):
    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"
    UNREACHABLE = "UNREACHABLE"
    LOST = "LOST"


class GpuState(StrEnum):
    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"
    DIRTY = "DIRTY"
    DRAINED = "DRAINED"
    QUARANTINED = "QUARANTINED"
    LOST = "LOST"


class OnDisconnect(StrEnum):
    KEEP = "keep"
    STOP_AND_REQUEUE = "stop_and_requeue"


class Qos(StrEnum):
    """GUARANTEED fits its tenant's guarantee and is never reclaimed; BURST may borrow what is idle."""

    GUARANTEED = "guaranteed"
    BURST = "burst"


class PreemptionMode(StrEnum):
    """What becomes of a job whose capacity is reclaimed. SUSPEND falls back to REQUEUE where no tier can suspend."""

    SUSPEND = "suspend"
    REQUEUE = "requeue"
    CANCEL = "cancel"


class OnTaskFailure(StrEnum):
    """What one failed task does to its gang. CONTINUE: the others run on while at least `min_tasks` are left."""

    STOP = "stop"
    CONTINUE = "continue"


class Topology(StrEnum):
    """How close the tasks of a gang must be. ANY still prefers one card domain, then one node, then few nodes."""

    ANY = "any"
    NODE = "node"
    DOMAIN = "domain"


class VisibleDevices(StrEnum):
    """How CUDA_VISIBLE_DEVICES names a job's cards. INDEX is for programs that cannot take UUIDs."""

    UUID = "uuid"
    INDEX = "index"


class DependencyKind(StrEnum):
    """AFTER: the other job has begun or ended; AFTERANY: it has ended; AFTEROK: it has succeeded."""

    AFTER = "after"
    AFTERANY = "afterany"
    AFTEROK = "afterok"


class SignalTarget(StrEnum):
    """Which processes of a task hear its early signal: the first one, or each."""

    LEADER = "leader"
    ALL = "all"


class Power(StrEnum):
    """What the admin's power hook was last asked for. DOWN: the node sleeps; WAKING: it was asked to come back."""

    ON = "on"
    DOWN = "down"
    WAKING = "waking"


class Enforcement(IntEnum):
    """How strongly a slice is fenced; the order is the strength."""

    NONE = 0
    SOFT = 1
    SERVER = 2
    HARD = 3
