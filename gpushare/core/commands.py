"""What may be asked of the cluster: every command, and the result type of deciding one.

Pure. A command is data that the shell has already authenticated and authorised; `decide.decide` turns it into events
or a Rejection. Commands carry raw values: checking them is the core's work, so that every door gives the same answer.
"""

from __future__ import annotations

import msgspec

from gpushare.core.kinds import (
    AttemptState,
    OnDisconnect,
    OnTaskFailure,
    Power,
    PreemptionMode,
    Qos,
    Role,
    Topology,
    VisibleDevices,
)
from gpushare.core.model import Dependency, EarlySignal, GpuCondition, GpuInventory, Principal, TenantSettings
from gpushare.reasons import Reason
from gpushare.weights import PolicyWeights


class Rejection(msgspec.Struct, frozen=True):
    """An expected refusal: a value, never an exception. `field` names the offending input where there is one."""

    reason: Reason
    detail: str
    field: str = ""
    metadata: dict[str, str] = {}


class RawResources(msgspec.Struct, frozen=True):
    """A resource request as it came in: None is unset, any integer may stand in a number."""

    gpus: int | None = None
    gpu_milli: int | None = None
    gpu_memory_mib: int | None = None
    cpu_milli: int | None = None
    memory_mib: int | None = None
    gpu_model: str = ""
    min_gpu_memory_mib: int | None = None
    node_labels: dict[str, str] = {}
    min_enforcement: int = 0


class RawJob(msgspec.Struct, frozen=True):
    """A job as it came in, unchecked. `name` None is unset, "" is an error; durations in ms, None is unset."""

    argv: tuple[str, ...] = ()
    script: bytes = b""
    name: str | None = None
    display_name: str = ""
    env: dict[str, str] = {}
    captured_env: dict[str, str] = {}
    working_directory: str = ""
    resources: RawResources = RawResources()
    tasks: int = 0
    array_indexes: tuple[int, ...] = ()
    max_run_ms: int | None = None
    priority: int | None = None
    max_retries: int = 0
    on_disconnect: OnDisconnect | None = None
    grace_ms: int | None = None
    labels: dict[str, str] = {}
    pty: bool = False
    # 0 is unset, here and below.
    min_tasks: int = 0
    qos: Qos | None = None
    preemption: PreemptionMode | None = None
    on_task_failure: OnTaskFailure | None = None
    topology: Topology | None = None
    # Keys of jobs or arrays ("vision/42"), which need not exist.
    after: tuple[Dependency, ...] = ()
    array_max_running: int = 0
    start_within_ms: int | None = None
    # "" is unset.
    output_path: str = ""
    error_path: str = ""
    visible_devices: VisibleDevices | None = None
    early_signal: EarlySignal | None = None
    requeue_exit_codes: tuple[int, ...] = ()
    stdin: bool = False
    window_rows: int = 0
    window_columns: int = 0


class Command(msgspec.Struct, frozen=True):
    """Base of all commands."""


class SubmitJobs(Command, frozen=True):
    """Admit all or none. `validate_only` checks and admits nothing."""

    tenant: str
    jobs: tuple[RawJob, ...]
    validate_only: bool = False


class CancelJob(Command, frozen=True):
    """`job` is a job key, "vision/42"."""

    job: str


class ExtendJob(Command, frozen=True):
    """A longer time limit: by `longer_by_ms`, or `max_run_ms` in all; exactly one of the two."""

    job: str
    longer_by_ms: int | None = None
    max_run_ms: int | None = None


class RequeueJob(Command, frozen=True):
    """Stop it and queue it again at its place."""

    job: str


class OpenConnection(Command, frozen=True):
    """A person wants a two-way connection to one running task. `kind` is "attach", "exec" or "forward"; `target` is the
    command, or the port."""

    job: str
    task: int
    kind: str
    target: str = ""


class CreateTenant(Command, frozen=True):
    tenant: str
    settings: TenantSettings


class UpdateTenant(Command, frozen=True):
    tenant: str
    settings: TenantSettings


class DeleteTenant(Command, frozen=True):
    tenant: str


