"""The journal's facts: what happened, never what was asked.

Pure: msgspec alone. Each event is applied by `state.apply` and by nothing else; replay never runs policy. A field may
be added with a default, never renamed or given another meaning: old journals must read forever.
"""

from __future__ import annotations

import msgspec

from gpushare.core.kinds import AttemptState, JobState, Power
from gpushare.core.model import SYSTEM, GpuCondition, GpuInventory, JobSpec, JoinToken, Principal, Slice, TenantSettings
from gpushare.core.promises import CapacityHold, Reservation
from gpushare.reasons import Reason


class Event(msgspec.Struct, frozen=True, tag=True):
    """The kind of an event is its class name."""

    @property
    def kind(self) -> str:
        return type(self).__name__


class TermStarted(Event, frozen=True):
    """A scheduler began to lead: no node is ready until its session has synced with it."""

    holder: str
    # Of decayed usage, from here on.
    half_life_ms: int = 7 * 24 * 3600 * 1000


class TenantCreated(Event, frozen=True):
    tenant: str
    settings: TenantSettings


class TenantUpdated(Event, frozen=True):
    tenant: str
    settings: TenantSettings


class TenantDeleted(Event, frozen=True):
    """The tenant stays as a tombstone with its counter."""

    tenant: str


class TokenCreated(Event, frozen=True):
    token_id: str
    sha256: str
    principal: Principal
    expires_ms: int = 0


class TokenRevoked(Event, frozen=True):
    token_id: str


class LoginTokenIssued(Event, frozen=True):
    """A person got a short-lived token on the word of a trusted host."""

    node: str
    token_id: str
    sha256: str
    principal: Principal
    expires_ms: int


class TokensForgotten(Event, frozen=True):
    """Login tokens whose time is long over left the state."""

    token_ids: tuple[str, ...]


class NodeTrustChanged(Event, frozen=True):
    """Whether the node's word about who is logged in there counts."""

    node: str
    trust_logins: bool


class JoinTokenCreated(Event, frozen=True):
    join: JoinToken


class NodeEnrolled(Event, frozen=True):
    """A join secret was used up; the node's earlier tokens are revoked with it."""

    node: str
    join_sha256: str
    token_id: str
    token_sha256: str
    instance_id: str


class NodeSynced(Event, frozen=True):
    """A session told everything it knows: the node is ready."""

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
    address: str = ""
    shared_paths: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class NodeDisconnected(Event, frozen=True):
    """Its session ended: nothing new is placed there until another one has synced. What runs there runs on."""

    node: str


class NodeSilent(Event, frozen=True):
    """The lease ran out unrenewed: its live attempts are UNKNOWN and keep their capacity."""

    node: str


class NodeCordoned(Event, frozen=True):
    node: str
    reason: Reason
    detail: str = ""
    drain: bool = False


class NodeUncordoned(Event, frozen=True):
    node: str


class NodeDeclaredDead(Event, frozen=True):
    node: str


class NodeOvercommitted(Event, frozen=True):
    """Shares on each card of the node may add up to so many thousandths."""

    node: str
    compute_overcommit_milli: int


class NodePowerRequested(Event, frozen=True):
    """The admin's hook is to put the node to sleep, or to wake it. With a `detail` no hook is run: the last one failed,
    or the node did not come back, and `power` is what counts from now on."""

    node: str
    power: Power
    detail: str = ""


class ReservationCreated(Event, frozen=True):
    reservation: Reservation


class ReservationDeleted(Event, frozen=True):
    name: str


class GpuConditionsChanged(Event, frozen=True):
    node: str
    conditions: tuple[GpuCondition, ...]


class JobsCreated(Event, frozen=True):
    """One number of the tenant's counter: one job, or the children of one array (`array_indexes`)."""

    tenant: str
    number: int
    spec: JobSpec
    array_indexes: tuple[int, ...] = ()
    request_key: str = ""

    def ids(self) -> tuple[str, ...]:
        if not self.array_indexes:
            return (str(self.number),)
        return tuple(f"{self.number}_{i}" for i in self.array_indexes)


