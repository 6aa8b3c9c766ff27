"""The command to type first for every reason: the one that shows more of it, or mends it.

Pure: imports the reasons alone. The page "Troubleshooting" is made of it. Invariants: every reason has a row in one
group, "" where there is nothing to type; words in capitals stand for what the reader puts there; a test has the command
line parse each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from gpushare.reasons import Reason


class Group(NamedTuple):
    """Reasons that a person meets in one place."""

    title: str
    commands: Mapping[Reason, str]


REFUSED: Final = Group(
    "A command was refused",
    MappingProxyType(
        {
            Reason.INVALID_FIELD: "gpushare submit --help",
            Reason.REQUEST_ID_REQUIRED: "",
            Reason.REQUEST_ID_REUSED: "",
            Reason.RESERVED_ENV: "gpushare submit --dry-run --export all SCRIPT",
            Reason.ARRAY_TOO_LARGE: "gpushare submit --array 0-999 SCRIPT",
            Reason.NEVER_FITS: "gpushare gpus",
            Reason.QUEUE_FULL: "gpushare jobs --state queued",
            Reason.BUSY: "",
            Reason.MESSAGE_TOO_LARGE: "",
            Reason.PRIORITY_ABOVE_ROLE: "gpushare tenant show TENANT",
            Reason.RUN_LIMIT: "gpushare tenant show TENANT",
            Reason.JOB_ENDED: "gpushare resubmit JOB",
            Reason.NOT_FOUND: "gpushare jobs -a",
            Reason.ALREADY_EXISTS: "",
            Reason.TENANT_NOT_EMPTY: "gpushare jobs --tenant TENANT",
            Reason.PERMISSION_DENIED: "",
            Reason.UNAUTHENTICATED: "gpushare login -",
            Reason.JOIN_SECRET_INVALID: "gpushare node join-token NODE",
            Reason.HOST_NOT_TRUSTED: "gpushare node set NODE --trust-logins on",
            Reason.LOGIN_DENIED: "gpushare login -",
            Reason.LOGIN_UNMAPPED: "gpushare login -",
            Reason.TENANT_AMBIGUOUS: "gpushare submit --tenant TENANT SCRIPT",
            Reason.NODE_NOT_SILENT: "gpushare node drain NODE --wait",
            Reason.NODE_BUSY: "gpushare node drain NODE --wait",
            Reason.RESERVATION_CONFLICT: "gpushare reservation list",
            Reason.RESERVATION_NO_ROOM: "gpushare gpus",
            Reason.NODE_UNREACHABLE: "gpushare nodes -o wide",
            Reason.NOT_RUNNING: "gpushare job JOB",
            Reason.NO_INPUT: "gpushare shell --gpus 0.25",
            Reason.INPUT_LOST: "gpushare logs JOB",
            Reason.SSH_UNAVAILABLE: "gpushare exec JOB -- sh",
            Reason.PORT_CLOSED: "gpushare logs JOB",
            Reason.CONNECTION_STALLED: "gpushare attach JOB",
            Reason.LOGS_GONE: "gpushare submit --output FILE SCRIPT",
            Reason.LOG_READER_STALLED: "gpushare logs -f JOB",
            Reason.WATCH_TOO_SLOW: "",
            Reason.RESUME_TOKEN_INVALID: "",
            Reason.PAGE_TOKEN_INVALID: "",
            Reason.NOT_LEADER: "",
            Reason.STORE_UNAVAILABLE: "",
            Reason.SCHEDULER_UNREACHABLE: "gpushare doctor",
            Reason.DEADLINE_EXCEEDED: "gpushare --timeout 60s jobs",
            Reason.CONFIG_INVALID: "gpushare doctor",
            Reason.UPGRADE_FAILED: "gpushare host versions",
            Reason.INTERNAL: "",
        }
    ),
)

WAITS: Final = Group(
    "A job waits",
    MappingProxyType(
        {
            Reason.NO_NODES: "gpushare node join-token NODE",
            Reason.NODES_UNAVAILABLE: "gpushare nodes",
            Reason.NO_CAPACITY: "gpushare explain JOB",
            Reason.HOST_CAPACITY: "gpushare explain JOB",
            Reason.TENANT_LIMIT: "gpushare jobs",
            Reason.TENANT_LIMIT_NEVER: "gpushare explain JOB",
            Reason.FENCE_UNAVAILABLE: "gpushare gpus",
            Reason.MODEL_UNAVAILABLE: "gpushare gpus",
            Reason.LABELS_UNAVAILABLE: "gpushare nodes -o wide",
            Reason.PATH_MISSING: "gpushare nodes -o wide",
            Reason.OCCUPIED: "gpushare gpus -o wide",
            Reason.GPU_UNHEALTHY: "gpushare gpus",
            Reason.RETRY_BACKOFF: "gpushare job JOB",
            Reason.SCHEDULING: "",
            Reason.QUOTA: "gpushare explain JOB",
            Reason.QUOTA_NEVER: "gpushare explain JOB",
            Reason.TENANT_CAP: "gpushare jobs --state running",
            Reason.USER_CAP: "gpushare jobs --user USER --state running",
            Reason.ARRAY_CAP: "gpushare job JOB",
            Reason.HOST_LIMIT: "gpushare explain JOB",
            Reason.DEPENDENCY: "gpushare explain JOB",
            Reason.RESERVED: "gpushare reservation list",
            Reason.HELD: "gpushare explain JOB",
            Reason.PREEMPTING: "gpushare explain JOB",
            Reason.RESUMING: "gpushare explain JOB",
        }
    ),
)

ENDED: Final = Group(
    "A job ended, or was stopped",
    MappingProxyType(
        {
            Reason.COMPLETED: "",
            Reason.EXIT_CODE: "gpushare logs JOB",
            Reason.SIGNALLED: "gpushare logs JOB",
            Reason.CANCELLED: "gpushare job JOB",
            Reason.TIME_LIMIT: "gpushare extend JOB +2h",
            Reason.MEMORY_LIMIT: "gpushare submit --gpu-memory 24G SCRIPT",
            Reason.HOST_MEMORY_LIMIT: "gpushare submit --host-memory 32G SCRIPT",
            Reason.LIMIT_BYPASS: "gpushare submit --gpus 1 SCRIPT",
            Reason.PEER_FAILED: "gpushare job JOB",
            Reason.EXEC: "gpushare job JOB",
            Reason.WORKDIR: "gpushare submit --chdir DIRECTORY SCRIPT",
            Reason.UNIX_USER_UNMAPPED: "gpushare token create USER --tenant TENANT --unix-user USER",
            Reason.LAUNCH_DENIED: "gpushare doctor",
            Reason.FENCE_FAILED: "gpushare doctor",
            Reason.NOT_STARTED: "gpushare job JOB",
            Reason.INFRA: "gpushare job JOB",
            Reason.NODE_REBOOTED: "gpushare job JOB",
            Reason.DECLARED_DEAD: "gpushare job JOB",
            Reason.LEASE_EXPIRED: "gpushare job JOB",
            Reason.GPU_LOST: "gpushare gpus",
            Reason.APP_FAULT: "gpushare logs JOB",
            Reason.COLLATERAL: "gpushare job JOB",
            Reason.PREEMPTED: "gpushare explain JOB",
            Reason.REQUEUED: "gpushare explain JOB",
            Reason.DEPENDENCY_FAILED: "gpushare job JOB",
            Reason.START_DEADLINE: "gpushare explain JOB",
            Reason.STALE: "",
        }
    ),
)

HOSTS: Final = Group(
    "A node or a card is out of service",
    MappingProxyType(
        {
            Reason.DRIVER_MISMATCH: "gpushare doctor",
            Reason.DRIVER_MISSING: "gpushare doctor",
            Reason.NVML_HUNG: "gpushare doctor",
            Reason.MPS_UNHEALTHY: "gpushare doctor",
            Reason.ADMIN: "gpushare audit",
            Reason.DUPLICATE_AGENT: "gpushare nodes -o wide",
            Reason.BAD_REPORT: "gpushare nodes -o wide",
            Reason.STALE_TERM: "",
            Reason.STALE_ATTEMPT: "",
        }
    ),
)

GROUPS: Final = (REFUSED, WAITS, ENDED, HOSTS)