class CreateToken(Command, frozen=True):
    """`token_id` and `sha256` are made by the shell: the core draws no random numbers. `ttl_ms` None: no expiry."""

    token_id: str
    sha256: str
    user: str
    role: Role
    tenant: str = ""
    unix_user: str = ""
    ttl_ms: int | None = None


class RevokeToken(Command, frozen=True):
    token_id: str


class IssueLoginToken(Command, frozen=True):
    """`node` says that `unix_user`, a member of `groups`, is logged in there. `tenant` is the one that the person asked
    for, "" where the settings of the tenants say."""

    node: str
    unix_user: str
    groups: tuple[str, ...]
    tenant: str
    token_id: str
    sha256: str
    ttl_ms: int


class CreateJoinToken(Command, frozen=True):
    node: str
    sha256: str
    ttl_ms: int


class EnrollNode(Command, frozen=True):
    """`secret_sha256` is the join secret's; the token is the node's new credential."""

    secret_sha256: str
    instance_id: str
    token_id: str
    token_sha256: str


class CordonNode(Command, frozen=True):
    node: str
    detail: str = ""
    drain: bool = False
    reason: Reason = Reason.ADMIN


class UncordonNode(Command, frozen=True):
    node: str


class DeclareNodeDead(Command, frozen=True):
    node: str


class SetNode(Command, frozen=True):
    """`compute_overcommit_milli`: shares on each card of the node may add up to so many thousandths. `trust_logins`:
    its word about who is logged in there counts. None leaves either."""

    node: str
    compute_overcommit_milli: int | None = None
    trust_logins: bool | None = None


class CreateReservation(Command, frozen=True):
    """Keep capacity for `tenant` (and of it for `users`, where named) from `start_ms` to `end_ms`, or close whole
    `nodes` for `maintenance`. One of `gpus` whole cards, or `gpu_milli` and `gpu_memory_mib` of one card; a model, and
    nodes that they must be on, where named. It comes again every `repeat_ms` (0: once) until `until_ms` (0: for ever).
    `force` makes it although jobs without a known end may still be there."""

    name: str
    tenant: str = ""
    users: tuple[str, ...] = ()
    maintenance: bool = False
    nodes: tuple[str, ...] = ()
    gpus: int | None = None
    gpu_milli: int | None = None
    gpu_memory_mib: int | None = None
    gpu_model: str = ""
    start_ms: int = 0
    end_ms: int = 0
    repeat_ms: int = 0
    until_ms: int = 0
    detail: str = ""
    force: bool = False


class DeleteReservation(Command, frozen=True):
    name: str


class ApplyRepack(Command, frozen=True):
    """Carry out the moves of these jobs as a new plan finds them; a job that the plan no longer moves is refused."""

    jobs: tuple[str, ...]


class AttemptReport(msgspec.Struct, frozen=True):
    """What an agent says of one attempt."""

    attempt: str
    state: AttemptState
    reason: str = ""
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    containment: str = ""


class SyncNode(Command, frozen=True):
    """An agent's whole truth, from a live session of `node`."""

    node: str
    instance_id: str
    boot_id: str
    start_counter: int
    agent_version: str
    cpu_milli: int
    memory_mib: int
    labels: dict[str, str]
    containment: str
    driver_version: str
    gpus: tuple[GpuInventory, ...]
    conditions: tuple[GpuCondition, ...] = ()
    attempts: tuple[AttemptReport, ...] = ()
    # Where other nodes reach it; "": not known.
    address: str = ""
    # Directories that it shares with others; (): not known.
    shared_paths: tuple[str, ...] = ()
    # What is wrong with how the host is set up, and what mends it: one sentence each.
    warnings: tuple[str, ...] = ()


class ReportAttempt(Command, frozen=True):
    node: str
    report: AttemptReport


class ReportRebooted(Command, frozen=True):
    """Another boot of the node began, and nothing on its disk tells how this attempt ended."""

    node: str
    attempt: str


class EndAttempt(Command, frozen=True):
    """One attempt's end that the scheduler itself knows of: its node was declared dead, or its lease has lapsed."""

    attempt: str
    state: AttemptState
    reason: Reason
    detail: str


class ReportConditions(Command, frozen=True):
    node: str
    conditions: tuple[GpuCondition, ...]


