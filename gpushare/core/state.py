"""The cluster's state and its only mutator, `ClusterState.apply`.

Pure: msgspec, bisect and the core's own modules. Live running, recovery, standby and simulation all apply the same
entries and reach the same state; no policy runs here. `check` states what must always hold and raises
`BrokenInvariant`. The indexes (queue, tokens by hash, arrays) are derived and never stored.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

import msgspec

from gpushare.core import ledger
from gpushare.core.events import (
    AttemptChanged,
    AttemptEnded,
    AttemptsAllocated,
    AttemptStopRequested,
    Entry,
    GpuConditionsChanged,
    JobCancelRequested,
    JobEnded,
    JobRequeued,
    JobsArchived,
    JobsCreated,
    JoinTokenCreated,
    NodeCordoned,
    NodeDeclaredDead,
    NodeDisconnected,
    NodeEnrolled,
    NodeSilent,
    NodeSynced,
    NodeUncordoned,
    RequestCompleted,
    RequestsForgotten,
    TenantCreated,
    TenantDeleted,
    TenantUpdated,
    TermStarted,
    TokenCreated,
    TokenRevoked,
)
from gpushare.core.lifecycle import check_attempt_move, check_job_move
from gpushare.core.model import (
    Attempt,
    AttemptState,
    Gpu,
    GpuCondition,
    GpuInventory,
    Job,
    JobState,
    JoinToken,
    Node,
    NodeState,
    Principal,
    RequestRecord,
    Role,
    Tenant,
    Token,
    attempt_parts,
)

REQUEST_RETENTION_MS = 24 * 3600 * 1000


class BrokenInvariant(AssertionError):
    """The state contradicts itself: the engine stops leading rather than limp on."""


class Snapshot(msgspec.Struct):
    """All that is stored of a state; the indexes are rebuilt from it."""

    seq: int = 0
    at_ms: int = 0
    term: int = 0
    submit_seq: int = 0
    tenants: dict[str, Tenant] = {}
    nodes: dict[str, Node] = {}
    jobs: dict[str, Job] = {}
    tokens: dict[str, Token] = {}
    join_tokens: dict[str, JoinToken] = {}
    requests: dict[str, RequestRecord] = {}


class ClusterState:
    """Everything the scheduler knows. `jobs` is keyed by "tenant/id", `join_tokens` and `tokens_by_sha` by hash."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        snap = snapshot or Snapshot()
        self.seq, self.at_ms, self.term, self.submit_seq = snap.seq, snap.at_ms, snap.term, snap.submit_seq
        self.tenants, self.nodes, self.jobs = snap.tenants, snap.nodes, snap.jobs
        self.tokens, self.join_tokens, self.requests = snap.tokens, snap.join_tokens, snap.requests
        self.tokens_by_sha: dict[str, Token] = {t.sha256: t for t in self.tokens.values()}
        self.queue: list[tuple[int, int, str]] = sorted(
            _queue_entry(j) for j in self.jobs.values() if j.state is JobState.QUEUED
        )
        self.arrays: dict[str, list[str]] = {}
        # Ended jobs, first end first.
        over = sorted((j.ended_ms or 0, j.submit_seq, j.key) for j in self.jobs.values() if j.is_ended)
        self.ended: dict[str, int] = {key: ended_ms for ended_ms, _, key in over}
        for job in self.jobs.values():
            self._index_array(job)

    def snapshot(self) -> Snapshot:
        """The stored part, sharing this state's records: encode it before anything else is applied."""
        return Snapshot(
            seq=self.seq,
            at_ms=self.at_ms,
            term=self.term,
            submit_seq=self.submit_seq,
            tenants=self.tenants,
            nodes=self.nodes,
            jobs=self.jobs,
            tokens=self.tokens,
            join_tokens=self.join_tokens,
            requests=self.requests,
        )

    def encode(self) -> bytes:
        """Canonical bytes of the stored part: equal states give equal bytes."""
        return msgspec.json.encode(self.snapshot(), order="deterministic")

    @classmethod
    def decode(cls, blob: bytes) -> ClusterState:
        return cls(msgspec.json.decode(blob, type=Snapshot))

    # -- reading

    def attempt(self, attempt_id: str) -> Attempt | None:
        """The attempt of that id, or None. Whole gangs are allocated, so its place follows from task and number."""
        parts = attempt_parts(attempt_id)
        job = self.jobs.get(parts[0]) if parts else None
        if parts is None or job is None:
            return None
        _, task, number = parts
        place = (number - 1) * job.spec.tasks + task
        if number < 1 or task >= job.spec.tasks or place >= len(job.attempts):
            return None
        found = job.attempts[place]
        return found if found.id == attempt_id else None

    def live_attempts(self, node: Node) -> list[Attempt]:
        """The live attempts on `node`, by id."""
        return [a for a in (self.attempt(i) for i in sorted(node.attempts)) if a is not None]

    def tenant(self, name: str) -> Tenant | None:
        """A tenant that exists; a tombstone is None."""
        found = self.tenants.get(name)
        return None if found is None or found.deleted else found

    # -- the only mutator

    def apply(self, entry: Entry) -> None:
        """Change the state by one fact. Raises BrokenInvariant when the fact cannot follow from the present state."""
        if entry.seq != self.seq + 1:
            raise BrokenInvariant(f"entry {entry.seq} does not follow {self.seq}")
        if entry.at_ms < self.at_ms:
            raise BrokenInvariant(f"entry {entry.seq}: time runs backwards, {entry.at_ms} < {self.at_ms}")
        self.seq, self.at_ms, self.term = entry.seq, entry.at_ms, entry.term
        _APPLY[type(entry.event)](self, entry.event, entry)

    # -- the parts of apply that several events share

    def set_job_state(self, job: Job, state: JobState) -> None:
        check_job_move(job, state)
        tenant = self.tenants[job.tenant]
        if job.state is JobState.QUEUED and state is not JobState.QUEUED:
            self._dequeue(job)
        _count(tenant, job.state, -1)
        job.state = state
        _count(tenant, state, +1)
        if state is JobState.QUEUED:
            insort(self.queue, _queue_entry(job))

    def add_job(self, job: Job) -> None:
        self.jobs[job.key] = job
        _count(self.tenants[job.tenant], job.state, +1)
        insort(self.queue, _queue_entry(job))
        self._index_array(job)

    def remove_job(self, key: str) -> None:
        job = self.jobs.pop(key)
        self.ended.pop(key, None)
        if job.array_id:
            siblings = self.arrays[f"{job.tenant}/{job.array_id}"]
            siblings.remove(key)
            if not siblings:
                del self.arrays[f"{job.tenant}/{job.array_id}"]

    def add_token(self, token: Token) -> None:
        self.tokens[token.id] = token
        self.tokens_by_sha[token.sha256] = token

    def must_attempt(self, attempt_id: str) -> Attempt:
        found = self.attempt(attempt_id)
        if found is None:
            raise BrokenInvariant(f"no attempt {attempt_id}")
        return found

    def _dequeue(self, job: Job) -> None:
        place = bisect_left(self.queue, _queue_entry(job))
        if place == len(self.queue) or self.queue[place][2] != job.key:
            raise BrokenInvariant(f"job {job.key} is not in the queue")
        del self.queue[place]

    def _index_array(self, job: Job) -> None:
        if job.array_id:
            self.arrays.setdefault(f"{job.tenant}/{job.array_id}", []).append(job.key)


