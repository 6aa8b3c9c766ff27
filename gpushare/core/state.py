"""The cluster's state and its only mutator, `ClusterState.apply`.

Pure: msgspec and the core's own modules. Live running, recovery, standby and simulation all apply the same
entries and reach the same state; no policy runs here. `check` states what must always hold and raises
`BrokenInvariant`. The indexes (queue, tokens by hash, arrays) are derived and never stored.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from copy import copy

import msgspec

from gpushare.core import facts, facts_jobs
from gpushare.core.events import Entry
from gpushare.core.forks import copy_of_job, copy_of_node, copy_of_tenant
from gpushare.core.kinds import JobState, Power
from gpushare.core.lifecycle import BrokenInvariant, check_job_move
from gpushare.core.model import Attempt, Job, JobSpec, JoinToken, Node, RequestRecord, Tenant, Token
from gpushare.core.promises import CapacityHold, Reservation
from gpushare.core.shared_paths import path_around, published
from gpushare.core.waiting import WaitingLines

# Of what a snapshot holds. One of another version is not read: the journal has everything, replay takes longer once.
SNAPSHOT_VERSION = 2


class Snapshot(msgspec.Struct):
    """All that is stored of a state; the indexes are rebuilt from it. `version` 1 had none."""

    version: int = 1
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
    reservations: dict[str, Reservation] = {}
    # By the job that it is for.
    holds: dict[str, CapacityHold] = {}
    half_life_ms: int = 7 * 24 * 3600 * 1000


class OtherVersion(Exception):
    """A snapshot that this version does not read."""


class _Version(msgspec.Struct):
    version: int = 1


class ClusterState:
    """Everything the scheduler knows. `jobs` and `holds` are keyed by "tenant/id", `join_tokens` and `tokens_by_sha` by
    hash. `lines` are the queued jobs as a pass takes them, `touched` (and `moved`) the nodes whose capacity may have
    changed and `submitted` the jobs that came since their reader last emptied them."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        snap = snapshot or Snapshot()
        self.seq, self.at_ms, self.term, self.submit_seq = snap.seq, snap.at_ms, snap.term, snap.submit_seq
        self.tenants, self.nodes, self.jobs = snap.tenants, snap.nodes, snap.jobs
        self.tokens, self.join_tokens, self.requests = snap.tokens, snap.join_tokens, snap.requests
        self.reservations, self.holds, self.half_life_ms = snap.reservations, snap.holds, snap.half_life_ms
        self.tokens_by_sha: dict[str, Token] = {t.sha256: t for t in self.tokens.values()}
        self.attempts: dict[str, Attempt] = {a.id: a for j in self.jobs.values() for a in j.attempts}
        self.lines = WaitingLines()
        self.arrays: dict[str, list[str]] = {}
        self.array_running: Counter[str] = Counter()
        # Tenant -> priority -> running jobs.
        self.running_priorities: defaultdict[str, Counter[int]] = defaultdict(Counter)
        # Job or array -> the jobs that have not ended and name it in `after`.
        self.dependents: dict[str, set[str]] = {}
        # Ended jobs, first end first.
        over = sorted((j.ended_ms or 0, j.submit_seq, j.key) for j in self.jobs.values() if j.is_ended)
        self.ended: dict[str, int] = {key: ended_ms for ended_ms, _, key in over}
        self.growing: set[str] = set()
        # Live attempts that end at a known time: of jobs with a time limit, or told to make way.
        self.ending: set[str] = set()
        self.touched: set[str] = set(self.nodes)
        # Of touched nodes of which no more has changed than what runs there: the cards that are meant.
        self.moved: dict[str, set[str]] = {}
        # Nodes that power saving has taken, and those on their way back.
        self.asleep = {node.name for node in self.nodes.values() if node.power is not Power.ON}
        self.published_paths = published(self.nodes.values())
        # The jobs and nodes that no fork shares; None: all of them.
        self._own_jobs: set[str] | None = None
        self._own_nodes: set[str] | None = None
        self.submitted = [j.key for j in sorted(self.jobs.values(), key=lambda j: j.submit_seq)]
        for job in self.jobs.values():
            self._index_job(job)
            if job.state in _RUNNING_STATES:
                self._count_running(job, +1)
            self._index_state(job)
        for attempt in self.attempts.values():
            self.index_end(attempt)

    def snapshot(self) -> Snapshot:
        """The stored part, sharing this state's records: encode it before anything else is applied."""
        return Snapshot(
            version=SNAPSHOT_VERSION,
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
            reservations=self.reservations,
            holds=self.holds,
            half_life_ms=self.half_life_ms,
        )

    def encode(self) -> bytes:
        """Canonical bytes of the stored part: equal states give equal bytes."""
        return msgspec.json.encode(self.snapshot(), order="deterministic")

    @classmethod
    def decode(cls, blob: bytes) -> ClusterState:
        """Raises OtherVersion for a snapshot that another version wrote, MsgspecError for what is none."""
        version = msgspec.json.decode(blob, type=_Version).version
        if version != SNAPSHOT_VERSION:
            raise OtherVersion(f"it is of version {version}, not {SNAPSHOT_VERSION}")
        return cls(msgspec.json.decode(blob, type=Snapshot))

    def fork(self) -> ClusterState:
        """A state that goes its own way from here, for questions: `apply` on either leaves the other as it is. It has
        no secrets and no request ids, and as yet nothing `touched`. Cheap: jobs and nodes are shared until one of the
        two changes them, so hold on to no record of a state across an `apply`."""
        self._own_jobs, self._own_nodes = set(), set()
        made = copy(self)
        made._own_jobs, made._own_nodes = set(), set()
        made.jobs, made.attempts, made.nodes = dict(self.jobs), dict(self.attempts), dict(self.nodes)
        made.tenants = {name: copy_of_tenant(tenant) for name, tenant in self.tenants.items()}
        made.tokens, made.tokens_by_sha, made.join_tokens, made.requests = {}, {}, {}, {}
        made.reservations, made.holds = dict(self.reservations), dict(self.holds)
        made.lines = self.lines.fork()
        made.arrays = {key: list(children) for key, children in self.arrays.items()}
        made.array_running = Counter(self.array_running)
        made.running_priorities = defaultdict(Counter, {t: Counter(n) for t, n in self.running_priorities.items()})
        made.dependents = {key: set(waiting) for key, waiting in self.dependents.items()}
        made.ended, made.growing, made.asleep = dict(self.ended), set(self.growing), set(self.asleep)
        made.ending = set(self.ending)
        made.touched, made.moved, made.submitted = set(), {}, list(self.submitted)
        return made

    # -- reading

    def attempt(self, attempt_id: str) -> Attempt | None:
        """The attempt of that id, or None."""
        return self.attempts.get(attempt_id)

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

    def own_job(self, key: str) -> Job:
        """The job of that key, to be changed, with its attempts."""
        if self._own_jobs is not None and key not in self._own_jobs:
            made = self.jobs[key] = copy_of_job(self.jobs[key])
            self.attempts.update((attempt.id, attempt) for attempt in made.attempts)
            self._own_jobs.add(key)
        return self.jobs[key]

    def own_attempt(self, attempt_id: str) -> Attempt:
        """The attempt of that id, to be changed. Raises BrokenInvariant where there is none."""
        self.own_job(self.must_attempt(attempt_id).job_key)
        return self.attempts[attempt_id]

    def own_node(self, name: str) -> Node:
        """The node of that name, to be changed, with its cards."""
        if self._own_nodes is not None and name not in self._own_nodes:
            self.nodes[name] = copy_of_node(self.nodes[name])
            self._own_nodes.add(name)
        return self.nodes[name]

    def touch(self, node: str) -> None:
        """Anything about the node may have changed."""
        self.touched.add(node)
        self.moved.pop(node, None)

    def move(self, node: str, uuids: Iterable[str]) -> None:
        """What runs on the node has changed: what is free of these cards and of the host, and when it ends."""
        if node in self.moved or node not in self.touched:
            self.touched.add(node)
            self.moved.setdefault(node, set()).update(uuids)

    def set_job_state(self, job: Job, state: JobState) -> None:
        """`job` is this state's own."""
        check_job_move(job, state)
        tenant, was = self.tenants[job.tenant], job.state
        if was in WAITING_STATES:
            self.lines.remove(job)
        job.state = state
        tenant.queued_jobs += (state is JobState.QUEUED) - (was is JobState.QUEUED)
        more = (state in _RUNNING_STATES) - (was in _RUNNING_STATES)
        if more:
            tenant.running_jobs += more
            tenant.person(job.created_by.user).running_jobs += more
            self._count_running(job, more)
        self._index_state(job)
        if job.is_ended:
            self._unindex_dependencies(job)

    def set_spec(self, job: Job, spec: JobSpec) -> None:
        """What it asks for has changed, and with it perhaps the line that it waits in."""
        waits = job.state in WAITING_STATES
        if waits:
            self.lines.remove(job)
        job.spec = spec
        if waits:
            self.lines.add(job)

    def add_job(self, job: Job) -> None:
        job.shared_path = path_around(job.spec.working_directory, self.published_paths)
        self.jobs[job.key] = job
        if self._own_jobs is not None:
            self._own_jobs.add(job.key)
        self.submitted.append(job.key)
        self.tenants[job.tenant].queued_jobs += 1
        self._index_job(job)
        self._index_state(job)

    def remove_job(self, key: str) -> None:
        job = self.jobs.pop(key)
        if self._own_jobs is not None:
            self._own_jobs.discard(key)
        self.ended.pop(key, None)
        for attempt in job.attempts:
            self.attempts.pop(attempt.id, None)
        if job.array_id:
            siblings = self.arrays[job.array_key]
            siblings.remove(key)
            if not siblings:
                del self.arrays[job.array_key]

    def index_shared_paths(self) -> None:
        """A node publishes other paths than before: where each job may be from now on."""
        paths = published(self.nodes.values())
        if paths == self.published_paths:
            return
        self.published_paths = paths
        for key, job in self.jobs.items():
            found = "" if job.is_ended else path_around(job.spec.working_directory, paths)
            if job.is_ended or found == job.shared_path:
                continue
            waits = job.state in WAITING_STATES
            if waits:
                self.lines.remove(job)
            job = self.own_job(key)
            job.shared_path = found
            if waits:
                self.lines.add(job)

    def _index_job(self, job: Job) -> None:
        if job.array_id:
            self.arrays.setdefault(job.array_key, []).append(job.key)
        if not job.is_ended:
            for dependency in job.spec.after:
                self.dependents.setdefault(dependency.job, set()).add(job.key)

    def _unindex_dependencies(self, job: Job) -> None:
        for dependency in job.spec.after:
            waiting = self.dependents.get(dependency.job, set())
            waiting.discard(job.key)
            if not waiting:
                self.dependents.pop(dependency.job, None)

    def _index_state(self, job: Job) -> None:
        """What a pass walks: the lines that wait, and gangs that may grow."""
        if job.state in WAITING_STATES:
            self.lines.add(job)
        if 0 < job.spec.min_tasks < job.spec.tasks:
            _set_member(self.growing, job.key, job.state in (JobState.STARTING, JobState.RUNNING))

    def _count_running(self, job: Job, by: int) -> None:
        """So many more like it run; the stored counts aside."""
        running = self.running_priorities[job.tenant]
        running[job.spec.priority] += by
        if not running[job.spec.priority]:
            del running[job.spec.priority]
        if job.array_id:
            self.array_running[job.array_key] += by
            if not self.array_running[job.array_key]:
                del self.array_running[job.array_key]

    def index_end(self, attempt: Attempt) -> None:
        """It lives or has ended, was told to go, or may stay after all."""
        goes = attempt.desired_stop or attempt.desired_suspend or self.jobs[attempt.job_key].spec.max_run_ms
        _set_member(self.ending, attempt.id, attempt.is_live and bool(goes))

    def add_token(self, token: Token) -> None:
        self.tokens[token.id] = token
        self.tokens_by_sha[token.sha256] = token

    def must_attempt(self, attempt_id: str) -> Attempt:
        found = self.attempt(attempt_id)
        if found is None:
            raise BrokenInvariant(f"no attempt {attempt_id}")
        return found


def _set_member(members: set[str], key: str, is_in: bool) -> None:
    if is_in:
        members.add(key)
    else:
        members.discard(key)


_APPLY = {**facts.HANDLERS, **facts_jobs.HANDLERS}
# Jobs that a pass may give cards to.
WAITING_STATES = frozenset({JobState.QUEUED, JobState.SUSPENDED})
_RUNNING_STATES = frozenset({JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED, JobState.CANCELLING})