class RequestCompleted(Event, frozen=True):
    """What a request id did, so that its repetition does nothing more."""

    key: str
    method: str
    body_sha256: str
    names: tuple[str, ...]
    jobs: int = 0


class RequestsForgotten(Event, frozen=True):
    keys: tuple[str, ...]


class JobCancelRequested(Event, frozen=True):
    job: str


class JobExtended(Event, frozen=True):
    """Its tasks may run for `max_run_ms` from their start on."""

    job: str
    max_run_ms: int


class AttemptsAllocated(Event, frozen=True):
    """A gang was placed, or grew (`grow`): capacity is held from here on. A hold of the job ends with it."""

    job: str
    round: int
    slices: tuple[Slice, ...]
    grow: bool = False
    master_port: int = 0


class CapacityHeld(Event, frozen=True):
    """The victims were told to make way, and what they free is for `hold.job` alone."""

    hold: CapacityHold


class HoldReleased(Event, frozen=True):
    job: str
    detail: str = ""


class AttemptSuspendRequested(Event, frozen=True):
    """Give up the cards, keep the process."""

    attempt: str
    reason: Reason
    detail: str = ""
    claimant: str = ""


class AttemptResumed(Event, frozen=True):
    """A suspended attempt has cards of its node again: capacity is held from here on."""

    attempt: str
    slice: Slice


class AttemptStopRequested(Event, frozen=True):
    attempt: str
    reason: Reason
    detail: str = ""
    # The job that it makes way for, where there is one.
    claimant: str = ""


class AttemptChanged(Event, frozen=True):
    """A live attempt's state as its agent reports it."""

    attempt: str
    state: AttemptState
    started_ms: int | None = None
    containment: str = ""


class AttemptEnded(Event, frozen=True):
    """The one end of an attempt: its capacity is free."""

    attempt: str
    state: AttemptState
    reason: Reason
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    started_ms: int | None = None
    # When it ended, where its agent told of that later; None is the time of the entry.
    ended_ms: int | None = None


class JobRequeued(Event, frozen=True):
    """The next round may start at `not_before_ms`. `infra`: free of the job's own budget; `preempted_for`: it made way
    for that job; `asked`: its exit code or a person asked for it. Neither of the last two counts as a retry."""

    job: str
    infra: bool
    reason: Reason
    not_before_ms: int
    detail: str = ""
    preempted_for: str = ""
    asked: bool = False


class JobEnded(Event, frozen=True):
    job: str
    state: JobState
    reason: Reason
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None


class ConnectionOpened(Event, frozen=True):
    """A person was let in to a running task, which changes nothing: it stands here for the audit. `connection` is
    "attach", "exec" or "forward"; `target` the command or the port."""

    job: str
    attempt: str
    connection: str
    target: str = ""


class JobsArchived(Event, frozen=True):
    """Ended jobs left memory for the history table, written in the same transaction."""

    jobs: tuple[str, ...]


AnyEvent = (
    TermStarted
    | TenantCreated
    | TenantUpdated
    | TenantDeleted
    | TokenCreated
    | TokenRevoked
    | LoginTokenIssued
    | TokensForgotten
    | NodeTrustChanged
    | JoinTokenCreated
    | NodeEnrolled
    | NodeSynced
    | NodeDisconnected
    | NodeSilent
    | NodeCordoned
    | NodeUncordoned
    | NodeDeclaredDead
    | NodeOvercommitted
    | NodePowerRequested
    | ReservationCreated
    | ReservationDeleted
    | GpuConditionsChanged
    | JobsCreated
    | RequestCompleted
    | RequestsForgotten
    | JobCancelRequested
    | JobExtended
    | AttemptsAllocated
    | CapacityHeld
    | HoldReleased
    | AttemptSuspendRequested
    | AttemptResumed
    | AttemptStopRequested
    | AttemptChanged
    | AttemptEnded
    | JobRequeued
    | JobEnded
    | ConnectionOpened
    | JobsArchived
)


class Entry(msgspec.Struct, frozen=True):
    """One line of the journal: an event, when, under which term, by whom and for which request."""

    seq: int
    at_ms: int
    term: int
    event: AnyEvent
    principal: Principal = SYSTEM
    request_id: str = ""