class NodeSessionClosed(Command, frozen=True):
    """The node's session ended and none has taken its place."""

    node: str


class NodeLeaseExpired(Command, frozen=True):
    """The lease ran out unrenewed."""

    node: str


class NodeLeaseLapsed(Command, frozen=True):
    """So long after the last renewal that tasks with stop_and_requeue have surely stopped themselves."""

    node: str


class Bootstrap(Command, frozen=True):
    """First start on an empty store: a tenant, and an admin's token bound to it."""

    tenant: str
    user: str
    unix_user: str
    token_id: str
    sha256: str
    settings: TenantSettings = TenantSettings()


class Housekeep(Command, frozen=True):
    """Let go of what is old enough: ended jobs (to the history table) and request records."""

    archive_before_ms: int
    most: int = 5000


class CoreSettings(msgspec.Struct, frozen=True):
    """Caps and policy numbers, from the configuration. Times in ms, sizes in bytes."""

    display_name_max_chars: int = 200
    env_max_vars: int = 256
    env_max_bytes: int = 64 * 1024
    argv_max_bytes: int = 1024 * 1024
    labels_max: int = 64
    label_max_chars: int = 256
    array_max: int = 1000
    tasks_max: int = 1024
    batch_max: int = 1000
    request_id_max_chars: int = 128
    max_run_ms_max: int = 366 * 24 * 3600 * 1000
    grace_ms_max: int = 24 * 3600 * 1000
    retries_max: int = 100
    # How often a job may be queued again by its exit code.
    requeues_max: int = 100
    priority_max: int = 10_000
    lease_ttl_ms: int = 15_000
    infra_retries: int = 5
    infra_backoff_ms: int = 1_000
    infra_backoff_max_ms: int = 60_000
    retry_backoff_ms: int = 1_000
    gpus_per_node_max: int = 64
    placements_per_cycle: int = 256
    policy: str = "price_fit"
    weights: PolicyWeights = PolicyWeights()
    # Of decayed usage: what was used so long ago counts half.
    fair_share_half_life_ms: int = 7 * 24 * 3600 * 1000
    # How long a borrower runs at least before a reclaim, where its tenant says nothing else.
    min_run_ms: int = 0
    # Blocked jobs at the head of the order that get a future start which nobody may delay.
    backfill_depth: int = 1
    # For a blocked job that has waited for longer the best place is kept free until it starts.
    starvation_after_ms: int = 3600 * 1000
    # How strongly measured load steers shares away from busy cards, from 0.0 (not at all) to 1.0.
    load_weight: float = 0.1
    # Where the tasks of gangs meet, at their first task's node: below what the kernel gives to outgoing connections,
    # and where programs of this kind expect it.
    gang_first_port: int = 29_500
    gang_last_port: int = 30_499
    # A node that was idle for so long is put to sleep; 0: never. So many stay awake all the same.
    power_idle_ms: int = 0
    power_keep_nodes: int = 0
    # A node that is not back so long after it was asked to wake has failed to; what failed is not tried again sooner.
    power_wake_timeout_ms: int = 600_000

    @property
    def gang_ports(self) -> range:
        return range(self.gang_first_port, self.gang_last_port + 1)


class Outcome(msgspec.Struct, frozen=True):
    """What an accepted command did: its events, in order, and the names of what it made or touched."""

    events: tuple[object, ...] = ()
    names: tuple[str, ...] = ()
    # Notices for the caller, by name: "dropped_env", "default_request_used", those of `notices`.
    notices: dict[str, tuple[str, ...]] = {}
    # This request id had done it before; nothing was done now.
    is_repeated: bool = False
    # There is more of the same to do.
    is_partial: bool = False


class Call(msgspec.Struct, frozen=True):
    """Who asks, and under which request id (empty for the system's own commands). `body_sha256` tells a repetition of
    the same request from another one that reuses its id."""

    principal: Principal
    request_id: str = ""
    method: str = ""
    body_sha256: str = ""


class ReportPower(Command, frozen=True):
    """The end of the admin's hook that was to bring `node` to `power`. `detail` says why it failed, "" where it did
    not."""

    node: str
    power: Power
    detail: str = ""
