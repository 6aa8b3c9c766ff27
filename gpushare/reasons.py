"""Every stable reason the system gives for a refusal, a wait or an end, in one enum.

Pure: imports the standard library's data modules alone. The core, the agent, the API and the CLI all speak
these words; they are part of the public contract, so a member is never renamed, only added. What each means
to a person, and what to do, is in `SENTENCES`; a test keeps the two in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Reason(StrEnum):
    """Upper-case, stable, documented. Grouped by where a person meets it."""

    # -- refusals: the request changed nothing
    INVALID_FIELD = "INVALID_FIELD"
    REQUEST_ID_REQUIRED = "REQUEST_ID_REQUIRED"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    RESERVED_ENV = "RESERVED_ENV"
    ARRAY_TOO_LARGE = "ARRAY_TOO_LARGE"
    NEVER_FITS = "NEVER_FITS"
    QUEUE_FULL = "QUEUE_FULL"
    BUSY = "BUSY"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    PRIORITY_ABOVE_ROLE = "PRIORITY_ABOVE_ROLE"
    RUN_LIMIT = "RUN_LIMIT"
    JOB_ENDED = "JOB_ENDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    TENANT_NOT_EMPTY = "TENANT_NOT_EMPTY"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    JOIN_SECRET_INVALID = "JOIN_SECRET_INVALID"
    HOST_NOT_TRUSTED = "HOST_NOT_TRUSTED"
    LOGIN_DENIED = "LOGIN_DENIED"
    LOGIN_UNMAPPED = "LOGIN_UNMAPPED"
    TENANT_AMBIGUOUS = "TENANT_AMBIGUOUS"
    DUPLICATE_AGENT = "DUPLICATE_AGENT"
    BAD_REPORT = "BAD_REPORT"
    STALE_TERM = "STALE_TERM"
    STALE_ATTEMPT = "STALE_ATTEMPT"
    NODE_NOT_SILENT = "NODE_NOT_SILENT"
    NODE_BUSY = "NODE_BUSY"
    RESERVATION_CONFLICT = "RESERVATION_CONFLICT"
    RESERVATION_NO_ROOM = "RESERVATION_NO_ROOM"
    NODE_UNREACHABLE = "NODE_UNREACHABLE"
    LOGS_GONE = "LOGS_GONE"
    LOG_READER_STALLED = "LOG_READER_STALLED"
    NOT_RUNNING = "NOT_RUNNING"
    NO_INPUT = "NO_INPUT"
    INPUT_LOST = "INPUT_LOST"
    SSH_UNAVAILABLE = "SSH_UNAVAILABLE"
    PORT_CLOSED = "PORT_CLOSED"
    CONNECTION_STALLED = "CONNECTION_STALLED"
    WATCH_TOO_SLOW = "WATCH_TOO_SLOW"
    RESUME_TOKEN_INVALID = "RESUME_TOKEN_INVALID"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"
    NOT_LEADER = "NOT_LEADER"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    SCHEDULER_UNREACHABLE = "SCHEDULER_UNREACHABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CONFIG_INVALID = "CONFIG_INVALID"
    UPGRADE_FAILED = "UPGRADE_FAILED"
    INTERNAL = "INTERNAL"

    # -- waits: why a queued job does not start
    NO_NODES = "NO_NODES"
    NODES_UNAVAILABLE = "NODES_UNAVAILABLE"
    NO_CAPACITY = "NO_CAPACITY"
    HOST_CAPACITY = "HOST_CAPACITY"
    TENANT_LIMIT = "TENANT_LIMIT"
    TENANT_LIMIT_NEVER = "TENANT_LIMIT_NEVER"
    FENCE_UNAVAILABLE = "FENCE_UNAVAILABLE"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    LABELS_UNAVAILABLE = "LABELS_UNAVAILABLE"
    PATH_MISSING = "PATH_MISSING"
    OCCUPIED = "OCCUPIED"
    GPU_UNHEALTHY = "GPU_UNHEALTHY"
    RETRY_BACKOFF = "RETRY_BACKOFF"
    SCHEDULING = "SCHEDULING"
    QUOTA = "QUOTA"
    QUOTA_NEVER = "QUOTA_NEVER"
    TENANT_CAP = "TENANT_CAP"
    USER_CAP = "USER_CAP"
    ARRAY_CAP = "ARRAY_CAP"
    HOST_LIMIT = "HOST_LIMIT"
    DEPENDENCY = "DEPENDENCY"
    RESERVED = "RESERVED"
    HELD = "HELD"
    PREEMPTING = "PREEMPTING"
    RESUMING = "RESUMING"

    # -- how an attempt or a job ended
    COMPLETED = "COMPLETED"
    EXIT_CODE = "EXIT_CODE"
    SIGNALLED = "SIGNALLED"
    CANCELLED = "CANCELLED"
    TIME_LIMIT = "TIME_LIMIT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    HOST_MEMORY_LIMIT = "HOST_MEMORY_LIMIT"
    LIMIT_BYPASS = "LIMIT_BYPASS"
    PEER_FAILED = "PEER_FAILED"
    EXEC = "EXEC"
    WORKDIR = "WORKDIR"
    UNIX_USER_UNMAPPED = "UNIX_USER_UNMAPPED"
    LAUNCH_DENIED = "LAUNCH_DENIED"
    FENCE_FAILED = "FENCE_FAILED"
    NOT_STARTED = "NOT_STARTED"
    INFRA = "INFRA"
    NODE_REBOOTED = "NODE_REBOOTED"
    DECLARED_DEAD = "DECLARED_DEAD"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    GPU_LOST = "GPU_LOST"
    APP_FAULT = "APP_FAULT"
    COLLATERAL = "COLLATERAL"
    PREEMPTED = "PREEMPTED"
    REQUEUED = "REQUEUED"
    DEPENDENCY_FAILED = "DEPENDENCY_FAILED"
    START_DEADLINE = "START_DEADLINE"
    STALE = "STALE"

    # -- conditions of nodes and cards
    DRIVER_MISMATCH = "DRIVER_MISMATCH"
    DRIVER_MISSING = "DRIVER_MISSING"
    NVML_HUNG = "NVML_HUNG"
    MPS_UNHEALTHY = "MPS_UNHEALTHY"
    ADMIN = "ADMIN"


# What each means, and what the person who meets it can do. Two sentences; `error:` lines and `explain`
# print them.
SENTENCES: Final[Mapping[Reason, tuple[str, str]]] = MappingProxyType(
    {
        Reason.INVALID_FIELD: (
            "A field of the request has a value that is not accepted.",
            "Correct the named field and send the request again.",
        ),
        Reason.REQUEST_ID_REQUIRED: (
            "The request changes something and carries no request id.",
            "Set request_id to a new UUID; the client library does so by itself.",
        ),
        Reason.REQUEST_ID_REUSED: (
            "This request id was already used for a different request.",
            "Use a new request id for a new request; repeat one only with the same body.",
        ),
        Reason.RESERVED_ENV: (
            "The environment names a variable that only gpushare sets.",
            "Leave out CUDA_VISIBLE_DEVICES, CUDA_MPS_* and GPUSHARE_*; ask for the resources instead.",
        ),
        Reason.ARRAY_TOO_LARGE: (
            "The array has more indexes than one array may have.",
            "Split it into several arrays.",
        ),
        Reason.NEVER_FITS: (
            "No registered node could run this even when empty.",
            "Ask for less, or for what `gpushare gpus` lists.",
        ),
        Reason.QUEUE_FULL: (
            "The tenant has as many queued jobs as it may have.",
            "Wait until some have started, cancel some, or ask an admin for a higher cap.",
        ),
        Reason.BUSY: (
            "More requests of this tenant are waiting than the scheduler holds.",
            "Send fewer at once and try again after a moment.",
        ),
        Reason.MESSAGE_TOO_LARGE: (
            "The message is larger than the scheduler accepts.",
            "Send less at once: a smaller script, or the batch in several parts.",
        ),
        Reason.PRIORITY_ABOVE_ROLE: (
            "The priority is above what the caller may ask for.",
            "Ask for a lower priority, or have an admin raise the tenant's highest priority.",
        ),
        Reason.RUN_LIMIT: (
            "The time limit is longer than jobs of this tenant may have.",
            "Ask for no more than the named cap, or ask an admin, who may pass it.",
        ),
        Reason.JOB_ENDED: (
            "The job has ended, or is ending.",
            "Submit it anew with `gpushare resubmit JOB`.",
        ),
        Reason.NOT_FOUND: (
            "There is nothing of that name that the caller may see.",
            "Check the name and the tenant; names are exact.",
        ),
        Reason.ALREADY_EXISTS: (
            "Something of that name exists already.",
            "Choose another name, or use the one that is there.",
        ),
        Reason.TENANT_NOT_EMPTY: (
            "The tenant has jobs that have not ended.",
            "Cancel them or wait for them, then delete the tenant.",
        ),
        Reason.PERMISSION_DENIED: (
            "The caller's role does not allow this.",
            "Use a token with the right role, or ask an admin.",
        ),
        Reason.UNAUTHENTICATED: (
            "The token is missing, unknown, expired or revoked.",
            "Run `gpushare login` with a new join string from the admin.",
        ),
        Reason.JOIN_SECRET_INVALID: (
            "The join secret is unknown, used or expired.",
            "Make a new one with `gpushare node join-token NODE`.",
        ),
        Reason.HOST_NOT_TRUSTED: (
            "This host's word about who is logged in does not count.",
            "Have an admin type `gpushare node set NODE --trust-logins on`, or log in with a line from the admin.",
        ),
        Reason.LOGIN_DENIED: (
            "This account gets no token on a host's word.",
            "Log in as a person, or with a line from the admin (`gpushare login JOIN`).",
        ),
        Reason.LOGIN_UNMAPPED: (
            "No tenant takes this Unix user.",
            "Have an admin add you or one of your groups to a tenant.",
        ),
        Reason.TENANT_AMBIGUOUS: (
            "Several tenants take this Unix user.",
            "Choose one with `gpushare login --tenant T`, GPUSHARE_TENANT=T, or --tenant of run and submit.",
        ),
        Reason.DUPLICATE_AGENT: (
            "Another agent with this identity is connected.",
            "Stop one of the two; each needs a state directory and a join secret of its own.",
        ),
        Reason.BAD_REPORT: (
            "The agent reported something that cannot be true, so its node was cordoned.",
            "Look at the named field on that node, mend the cause, then uncordon it.",
        ),
        Reason.STALE_TERM: (
            "The order comes from a scheduler that no longer leads.",
            "Nothing to do; the leading scheduler sends its own orders.",
        ),
        Reason.STALE_ATTEMPT: (
            "The report is about an attempt that has ended or was replaced.",
            "Nothing to do; the agent stops what is left of it.",
        ),
        Reason.NODE_NOT_SILENT: (
            "The node is connected, so it cannot be declared dead.",
            "Drain it, or stop its agent first.",
        ),
        Reason.NODE_BUSY: (
            "The node has jobs that stand in the way of this change.",
            "Drain it first, or wait until they have ended.",
        ),
        Reason.RESERVATION_CONFLICT: (
            "Jobs or other reservations would still be there when the window opens.",
            "Choose another time, node or amount, or end what the message names.",
        ),
        Reason.RESERVATION_NO_ROOM: (
            "No cards of that kind and number exist.",
            "Ask for what `gpushare gpus` lists.",
        ),
        Reason.NODE_UNREACHABLE: (
            "The node's agent is not connected.",
            "Try again when it is back; `gpushare nodes` shows since when it is away.",
        ),
        Reason.LOGS_GONE: (
            "The logs of this attempt are no longer kept.",
            "Have jobs write what must last to a file of their own.",
        ),
        Reason.LOG_READER_STALLED: (
            "The reader took nothing for too long, so the stream was closed.",
            "Read on from the last byte offset.",
        ),
        Reason.NOT_RUNNING: (
            "The task does not run now, so nobody can connect to it.",
            "Connect when it is RUNNING; `gpushare job JOB` shows its state.",
        ),
        Reason.NO_INPUT: (
            "The job takes no input.",
            "Submit it with `gpushare run --pty`, `gpushare run -i` or `gpushare shell`.",
        ),
        Reason.INPUT_LOST: (
            "How much of its input the job has read is not known.",
            "Look at what the job made of it, then run it again.",
        ),
        Reason.SSH_UNAVAILABLE: (
            "Something that ssh needs is missing on this side or in the job.",
            "Mend what is named; `gpushare exec` and `gpushare attach` work without it.",
        ),
        Reason.PORT_CLOSED: (
            "No process of the job listens on this port.",
            "Start its server first, on 127.0.0.1 or on all addresses of its node; `gpushare logs JOB` may say more.",
        ),
        Reason.CONNECTION_STALLED: (
            "One end of the connection took nothing for too long, so it was closed.",
            "Connect again.",
        ),
        Reason.WATCH_TOO_SLOW: (
            "The watcher fell too far behind, so the stream was closed.",
            "Watch again with the last resume token.",
        ),
        Reason.RESUME_TOKEN_INVALID: (
            "The resume token is not one of this watch.",
            "List first, then watch with the token from the listing and the same filter.",
        ),
        Reason.PAGE_TOKEN_INVALID: (
            "The page token is not one of this listing.",
            "Start again from the first page with the same filter.",
        ),
        Reason.NOT_LEADER: (
            "This scheduler does not lead.",
            "Send the request to the leader.",
        ),
        Reason.STORE_UNAVAILABLE: (
            "The scheduler could not write to its database, so the request was not done.",
            "Try again; if it lasts, have the admin look at the scheduler's log and disk.",
        ),
        Reason.SCHEDULER_UNREACHABLE: (
            "The scheduler could not be reached.",
            "Check the address and that the scheduler runs.",
        ),
        Reason.DEADLINE_EXCEEDED: (
            "The answer did not come in time; the request may or may not have been done.",
            "Repeat it with the same request id: it is done at most once.",
        ),
        Reason.CONFIG_INVALID: (
            "A setting is not accepted.",
            "Correct the named file and key.",
        ),
        Reason.UPGRADE_FAILED: (
            "This host cannot be moved to that version of gpushare.",
            "The version that ran before still does; the message says what was in the way.",
        ),
        Reason.INTERNAL: (
            "Something failed that should not have.",
            "Try again; if it stays, report it with the scheduler's log.",
        ),
        Reason.NO_NODES: (
            "No node is registered.",
            "Start an agent with a string from `gpushare node join-token NODE`.",
        ),
        Reason.NODES_UNAVAILABLE: (
            "Every node that could run this is cordoned, draining or away.",
            "Wait, or have an operator uncordon one.",
        ),
        Reason.NO_CAPACITY: (
            "Every card that could run this is in use.",
            "Wait, or ask for a smaller share.",
        ),
        Reason.HOST_CAPACITY: (
            "No node with a free card has enough free CPU or host memory.",
            "Wait, or ask for less with --cpus or --host-memory.",
        ),
        Reason.TENANT_LIMIT: (
            "Starting this would pass the tenant's limit.",
            "Wait until the tenant's own jobs end, or ask an admin for a higher limit.",
        ),
        Reason.TENANT_LIMIT_NEVER: (
            "This alone is larger than the tenant's limit.",
            "Ask for less, or ask an admin for a higher limit.",
        ),
        Reason.FENCE_UNAVAILABLE: (
            "No card can fence a slice as strongly as was asked.",
            "Ask for a weaker fence or for a whole card; `gpushare gpus` shows what each can do.",
        ),
        Reason.MODEL_UNAVAILABLE: (
            "No registered card is of that model or size.",
            "Choose a model that `gpushare gpus` lists.",
        ),
        Reason.LABELS_UNAVAILABLE: (
            "No registered node has the labels that were asked for.",
            "Ask for labels that `gpushare nodes -o wide` lists.",
        ),
        Reason.PATH_MISSING: (
            "No node that could take this shares the path that the job's directory is under.",
            "Submit it from a directory that such a node has (`gpushare nodes -o wide` lists shared paths), or with "
            "--chdir.",
        ),
        Reason.OCCUPIED: (
            "The card is used by a process that gpushare did not start.",
            "Have the named user end that process, or take the card out of managed_gpus.",
        ),
        Reason.GPU_UNHEALTHY: (
            "Every card that could run this is out of service.",
            "Look at `gpushare gpus` for the cause on each card.",
        ),
        Reason.RETRY_BACKOFF: (
            "The last attempt was lost; the next waits a moment.",
            "Nothing to do.",
        ),
        Reason.SCHEDULING: (
            "The job has not been looked at yet.",
            "Nothing to do.",
        ),
        Reason.QUOTA: (
            "A job of QoS guaranteed must fit what is left of its tenant's guarantee.",
            "Wait until the tenant's guaranteed jobs end, or submit with --qos burst.",
        ),
        Reason.QUOTA_NEVER: (
            "This alone is larger than the tenant's guarantee, and its QoS is guaranteed.",
            "Submit with --qos burst, ask for less, or ask an admin for a higher guarantee.",
        ),
        Reason.TENANT_CAP: (
            "The tenant runs as many jobs as it may.",
            "Wait until one ends, or ask an admin for a higher max_running_jobs.",
        ),
        Reason.USER_CAP: (
            "This user runs as many jobs as one user of the tenant may.",
            "Wait until one of them ends, or ask an admin for a higher max_running_per_user.",
        ),
        Reason.ARRAY_CAP: (
            "As many children of the array run as its submitter allowed.",
            "Wait until one of them ends, or submit with a higher number after the %.",
        ),
        Reason.HOST_LIMIT: (
            "Starting this would pass the tenant's limit of CPU or host memory.",
            "Wait until the tenant's own jobs end, or ask for less with --cpus or --host-memory.",
        ),
        Reason.DEPENDENCY: (
            "It waits for another job, as its submitter asked.",
            "Wait, or cancel it and submit it without --after.",
        ),
        Reason.RESERVED: (
            "The room is reserved in a window of time that this job would run into.",
            "Wait for the window's end, or give a --time that ends before it; `gpushare reservation list` shows them.",
        ),
        Reason.HELD: (
            "The room is kept for a job that is ahead of this one.",
            "Wait, or give a --time short enough to end before that job starts.",
        ),
        Reason.PREEMPTING: (
            "Other jobs are making way for this one.",
            "Wait for the end of their grace.",
        ),
        Reason.RESUMING: (
            "It is suspended and waits for a card of its node.",
            "Wait, or cancel it.",
        ),
        Reason.COMPLETED: (
            "The job ended with exit code 0.",
            "Nothing to do.",
        ),
        Reason.EXIT_CODE: (
            "The program ended with an exit code other than 0.",
            "Look at its logs.",
        ),
        Reason.SIGNALLED: (
            "The program was ended by a signal that gpushare did not send.",
            "Look at its logs, and at the host's log for the out-of-memory killer.",
        ),
        Reason.CANCELLED: (
            "The job was cancelled.",
            "Submit it again if it is still wanted.",
        ),
        Reason.TIME_LIMIT: (
            "The job ran for as long as it may.",
            "Submit it with a longer --time, extend it while it runs, or have it save its work and go on from there.",
        ),
        Reason.MEMORY_LIMIT: (
            "The job used more GPU memory than its slice has.",
            "Ask for more with --gpu-memory, or have the program use less.",
        ),
        Reason.HOST_MEMORY_LIMIT: (
            "The job used more host memory than it was given.",
            "Ask for more with --host-memory.",
        ),
        Reason.LIMIT_BYPASS: (
            "A process of the job left the fence of its slice.",
            "Leave the CUDA_MPS_* variables as they are, or ask for a whole card.",
        ),
        Reason.PEER_FAILED: (
            "Another task of the same job failed first.",
            "Look at the logs of the task that failed.",
        ),
        Reason.EXEC: (
            "The program could not be started.",
            "Check that the command exists on the node and may be executed by the job's user, and that this user may "
            "write the file of --output or --error.",
        ),
        Reason.WORKDIR: (
            "The working directory could not be entered.",
            "Name one with --chdir that exists on the node and that the job's user may enter.",
        ),
        Reason.UNIX_USER_UNMAPPED: (
            "The token names no Unix user that this node knows, so nothing was run.",
            "Have an admin make a token with --unix-user, and check that the node knows that user.",
        ),
        Reason.LAUNCH_DENIED: (
            "The node could not take its privileges from the process, so nothing was run.",
            "Have an admin look at the agent's log on that node.",
        ),
        Reason.FENCE_FAILED: (
            "The slice could not be fenced as promised, so nothing was run.",
            "Have an admin look at the named cause on that node.",
        ),
        Reason.NOT_STARTED: (
            "The attempt ended before its program was started.",
            "Nothing to do; a new attempt follows unless the job was cancelled.",
        ),
        Reason.INFRA: (
            "The attempt was lost to the machine and not to the program.",
            "Nothing to do while retries are left; they are free of the job's own.",
        ),
        Reason.NODE_REBOOTED: (
            "The node was restarted under the attempt.",
            "Nothing to do while retries are left; they are free of the job's own.",
        ),
        Reason.DECLARED_DEAD: (
            "An admin declared the silent node dead.",
            "Nothing to do while retries are left; they are free of the job's own.",
        ),
        Reason.LEASE_EXPIRED: (
            "The node was cut off for longer than its lease, so the job stopped itself as it was asked to.",
            "Nothing to do; it is queued again.",
        ),
        Reason.GPU_LOST: (
            "The card left the bus under the attempt.",
            "Nothing to do while retries are left; the card is out of service.",
        ),
        Reason.APP_FAULT: (
            "The program caused a fault on the card.",
            "Look for an illegal memory access in the program.",
        ),
        Reason.COLLATERAL: (
            "A neighbour on the same card caused a fault that ended this one too.",
            "Nothing to do; the retry is free. Ask for a whole card to have no neighbours.",
        ),
        Reason.PREEMPTED: (
            "The attempt gave way to another job.",
            "Nothing to do; it is queued again.",
        ),
        Reason.REQUEUED: (
            "It was stopped to be queued again, as somebody asked.",
            "Nothing to do; it keeps its place in the queue.",
        ),
        Reason.DEPENDENCY_FAILED: (
            "A job that it had to wait for did not end as asked, so it can never start.",
            "Look at that job, mend it, and submit both again.",
        ),
        Reason.START_DEADLINE: (
            "It had not started within the time that its submitter gave it.",
            "Submit it again, with a longer --start-within or with less to ask for.",
        ),
        Reason.STALE: (
            "The attempt was no longer wanted by the time it was reported.",
            "Nothing to do.",
        ),
        Reason.DRIVER_MISMATCH: (
            "The node's NVIDIA driver and its library are of different versions.",
            "Restart the node, or load the driver that was installed.",
        ),
        Reason.DRIVER_MISSING: (
            "The node has no working NVIDIA driver.",
            "Install the driver, or simulate cards.",
        ),
        Reason.NVML_HUNG: (
            "The NVIDIA library on the node does not answer; running jobs are left alone.",
            "Look at the kernel's log on that node for Xid lines; a restart of the node may be needed.",
        ),
        Reason.MPS_UNHEALTHY: (
            "The card's MPS daemon does not answer as it should.",
            "Have an admin look at the MPS log on that node; nothing new starts on this card meanwhile.",
        ),
        Reason.ADMIN: (
            "An admin or operator did this.",
            "Ask them; `gpushare audit` shows who and when.",
        ),
    }
)
