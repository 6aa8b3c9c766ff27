"""The nouns of the cluster: requests, jobs, attempts, cards, nodes, tenants, tokens.

Pure: msgspec and enum alone. Frozen structs are facts (what was asked, who asked); the others are the state's own
records, which `state.apply` alone changes. Resources are integers per device: thousandths of a card and MiB, never
floats and never a per-node sum.
"""

from __future__ import annotations

import msgspec

from gpushare.core.kinds import (
    AttemptState,
    DependencyKind,
    Enforcement,
    GpuState,
    JobState,
    NodeState,
    OnDisconnect,
    OnTaskFailure,
    Power,
    PreemptionMode,
    Qos,
    Role,
    SignalTarget,
    Topology,
    VisibleDevices,
)
from gpushare.reasons import Reason

WHOLE_CARD_MILLI = 1000
DEFAULT_GRACE_MS = 10_000
CPU_JOB_CPU_MILLI = 1000
CPU_JOB_MEMORY_MIB = 2048


ENDED_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ENDED_ATTEMPT_STATES = frozenset({AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.STOPPED})
PLACEABLE_GPU_STATES = frozenset({GpuState.HEALTHY, GpuState.DEGRADED})

EXCLUSIVE_TIER = "exclusive"
MPS_V2_TIER = "mps-v2"
# Best first: what a share gets on a card that offers several.
SHARE_TIERS = (MPS_V2_TIER, "timeslice")
MPS_CLIENT_SLOTS = 48


class Principal(msgspec.Struct, frozen=True):
    """Who did it: carried by every event. `unix_user` is the account that this person's jobs run as."""

    user: str
    role: Role
    tenant: str = ""
    unix_user: str = ""
    node: str = ""


SYSTEM = Principal(user="system", role=Role.SYSTEM)


class TaskRequest(msgspec.Struct, frozen=True, cache_hash=True):
    """What each task asks for. Exactly one of: `gpus` whole cards, a share (`gpu_milli` and/or `gpu_memory_mib`), or
    neither (`gpus == 0`, a CPU job). None means: follows from the card or node it lands on."""

    gpus: int = 0
    gpu_milli: int | None = None
    gpu_memory_mib: int | None = None
    cpu_milli: int | None = None
    memory_mib: int | None = None
    # One model, or several joined by "|".
    gpu_model: str = ""
    min_gpu_memory_mib: int = 0
    # Sorted pairs, so that equal requests are equal and hashable.
    node_labels: tuple[tuple[str, str], ...] = ()
    min_enforcement: Enforcement = Enforcement.NONE
    # Never asked for: set where placing is about, see `shared_paths.placed_request`.
    shared_path: str = ""

    @property
    def gpu_models(self) -> tuple[str, ...]:
        """The models that will do; empty: any."""
        return tuple(self.gpu_model.split("|")) if self.gpu_model else ()

    @property
    def is_share(self) -> bool:
        return self.gpu_milli is not None or self.gpu_memory_mib is not None

    @property
    def is_cpu(self) -> bool:
        return self.gpus == 0 and not self.is_share


class Dependency(msgspec.Struct, frozen=True):
    """`job` is a job's key, or an array's ("vision/42"), which then stands for all its children."""

    job: str
    kind: DependencyKind


class EarlySignal(msgspec.Struct, frozen=True):
    """`signal` ("USR1") goes to each task `before_ms` before its time limit ends it."""

    signal: str
    before_ms: int
    target: SignalTarget = SignalTarget.LEADER


class JobSpec(msgspec.Struct, frozen=True):
    """What was submitted, after checks and defaults. `env` holds the explicit names, `captured_env` the others."""

    argv: tuple[str, ...]
    resources: TaskRequest
    working_directory: str
    name: str = ""
    display_name: str = ""
    script: bytes = b""
    env: dict[str, str] = {}
    captured_env: dict[str, str] = {}
    tasks: int = 1
    max_run_ms: int = 0
    priority: int = 0
    max_retries: int = 0
    on_disconnect: OnDisconnect = OnDisconnect.KEEP
    grace_ms: int = DEFAULT_GRACE_MS
    labels: dict[str, str] = {}
    pty: bool = False
    unix_user: str = ""
    # 0: all `tasks` start together; else at least so many, the others as room appears.
    min_tasks: int = 0
    qos: Qos = Qos.BURST
    preemption: PreemptionMode = PreemptionMode.REQUEUE
    on_task_failure: OnTaskFailure = OnTaskFailure.STOP
    topology: Topology = Topology.ANY
    after: tuple[Dependency, ...] = ()
    # Of an array: how many children may run at once; 0: no cap.
    array_max_running: int = 0
    # Give up when it has not started so long after its submission; 0: never.
    start_within_ms: int = 0
    # Patterns of files (`gpushare.outputpath`) for stdout and stderr; "": none, where stderr follows stdout.
    output_path: str = ""
    error_path: str = ""
    visible_devices: VisibleDevices = VisibleDevices.UUID
    early_signal: EarlySignal | None = None
    # A task that ends with one of them has the job queued again, at its place and free of `max_retries`; sorted.
    requeue_exit_codes: tuple[int, ...] = ()
    # It reads what connections send; otherwise its standard input is empty.
    stdin: bool = False
    # Of its terminal as it starts; 0: as an agent finds right.
    window_rows: int = 0
    window_columns: int = 0

    @property
    def least_tasks(self) -> int:
        return self.min_tasks or self.tasks