def _queue_entry(job: Job) -> tuple[int, int, str]:
    return (-job.spec.priority, job.submit_seq, job.key)


_RUNNING_STATES = frozenset({JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED, JobState.CANCELLING})


def _count(tenant: Tenant, state: JobState, by: int) -> None:
    if state is JobState.QUEUED:
        tenant.queued_jobs += by
    elif state in _RUNNING_STATES:
        tenant.running_jobs += by


# -- tenants, tokens, requests


def _term_started(state: ClusterState, event: TermStarted, entry: Entry) -> None:
    for node in state.nodes.values():
        node.ready = False


def _tenant_created(state: ClusterState, event: TenantCreated, entry: Entry) -> None:
    if event.tenant in state.tenants:
        raise BrokenInvariant(f"tenant {event.tenant} exists, or is a tombstone")
    state.tenants[event.tenant] = Tenant(name=event.tenant, created_ms=entry.at_ms, settings=event.settings)


def _tenant_updated(state: ClusterState, event: TenantUpdated, entry: Entry) -> None:
    state.tenants[event.tenant].settings = event.settings


def _tenant_deleted(state: ClusterState, event: TenantDeleted, entry: Entry) -> None:
    tenant = state.tenants[event.tenant]
    if tenant.queued_jobs or tenant.running_jobs:
        raise BrokenInvariant(f"tenant {event.tenant} still has jobs")
    tenant.deleted = True
    for token in state.tokens.values():
        if token.principal.tenant == event.tenant and not token.revoked_ms:
            token.revoked_ms = entry.at_ms


