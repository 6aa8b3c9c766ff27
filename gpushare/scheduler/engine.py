"""The single writer: commands in, durable answers out.

One asyncio task decides and applies; one thread appends to the store. What an answer shows was computed at some
sequence s and leaves only when s is durable: answers, refusals, reads, orders and watch messages alike. While one
batch is being written the next collects, so that one fsync serves many. When an append fails, nothing of what was
applied since the last durable entry is true: every waiting caller gets UNAVAILABLE, the state is dropped and reloaded
from the store.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import structlog

from gpushare.core import explain as explaining
from gpushare.core.brain import Brain
from gpushare.core.commands import Call, Command, CoreSettings, Outcome, Rejection, SubmitJobs
from gpushare.core.cycle import NOTHING_YET, schedule
from gpushare.core.decide import decide, expand
from gpushare.core.events import AnyEvent, AttemptChanged, Entry, JobsArchived, JobsCreated, TermStarted
from gpushare.core.invariants import check
from gpushare.core.kinds import AttemptState
from gpushare.core.model import SYSTEM, Job, Principal
from gpushare.core.sentences import Sees
from gpushare.core.state import ClusterState
from gpushare.core.waiting import line_key
from gpushare.errors import RETRY_AFTER_S, FieldViolation, GpushareError, error_of
from gpushare.reasons import Reason
from gpushare.scheduler.inbox import Inbox, Item
from gpushare.scheduler.journal import history_row, to_record
from gpushare.scheduler.leases import boot_time_ms
from gpushare.scheduler.recovery import WAKES_PASS, load_state
from gpushare.store.port import HistoryRow, Record, Store, StoreError, StoreFull, TermLost

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Thunk = Callable[[], None]
Projector = Callable[[Sequence[Entry], ClusterState], Thunk | None]

# Refusals of a step that say that the caller told what cannot be.
_DISHONEST = frozenset({Reason.BAD_REPORT, Reason.PERMISSION_DENIED})
# More unwritten records than this, and no further command is taken until the disk has caught up.
_PENDING_MAX = 20_000
# A pass may take a fifth of the time: the next comes no sooner than four times its length later.
_PASS_SPACING = 4.0
_CHECK_MAX_JOBS = 50_000

log = structlog.get_logger("engine")


class Question(Protocol[T_co]):
    """Made on a state, it has what the answer needs, and `answer` looks at nothing else."""

    def answer(self) -> T_co: ...


class _Unanswerable:
    """What there is to ask of a job that is not in memory."""

    def answer(self) -> None:
        return None


class Engine:
    """Owns the state. `execute` changes it, `read` looks at it, both answer durably; see the module's text."""

    def __init__(
        self,
        store: Store,
        settings: CoreSettings,
        *,
        wall_ms: Callable[[], int],
        boot_ms: Callable[[], int] = boot_time_ms,
        holder: str,
        inbox_per_tenant: int = 1000,
        batch_max: int = 512,
        snapshot_every: int = 50_000,
        reload_backoff_s: float = 1.0,
    ) -> None:
        self.settings = settings
        self.state = ClusterState()
        self.term = 0
        self.durable_seq = 0
        self.leading = False
        # The disk is full: no new jobs, so that what is left of it goes to ends and cancels.
        self.cramped = False
        self._store = store
        self._wall_ms = wall_ms
        self._boot_ms = boot_ms
        # What `now_ms` last said, and when that was on the boot-time clock.
        self._told = (0, boot_ms())
        self._holder = holder
        self._batch_max = batch_max
        self._snapshot_every = snapshot_every
        self._reload_backoff_s = reload_backoff_s
        self._inbox = Inbox(inbox_per_tenant)
        self._projectors: list[Projector] = []
        self._reset_listeners: list[Thunk] = []
        self._brain = Brain(self.state, settings)
        self._loads: Callable[[], Mapping[str, int]] = dict
        self._last_pass = NOTHING_YET
        self._dirty = True
        self._pass_due = 0.0
        self._snapshot_seq = 0
        self._snapshot: tuple[int, bytes] | None = None
        self._records: list[Record] = []
        self._history: list[HistoryRow] = []
        self._answers: deque[tuple[int, asyncio.Future[Any], Any]] = deque()
        self._thunks: deque[tuple[int, Thunk]] = deque()
        self._work = asyncio.Event()
        self._to_write = asyncio.Event()
        self._written = asyncio.Event()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="store-reader")
        self._thinker = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._one_question = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._supervisor: asyncio.Task[None] | None = None

    # -- for the shell around it

    def now_ms(self) -> int:
        """Wall time in ms, never before the journal's last entry. A clock that was set back is waited for at half
        speed, so that time goes on and the two meet."""
        told_ms, told_boot_ms = self._told
        boot_ms = self._boot_ms()
        now_ms = max(self._wall_ms(), self.state.at_ms, told_ms + (boot_ms - told_boot_ms) // 2)
        if now_ms > told_ms:
            self._told = (now_ms, boot_ms)
        return now_ms

    def add_projector(self, projector: Projector) -> None:
        """`projector(entries, state)` runs right after each application; the thunk it returns once they are durable."""
        self._projectors.append(projector)

    def set_loads(self, loads: Callable[[], Mapping[str, int]]) -> None:
        """`loads()`: measured use of the SMs in percent by card UUID; asked at each pass."""
        self._loads = loads

    def add_reset_listener(self, listener: Thunk) -> None:
        """Called when the state was dropped and reloaded: what hangs on it (sessions, watches) must start over."""
        self._reset_listeners.append(listener)

    async def start(self) -> None:
        """Open the store, take a term, recover. Raises StoreError or BrokenInvariant when that cannot be."""
        await self._in_writer(self._store.open)
        await self._lead()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine")

    async def stop(self) -> None:
        """Write what is pending, keep a snapshot, close the store."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.leading:
            await self._flush_for_stop()
        self.leading = False
        self._refuse_everybody(_unavailable("the scheduler is stopping"))
        await self._in_writer(self._store.close)
        self._writer.shutdown()
        self._readers.shutdown()
        # An answer that nobody waits for any more is not waited for either.
        self._thinker.shutdown(wait=False, cancel_futures=True)
        gc.unfreeze()

    async def execute(
        self, command: Command, call: Call, view: Callable[[ClusterState, Outcome], T] | None = None
    ) -> T | Outcome:
        """Decide `command`, apply it, and answer once that is durable: `view` of the state right after, or the outcome.

        Raises GpushareError: the core's refusal, BUSY when the caller's lane is full, STORE_UNAVAILABLE when it is not
        known to be durable (ask again with the same request id), INTERNAL when deciding it failed.
        """
        if not self.leading:
            raise _unavailable("the scheduler is reloading its store")
        if self.cramped and isinstance(command, SubmitJobs):
            raise _unavailable("the scheduler's disk is full: new jobs are refused until there is room again")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lane = _lane_of(call.principal)
        if not self._inbox.put(lane, Item(command, call, view, future)):
            raise error_of(
                Reason.BUSY,
                f"more than {self._inbox.per_lane} calls of {lane} are waiting",
                metadata={RETRY_AFTER_S: "1"},
            )
        self._work.set()
        return cast("T | Outcome", await future)

    async def read(self, view: Callable[[ClusterState], T]) -> T:
        """`view` of the state now; returned when everything it could have seen is durable."""
        if not self.leading:
            raise _unavailable("the scheduler is reloading its store")
        value = view(self.state)
        if self.durable_seq >= self.state.seq:
            return value
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._answers.append((self.state.seq, future, value))
        return await future

    async def store_call(self, fn: Callable[[Store], T]) -> T:
        """Run `fn(store)` in a reader thread. Raises GpushareError(STORE_UNAVAILABLE) for a store that fails."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, fn, self._store)
        except StoreError as err:
            raise _unavailable(str(err)) from err

    async def leave_cramped(self) -> None:
        """Take new jobs again once the disk has room for the ballast."""
        if self.cramped and self.leading:
            self.cramped = not await self._in_writer(self._store.restore_ballast)

    def wait_of(self, job: Job, sees: Sees | None = None) -> explaining.Wait | None:
        """Why `job` waits, by the last pass; None when it does not. Without `sees` no other tenant is named."""
        last = self._last_pass
        reason = last.job_waits.get(job.key) or last.waits.get(line_key(job))
        return explaining.wait_of(self.state, job, reason, self.now_ms(), last.starts_ms, sees)

    async def explain(self, job_key: str, sees: Sees | None = None) -> explaining.Explanation | None:
        """Why a job waits; None for one that is not in memory."""

        def question(state: ClusterState, brain: Brain) -> Question[explaining.Explanation | None]:
            job = state.jobs.get(job_key)
            if job is None:
                return _Unanswerable()
            return explaining.Question(state, job, self.now_ms(), self.settings, brain, sees)

        return await self.ask(question)

    async def ask(self, make: Callable[[ClusterState, Brain], Question[T]]) -> T:
        """The answer to what `make` asks of the state and the brain as they are. One question at a time: the state is
        forked here, and thought on in a thread of its own while the scheduler goes on."""
        async with self._one_question:
            question = await self.read(lambda state: make(state, self._brain))
            work = asyncio.get_running_loop().run_in_executor(self._thinker, question.answer)
            try:
                return await asyncio.shield(work)
            finally:
                # Whoever gave up waiting leaves the thread busy: the next question comes after it.
                await asyncio.wait([work])

    # -- leading and reloading

    async def _lead(self) -> None:
        self.term = await self._in_writer(lambda: self._store.acquire_term(self._holder))
        self.state = await self._in_writer(lambda: load_state(self._store))
        check(self.state)
        self.durable_seq = self._snapshot_seq = self.state.seq
        self._brain = Brain(self.state, self.settings)
        self._last_pass, self._dirty, self._failure = NOTHING_YET, True, None
        self._records, self._history, self._snapshot = [], [], None
        self._failed.clear()
        began = TermStarted(holder=self._holder, half_life_ms=self.settings.fair_share_half_life_ms)
        self._apply((began,), SYSTEM, "")
        records, self._records = self._records, []
        await self._in_writer(lambda: self._store.append(records, self.term))
        self.durable_seq = self.state.seq
        _spare_the_collector()
        self.leading = True
        self._tasks = [self._spawn(self._run(), "decide"), self._spawn(self._write(), "write")]
        self._work.set()
        log.info("leading", term=self.term, seq=self.state.seq, jobs=len(self.state.jobs))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"engine-{name}")
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Neither half may end unnoticed: without it nobody would ever be answered again."""
        if not task.cancelled() and task.exception() is not None:
            self._fail(cast("BaseException", task.exception()))

    async def _supervise(self) -> None:
        """When leading ends by a failure: refuse everybody, reload, lead again; until that works, try."""
        while True:
            await self._failed.wait()
            log.error("stopped leading", error=str(self._failure), kind=type(self._failure).__name__)
            self.leading = False
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._refuse_everybody(_unavailable("the change could not be made durable"))
            self._thunks.clear()
            # Room for what must still be written when the disk is full: ends, cancels, drains.
            self.cramped = self.cramped or isinstance(self._failure, StoreFull)
            while not self.leading:
                await asyncio.sleep(self._reload_backoff_s)
                try:
                    if self.cramped:
                        await self._in_writer(self._store.release_ballast)
                    await self._lead()
                except Exception as err:  # whatever it is, trying again is all there is to do
                    log.error("cannot lead again yet", error=str(err), kind=type(err).__name__)
            for listener in self._reset_listeners:
                listener()

    def _fail(self, cause: BaseException) -> None:
        if self._failure is None:
            self._failure = cause
            self.leading = False
            # Half of a command may be among them.
            self._records, self._history = [], []
            self._failed.set()

    def _refuse_everybody(self, error: GpushareError) -> None:
        for _, future, _ in self._answers:
            _resolve(future, error)
        self._answers.clear()
        for item in self._inbox.take(None):
            _resolve(item.future, error)

    # -- deciding

    async def _run(self) -> None:
        """Take commands in rounds over the lanes, then schedule when something may have changed what can start."""
        loop = asyncio.get_running_loop()
        wake_at: float | None = None
        while True:
            if not self._inbox and not (self._dirty and loop.time() >= self._pass_due):
                due = self._pass_due if self._dirty or wake_at is None else max(wake_at, self._pass_due)
                idle = not self._dirty and wake_at is None
                await _wait(self._work, None if idle else max(0.0, due - loop.time()))
            self._work.clear()
            while len(self._records) > _PENDING_MAX:
                self._written.clear()
                await self._written.wait()
            try:
                for item in self._inbox.take(self._batch_max):
                    self._execute(item)
                if (self._dirty or (wake_at is not None and loop.time() >= wake_at)) and loop.time() >= self._pass_due:
                    wake_at = self._schedule(loop)
            except Exception as err:  # a state that contradicts itself must not be led on
                self._fail(err)
                return
            if self._records:
                self._to_write.set()
            await asyncio.sleep(0)

    def _execute(self, item: Item) -> None:
        answer: Any
        try:
            now_ms = self.now_ms()
            decision = decide(self.state, item.command, item.call, now_ms, self.settings)
        except Exception as err:
            log.exception("deciding failed", command=type(item.command).__name__)
            answer = error_of(Reason.INTERNAL, f"deciding {type(item.command).__name__} failed: {type(err).__name__}")
            self._answers.append((self.state.seq, item.future, answer))
            self._release()
            return
        try:
            answer = _error(decision) if isinstance(decision, Rejection) else self._carry_out(item, decision)
        except Exception:
            _resolve(item.future, _unavailable("the change contradicts the state and was not made"))
            raise
        self._answers.append((self.state.seq, item.future, answer))
        self._release()

    def _carry_out(self, item: Item, outcome: Outcome) -> Any:
        """Apply what was decided, and its steps; a step that no honest agent could cause is the answer."""
        steps = [] if outcome.is_repeated else expand(self.state, item.command)
        self._apply(cast("tuple[AnyEvent, ...]", outcome.events), item.call.principal, item.call.request_id)
        refusals = [self._step(step, item.call) for step in steps]
        dishonest = next((r for r in refusals if r is not None and r.reason in _DISHONEST), None)
        return self._viewed(item, outcome) if dishonest is None else _error(dishonest)

    def _viewed(self, item: Item, outcome: Outcome) -> Any:
        """The answer as its caller wants to see it. What was decided stands, even if showing it fails."""
        if item.view is None:
            return outcome
        try:
            return item.view(self.state, outcome)
        except Exception as err:
            log.exception("showing an answer failed", command=type(item.command).__name__)
            return error_of(Reason.INTERNAL, f"it was done, but the answer could not be made: {type(err).__name__}")

    def _step(self, step: Command, call: Call) -> Rejection | None:
        try:
            decision = decide(self.state, step, Call(principal=call.principal), self.now_ms(), self.settings)
        except Exception:
            log.exception("deciding a step failed", step=type(step).__name__)
            return None
        if isinstance(decision, Rejection):
            log.info("step refused", step=type(step).__name__, reason=decision.reason, detail=decision.detail)
            return decision
        self._apply(cast("tuple[AnyEvent, ...]", decision.events), call.principal, "")
        return None

    def _apply(self, events: Sequence[AnyEvent], principal: Principal, request_id: str) -> None:
        if not events:
            return
        now_ms = self.now_ms()
        entries: list[Entry] = []
        for event in events:
            if isinstance(event, JobsArchived):
                self._history += [history_row(self.state.jobs[key]) for key in event.jobs]
            entry = Entry(self.state.seq + 1, now_ms, self.term, event, principal, request_id)
            self.state.apply(entry)
            entries.append(entry)
            self._records.append(to_record(entry))
            self._dirty = self._dirty or self._wakes(event)
        for projector in self._projectors:
            thunk = projector(entries, self.state)
            if thunk is not None:
                self._thunks.append((self.state.seq, thunk))

    def _wakes(self, event: AnyEvent) -> bool:
        """Whether a pass may now decide what the last one could not. A new job like one that was found waiting waits
        too: until something frees room, and that wakes, so that submits to a full cluster cost no passes."""
        if isinstance(event, JobsCreated):
            job = self.state.jobs[f"{event.tenant}/{event.ids()[0]}"]
            # A time by which to start has to be watched, also behind others that wait.
            return bool(job.spec.start_within_ms) or line_key(job) not in self._last_pass.waits
        if isinstance(event, AttemptChanged):
            return event.state is AttemptState.SUSPENDED or self._frees_dependents(event.attempt)
        return isinstance(event, WAKES_PASS)

    def _frees_dependents(self, attempt_id: str) -> bool:
        """Whether jobs wait for the beginning of this one."""
        job = self.state.jobs[self.state.must_attempt(attempt_id).job_key]
        return job.key in self.state.dependents or (bool(job.array_id) and job.array_key in self.state.dependents)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> float | None:
        started = loop.time()
        now_ms = self.now_ms()
        result = schedule(self.state, now_ms, self.settings, self._brain, self._loads())
        self._last_pass = result
        self._dirty = result.more
        for event in result.events:
            self._apply((cast("AnyEvent", event),), SYSTEM, "")
        self._pass_due = loop.time() + _PASS_SPACING * (loop.time() - started)
        return None if result.wake_ms is None else loop.time() + max(0, result.wake_ms - now_ms) / 1000

    # -- writing and releasing

    async def _write(self) -> None:
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            records, self._records = self._records, []
            history, self._history = self._history, []
            if not records:
                continue
            try:
                await self._in_writer(partial(self._store.append, records, self.term, history))
            except (StoreError, TermLost) as err:
                self._fail(err)
                return
            self.durable_seq = records[-1].seq
            self._written.set()
            self._release()
            await self._snapshot_if_due()

    def _release(self) -> None:
        """Let everything go that was computed at a durable sequence."""
        while self._answers and self._answers[0][0] <= self.durable_seq:
            _, future, answer = self._answers.popleft()
            _resolve(future, answer)
        while self._thunks and self._thunks[0][0] <= self.durable_seq:
            _, thunk = self._thunks.popleft()
            try:
                thunk()
            except Exception:
                log.exception("telling others of a change failed")

    async def _snapshot_if_due(self) -> None:
        """Encode the state as it is, and keep that once its last entry is durable: under load there is always a later
        one on its way."""
        if self._snapshot is None and self.durable_seq - self._snapshot_seq >= self._snapshot_every:
            self._snapshot = self._take_snapshot()
        if self._snapshot is not None and self._snapshot[0] <= self.durable_seq:
            snapshot, self._snapshot = self._snapshot, None
            await self._keep_snapshot(*snapshot)

    def _take_snapshot(self) -> tuple[int, bytes]:
        if not self._one_question.locked():
            _spare_the_collector()
        if len(self.state.jobs) <= _CHECK_MAX_JOBS:
            check(self.state)
        return self.state.seq, self.state.encode()

    async def _keep_snapshot(self, seq: int, blob: bytes) -> None:
        self._snapshot_seq = seq
        try:
            await self._in_writer(lambda: self._store.save_snapshot(seq, blob))
        except StoreError as err:
            log.warning("no snapshot kept; the journal is whole, only the next start takes longer", error=str(err))

    async def _flush_for_stop(self) -> None:
        records, self._records = self._records, []
        history, self._history = self._history, []
        try:
            if records:
                await self._in_writer(lambda: self._store.append(records, self.term, history))
                self.durable_seq = records[-1].seq
                self._release()
            if self.state.seq > self._snapshot_seq:
                await self._keep_snapshot(*self._take_snapshot())
        except StoreError as err:
            log.error("the last changes were not written; nobody was told that they were", error=str(err))

    async def _in_writer(self, fn: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, fn)


def _spare_the_collector() -> None:
    """What the state holds now has no cycles and stays for long: a full collection would walk all of it, and a pass
    would stand still for a second with a hundred thousand jobs."""
    gc.collect()
    gc.freeze()


def _lane_of(who: Principal) -> str:
    """Whose queue a call waits in: the node's, the tenant's, or the person's who belongs to none."""
    if who.node:
        return f"node {who.node}"
    return f"tenant {who.tenant}" if who.tenant else f"user {who.user}"


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, GpushareError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _error(rejection: Rejection) -> GpushareError:
    violations = (FieldViolation(rejection.field, rejection.detail),) if rejection.field else ()
    return error_of(rejection.reason, rejection.detail, metadata=rejection.metadata, violations=violations)


def _unavailable(message: str) -> GpushareError:
    return error_of(Reason.STORE_UNAVAILABLE, message)