class Slice(msgspec.Struct, frozen=True):
    """What one task attempt holds on one node. For whole cards `gpu_milli` is 1000 and `gpu_memory_mib` the card's
    usable memory, each per card. `charge_milli` is the part of the cards nobody else can have, summed over them."""

    task: int
    node: str
    gpu_uuids: tuple[str, ...] = ()
    gpu_milli: int = 0
    gpu_memory_mib: int = 0
    # Memory held on each card, in the order of `gpu_uuids` (cards of one node may differ).
    held_mib: tuple[int, ...] = ()
    cpu_milli: int = 0
    memory_mib: int = 0
    charge_milli: int = 0
    tier: str = ""
    enforcement: Enforcement = Enforcement.NONE
    whole: bool = False


class Attempt(msgspec.Struct):
    """One try of one task. `desired_stop` is the scheduler's wish, `state` the agent's word."""

    tenant: str
    job_id: str
    task: int
    number: int
    slice: Slice
    term: int
    allocated_ms: int
    state: AttemptState = AttemptState.ALLOCATED
    desired_stop: bool = False
    stop_reason: Reason | None = None
    stop_detail: str = ""
    # When it was told to stop or to suspend; its grace counts from there.
    told_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    reason: Reason | None = None
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    containment: str = ""
    # The scheduler wants its cards back without its end; it gives them up once its agent reports SUSPENDED.
    desired_suspend: bool = False
    suspended_ms: int | None = None
    # Since when it holds cards, where that is not its allocation, and what the stretches before that were charged.
    held_since_ms: int | None = None
    charged_milli_ms: int = 0
    # For whom it is stopped or suspended: a job's key.
    claimant: str = ""
    # The agent has told us of it at least once, so that a missing trace is a loss and not a late order.
    seen: bool = False

    @property
    def id(self) -> str:
        return f"{self.tenant}.{self.job_id}.{self.task}.{self.number}"

    @property
    def job_key(self) -> str:
        return f"{self.tenant}/{self.job_id}"

    @property
    def is_live(self) -> bool:
        return self.state not in ENDED_ATTEMPT_STATES


class Job(msgspec.Struct):
    """A job and all its attempts. `round` numbers the launches: attempts that were placed together share one. A gang
    began with `base_round` and may have grown, or replaced a task, in later ones. Within a tenant's user the order is
    priority, then `submit_seq`. An extension is in `spec`, like what was submitted."""

    tenant: str
    id: str
    spec: JobSpec
    created_ms: int
    created_by: Principal
    submit_seq: int
    array_id: str = ""
    array_index: int | None = None
    request_key: str = ""
    state: JobState = JobState.QUEUED
    round: int = 0
    base_round: int = 0
    attempts: list[Attempt] = []
    infra_retries: int = 0
    retries: int = 0
    preemptions: int = 0
    # Whose claim preempted it last: a job's key.
    preempted_for: str = ""
    # How often it was queued again by its exit code or on a person's word: no retry of either kind.
    requeues: int = 0
    # How many of these its exit codes asked for: they alone are limited.
    code_requeues: int = 0
    # The time limit that it was submitted with, where it was extended since.
    submitted_run_ms: int | None = None
    # TCP port at the first task's node where the tasks of the present gang meet.
    master_port: int = 0
    not_before_ms: int = 0
    cancelled_by: Principal | None = None
    reason: Reason | None = None
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    # The longest path published by any node that its directory lies under; "": no node says anything of it.
    shared_path: str = ""

    @property
    def key(self) -> str:
        return f"{self.tenant}/{self.id}"

    @property
    def array_key(self) -> str:
        """Of the array that it is a child of."""
        return f"{self.tenant}/{self.array_id}"

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED_JOB_STATES

    def current(self) -> list[Attempt]:
        """The last attempt of each task since the present gang began, in task order; empty before the first."""
        if not self.base_round:
            return []
        last = {a.task: a for a in self.attempts if a.number >= self.base_round}
        return [last[task] for task in sorted(last)]

    def live(self) -> list[Attempt]:
        return [a for a in self.attempts if a.is_live]