def _token_created(state: ClusterState, event: TokenCreated, entry: Entry) -> None:
    state.add_token(
        Token(
            id=event.token_id,
            sha256=event.sha256,
            principal=event.principal,
            created_ms=entry.at_ms,
            expires_ms=event.expires_ms,
        )
    )


def _token_revoked(state: ClusterState, event: TokenRevoked, entry: Entry) -> None:
    state.tokens[event.token_id].revoked_ms = entry.at_ms


def _join_token_created(state: ClusterState, event: JoinTokenCreated, entry: Entry) -> None:
    state.join_tokens[event.join.sha256] = event.join
    for sha in [k for k, v in state.join_tokens.items() if v.expires_ms < entry.at_ms]:
        del state.join_tokens[sha]


def _request_completed(state: ClusterState, event: RequestCompleted, entry: Entry) -> None:
    expires_ms = 0 if event.jobs else entry.at_ms + REQUEST_RETENTION_MS
    state.requests[event.key] = RequestRecord(
        key=event.key,
        method=event.method,
        body_sha256=event.body_sha256,
        names=event.names,
        open_jobs=event.jobs,
        expires_ms=expires_ms,
    )


def _requests_forgotten(state: ClusterState, event: RequestsForgotten, entry: Entry) -> None:
    for key in event.keys:
        del state.requests[key]


# -- nodes


def _node_enrolled(state: ClusterState, event: NodeEnrolled, entry: Entry) -> None:
    del state.join_tokens[event.join_sha256]
    for token in state.tokens.values():
        if token.principal.node == event.node and not token.revoked_ms:
            token.revoked_ms = entry.at_ms
    principal = Principal(user=event.node, role=Role.AGENT, node=event.node)
    state.add_token(Token(id=event.token_id, sha256=event.token_sha256, principal=principal, created_ms=entry.at_ms))
    node = state.nodes.setdefault(event.node, Node(name=event.node, created_ms=entry.at_ms))
    node.instance_id = event.instance_id
    node.start_counter = 0


def _node_synced(state: ClusterState, event: NodeSynced, entry: Entry) -> None:
    node = state.nodes[event.node]
    node.instance_id, node.boot_id, node.start_counter = event.instance_id, event.boot_id, event.start_counter
    node.agent_version, node.driver_version = event.agent_version, event.driver_version
    node.cpu_milli, node.memory_mib, node.labels = event.cpu_milli, event.memory_mib, event.labels
    node.containment, node.last_seen_ms, node.ready = event.containment, entry.at_ms, True
    if node.state in (NodeState.UNREACHABLE, NodeState.LOST):
        node.state = NodeState.DRAINING if node.drain else NodeState.ACTIVE
    for attempt in state.live_attempts(node):
        if attempt.state is AttemptState.UNKNOWN and not attempt.seen:
            # Its order may never have arrived: it is sent again.
            attempt.state = AttemptState.ALLOCATED
    for other in state.nodes.values():
        if other is not node and other.state is NodeState.LOST:
            # A card that was moved over from a dead host.
            for card in event.gpus:
                other.gpus.pop(card.uuid, None)
    _register_cards(node, event.gpus)


def _register_cards(node: Node, cards: tuple[GpuInventory, ...]) -> None:
    """Cards are known by UUID alone; a missing one stays while something holds it."""
    told = {card.uuid: card for card in cards}
    for uuid, card in told.items():
        gpu = node.gpus.get(uuid)
        if gpu is None:
            node.gpus[uuid] = Gpu(inventory=card, condition=GpuCondition(uuid=uuid))
            continue
        gpu.present = True
        # What slices may have together changes only while the card is empty.
        usable = gpu.inventory.usable_mib if gpu.holds else card.usable_mib
        gpu.inventory = msgspec.structs.replace(card, usable_mib=usable)
    for uuid in [u for u in node.gpus if u not in told]:
        if node.gpus[uuid].holds:
            node.gpus[uuid].present = False
        else:
            del node.gpus[uuid]


def _node_disconnected(state: ClusterState, event: NodeDisconnected, entry: Entry) -> None:
    state.nodes[event.node].ready = False


def _node_silent(state: ClusterState, event: NodeSilent, entry: Entry) -> None:
    node = state.nodes[event.node]
    node.ready = False
    node.state = NodeState.UNREACHABLE
    for attempt in state.live_attempts(node):
        check_attempt_move(attempt, AttemptState.UNKNOWN)
        attempt.state = AttemptState.UNKNOWN


def _node_cordoned(state: ClusterState, event: NodeCordoned, entry: Entry) -> None:
    node = state.nodes[event.node]
    node.cordoned, node.reason, node.detail = True, event.reason, event.detail
    node.drain = node.drain or event.drain
    if event.drain and node.state is NodeState.ACTIVE:
        node.state = NodeState.DRAINING


def _node_uncordoned(state: ClusterState, event: NodeUncordoned, entry: Entry) -> None:
    node = state.nodes[event.node]
    node.cordoned, node.drain, node.reason, node.detail = False, False, None, ""
    if node.state is NodeState.DRAINING:
        node.state = NodeState.ACTIVE


def _node_declared_dead(state: ClusterState, event: NodeDeclaredDead, entry: Entry) -> None:
    node = state.nodes[event.node]
    node.state, node.ready = NodeState.LOST, False


def _gpu_conditions_changed(state: ClusterState, event: GpuConditionsChanged, entry: Entry) -> None:
    node = state.nodes[event.node]
    for condition in event.conditions:
        if condition.uuid in node.gpus:
            node.gpus[condition.uuid].condition = condition


# -- jobs and attempts


def _jobs_created(state: ClusterState, event: JobsCreated, entry: Entry) -> None:
    tenant = state.tenants[event.tenant]
    if event.number != tenant.next_number:
        raise BrokenInvariant(f"job number {event.tenant}/{event.number} is not the next, {tenant.next_number}")
    tenant.next_number += 1
    array_id = str(event.number) if event.array_indexes else ""
    for place, job_id in enumerate(event.ids()):
        state.submit_seq += 1
        state.add_job(
            Job(
                tenant=event.tenant,
                id=job_id,
                spec=event.spec,
                created_ms=entry.at_ms,
                created_by=entry.principal,
                submit_seq=state.submit_seq,
                array_id=array_id,
                array_index=event.array_indexes[place] if array_id else None,
                request_key=event.request_key,
            )
        )


def _job_cancel_requested(state: ClusterState, event: JobCancelRequested, entry: Entry) -> None:
    job = state.jobs[event.job]
    job.cancelled_by = entry.principal
    state.set_job_state(job, JobState.CANCELLING)


def _attempts_allocated(state: ClusterState, event: AttemptsAllocated, entry: Entry) -> None:
    job = state.jobs[event.job]
    if event.round != job.round + 1 or len(event.slices) != job.spec.tasks or job.live():
        raise BrokenInvariant(f"job {job.key}: round {event.round} cannot follow {job.round}")
    job.round = event.round
    for piece in event.slices:
        attempt = Attempt(
            tenant=job.tenant,
            job_id=job.id,
            task=piece.task,
            number=event.round,
            slice=piece,
            term=entry.term,
            allocated_ms=entry.at_ms,
        )
        job.attempts.append(attempt)
        ledger.hold(state.nodes[piece.node], state.tenants[job.tenant], attempt)
    state.set_job_state(job, JobState.STARTING)


def _attempt_stop_requested(state: ClusterState, event: AttemptStopRequested, entry: Entry) -> None:
    attempt = state.must_attempt(event.attempt)
    attempt.desired_stop, attempt.stop_reason, attempt.stop_detail = True, event.reason, event.detail