class TierOffer(msgspec.Struct, frozen=True):
    tier: str
    enforcement: Enforcement
    absent_because: str = ""
    # A job of this tier can give up its card without ending.
    can_suspend: bool = False


class GpuInventory(msgspec.Struct, frozen=True):
    """A card as its agent registers it. `usable_mib` is what slices may have together."""

    uuid: str
    index: int
    model: str
    total_mib: int
    usable_mib: int
    tiers: tuple[TierOffer, ...] = ()
    simulated: bool = False
    # Cards of one node with the same text talk to each other faster than to others; "": not known.
    domain: str = ""


class Stranger(msgspec.Struct, frozen=True):
    pid: int
    user: str
    memory_mib: int


class GpuCondition(msgspec.Struct, frozen=True):
    uuid: str
    state: GpuState = GpuState.HEALTHY
    reason: str = ""
    detail: str = ""
    strangers: tuple[Stranger, ...] = ()


class Hold(msgspec.Struct, frozen=True):
    """What one attempt holds on one card."""

    milli: int
    mib: int


class Gpu(msgspec.Struct):
    """A card and its ledger. `used_milli` and `used_mib` are the sums over `holds`, kept by `state.apply`."""

    inventory: GpuInventory
    condition: GpuCondition
    present: bool = True
    # Thousandths that shares may have together: 1000, more where the admin overcommits compute.
    capacity_milli: int = WHOLE_CARD_MILLI
    used_milli: int = 0
    used_mib: int = 0
    holds: dict[str, Hold] = {}

    @property
    def uuid(self) -> str:
        return self.inventory.uuid

    @property
    def stranger_mib(self) -> int:
        return sum(s.memory_mib for s in self.condition.strangers)

    @property
    def free_milli(self) -> int:
        return self.capacity_milli - self.used_milli

    @property
    def free_mib(self) -> int:
        return self.inventory.usable_mib - self.used_mib - self.stranger_mib

    @property
    def is_placeable(self) -> bool:
        return self.present and self.condition.state in PLACEABLE_GPU_STATES


class Node(msgspec.Struct):
    """A host with an enrolled agent. `ready`: its session has synced with this leader."""

    name: str
    created_ms: int
    instance_id: str = ""
    boot_id: str = ""
    start_counter: int = 0
    state: NodeState = NodeState.ACTIVE
    ready: bool = False
    cordoned: bool = False
    # Cordoned for good use: shown as DRAINING while reachable.
    drain: bool = False
    reason: Reason | None = None
    detail: str = ""
    cpu_milli: int = 0
    memory_mib: int = 0
    used_cpu_milli: int = 0
    used_memory_mib: int = 0
    labels: dict[str, str] = {}
    containment: str = ""
    agent_version: str = ""
    driver_version: str = ""
    last_seen_ms: int = 0
    # Where other nodes reach it.
    address: str = ""
    # Directories that it shares with others; (): not known.
    shared_paths: tuple[str, ...] = ()
    # What its agent finds wrong with how the host is set up.
    warnings: tuple[str, ...] = ()
    power: Power = Power.ON
    # When that was asked for, and why what was asked before did not come about; "": nothing went wrong.
    power_since_ms: int = 0
    power_detail: str = ""
    # Since when nothing runs on it, for power saving; 0 while something does.
    idle_since_ms: int = 0
    compute_overcommit_milli: int = WHOLE_CARD_MILLI
    # Its word about who is logged in there counts.
    trust_logins: bool = False
    gpus: dict[str, Gpu] = {}
    # Live attempts on it.
    attempts: set[str] = set()

    @property
    def is_placeable(self) -> bool:
        return self.ready and not self.cordoned and self.state is NodeState.ACTIVE and self.power is Power.ON

    @property
    def free_cpu_milli(self) -> int:
        return self.cpu_milli - self.used_cpu_milli

    @property
    def free_memory_mib(self) -> int:
        return self.memory_mib - self.used_memory_mib