def _attempt_changed(state: ClusterState, event: AttemptChanged, entry: Entry) -> None:
    attempt = state.must_attempt(event.attempt)
    check_attempt_move(attempt, event.state)
    attempt.state, attempt.seen = event.state, True
    attempt.containment = event.containment or attempt.containment
    if event.started_ms is not None:
        attempt.started_ms = event.started_ms
    job = state.jobs[attempt.job_key]
    if job.state is JobState.STARTING and all(a.state is AttemptState.RUNNING for a in job.current()):
        job.started_ms = entry.at_ms if job.started_ms is None else job.started_ms
        state.set_job_state(job, JobState.RUNNING)


def _attempt_ended(state: ClusterState, event: AttemptEnded, entry: Entry) -> None:
    attempt = state.must_attempt(event.attempt)
    check_attempt_move(attempt, event.state)
    attempt.state, attempt.reason, attempt.detail = event.state, event.reason, event.detail
    attempt.exit_code, attempt.signal = event.exit_code, event.signal
    attempt.ended_ms = entry.at_ms if event.ended_ms is None else event.ended_ms
    if event.started_ms is not None:
        attempt.started_ms = event.started_ms
    job, tenant = state.jobs[attempt.job_key], state.tenants[attempt.tenant]
    if job.started_ms is None and attempt.started_ms is not None:
        job.started_ms = min(entry.at_ms, max(attempt.started_ms, job.created_ms))
    ledger.release(state.nodes[attempt.slice.node], tenant, attempt)
    ledger.meter(tenant, job.created_by.user, attempt, attempt.ended_ms)


def _job_requeued(state: ClusterState, event: JobRequeued, entry: Entry) -> None:
    job = state.jobs[event.job]
    if job.live():
        raise BrokenInvariant(f"job {job.key} is requeued while an attempt lives")
    if event.infra:
        job.infra_retries += 1
    else:
        job.retries += 1
    job.not_before_ms, job.reason, job.detail = event.not_before_ms, event.reason, event.detail
    state.set_job_state(job, JobState.QUEUED)


def _job_ended(state: ClusterState, event: JobEnded, entry: Entry) -> None:
    job = state.jobs[event.job]
    if job.live():
        raise BrokenInvariant(f"job {job.key} ended while an attempt lives")
    state.set_job_state(job, event.state)
    job.reason, job.detail = event.reason, event.detail
    # Cancelled is when somebody said so, maybe long after the last try; else it ended with its last task.
    told = [] if event.state is JobState.CANCELLED else [a.ended_ms for a in job.current() if a.ended_ms is not None]
    job.ended_ms = max(told, default=entry.at_ms)
    job.exit_code, job.signal = event.exit_code, event.signal
    state.ended[job.key] = entry.at_ms
    record = state.requests.get(job.request_key)
    if record is not None:
        record.open_jobs -= 1
        if record.open_jobs == 0:
            record.expires_ms = entry.at_ms + REQUEST_RETENTION_MS


def _jobs_archived(state: ClusterState, event: JobsArchived, entry: Entry) -> None:
    for key in event.jobs:
        if not state.jobs[key].is_ended:
            raise BrokenInvariant(f"job {key} is archived before its end")
        state.remove_job(key)


_APPLY: dict[type[Any], Callable[[ClusterState, Any, Entry], None]] = {
    TermStarted: _term_started,
    TenantCreated: _tenant_created,
    TenantUpdated: _tenant_updated,
    TenantDeleted: _tenant_deleted,
    TokenCreated: _token_created,
    TokenRevoked: _token_revoked,
    JoinTokenCreated: _join_token_created,
    NodeEnrolled: _node_enrolled,
    NodeSynced: _node_synced,
    NodeDisconnected: _node_disconnected,
    NodeSilent: _node_silent,
    NodeCordoned: _node_cordoned,
    NodeUncordoned: _node_uncordoned,
    NodeDeclaredDead: _node_declared_dead,
    GpuConditionsChanged: _gpu_conditions_changed,
    JobsCreated: _jobs_created,
    RequestCompleted: _request_completed,
    RequestsForgotten: _requests_forgotten,
    JobCancelRequested: _job_cancel_requested,
    AttemptsAllocated: _attempts_allocated,
    AttemptStopRequested: _attempt_stop_requested,
    AttemptChanged: _attempt_changed,
    AttemptEnded: _attempt_ended,
    JobRequeued: _job_requeued,
    JobEnded: _job_ended,
    JobsArchived: _jobs_archived,
}