class ModelQuota(msgspec.Struct, frozen=True):
    """A tenant's guarantee and limit on the cards of one model, in charge units."""

    model: str
    guaranteed_milli: int = 0
    limit_milli: int | None = None


class TenantSettings(msgspec.Struct, frozen=True):
    """What an admin sets. Charge units are thousandths of a card; None is no limit."""

    display_name: str = ""
    limit_milli: int | None = None
    max_queued_jobs: int = 10_000
    default_request: TaskRequest = TaskRequest(gpus=1)
    max_priority: int = 100
    parent: str = ""
    guaranteed_milli: int = 0
    weight: int = 1
    # One a model, sorted by it.
    model_quotas: tuple[ModelQuota, ...] = ()
    max_running_jobs: int | None = None
    max_running_per_user: int | None = None
    cpu_limit_milli: int | None = None
    memory_limit_mib: int | None = None
    # How long its borrowers run at least before a reclaim; None: the cluster's setting.
    min_run_ms: int | None = None
    # Whose people it takes on trusted hosts; sorted.
    unix_groups: tuple[str, ...] = ()
    unix_users: tuple[str, ...] = ()
    # Nobody outside sees its jobs, and its people see no others'; also of all tenants below it.
    isolated: bool = False
    # The time limit of a job that names none, and the longest that one may have; the smallest cap up the tree counts.
    default_run_ms: int | None = None
    max_run_ms: int | None = None

    def model_quota(self, model: str) -> ModelQuota:
        return next((q for q in self.model_quotas if q.model == model), ModelQuota(model))


class Usage(msgspec.Struct):
    """Charge (thousandths of a card) times milliseconds held, over ended attempts."""

    charge_milli_ms: int = 0
    attempts: int = 0


class Account(msgspec.Struct):
    """Decayed usage. `decayed` is charge times ms, halved every half-life, as of `at_ms`; since then `rate_milli` is
    held. `ledger.average_milli` gives it for a moment."""

    decayed: float = 0.0
    rate_milli: int = 0
    at_ms: int = 0


class Person(msgspec.Struct):
    """One user of one tenant: what runs now, and the decayed usage."""

    running_jobs: int = 0
    account: Account = msgspec.field(default_factory=Account)


class Tenant(msgspec.Struct):
    """A deleted tenant stays as a tombstone with its counter. The ledger (charge and after) covers live attempts."""

    name: str
    created_ms: int
    settings: TenantSettings = TenantSettings()
    next_number: int = 1
    deleted: bool = False
    charge_milli: int = 0
    queued_jobs: int = 0
    running_jobs: int = 0
    usage: dict[str, Usage] = {}
    charge_by_model: dict[str, int] = {}
    # Charge of jobs with QoS guaranteed.
    guaranteed_charge_milli: int = 0
    used_cpu_milli: int = 0
    used_memory_mib: int = 0
    account: Account = msgspec.field(default_factory=Account)
    people: dict[str, Person] = {}

    def person(self, user: str) -> Person:
        """The ledger of one user, made on first use."""
        found = self.people.get(user)
        if found is None:
            found = self.people[user] = Person()
        return found


class Token(msgspec.Struct):
    """A credential at rest: the SHA-256 of the secret in hex, and the principal it stands for. `login_node` is the
    host on whose word a person got it, "" for a token that an admin made."""

    id: str
    sha256: str
    principal: Principal
    created_ms: int
    expires_ms: int = 0
    revoked_ms: int = 0
    login_node: str = ""

    def is_live(self, now_ms: int) -> bool:
        """Neither revoked nor expired."""
        return not self.revoked_ms and (not self.expires_ms or self.expires_ms > now_ms)


class JoinToken(msgspec.Struct, frozen=True):
    """A single-use right to enrol as one node."""

    node: str
    sha256: str
    expires_ms: int


class RequestRecord(msgspec.Struct):
    """What a request id already did. `open_jobs` counts its jobs that have not ended; `expires_ms` 0: it stays."""

    key: str
    method: str
    body_sha256: str
    names: tuple[str, ...]
    open_jobs: int = 0
    expires_ms: int = 0


def attempt_parts(attempt_id: str) -> tuple[str, int, int] | None:
    """("vision/42_3", task, number) of an attempt id, or None when it is not one."""
    parts = attempt_id.split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts[2:]):
        return None
    return f"{parts[0]}/{parts[1]}", int(parts[2]), int(parts[3])
