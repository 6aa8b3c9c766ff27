"""Jobs followed while they run: their output as it comes, their states as they change, their end.

Imports the client. Invariants: `run` leaves only when the job has ended and its output has been read to its end, or
when the person says so; what one task printed is shown once, over lost connections and restarts of the scheduler; no
more than `_ATTEMPTS_AT_ONCE` tasks are read at a time, because a connection has room for a hundred streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpushare.cli.exits import EXIT_BROKEN_PIPE, EXIT_OWN_FAILURE
from gpushare.cli.inert import inert
from gpushare.cli.output import job_id, job_state, reason_sentence
from gpushare.cli.outputfiles import OutputNotes
from gpushare.cli.sink import STDERR_FD, STDOUT_FD, LogSink, Source, TextSink
from gpushare.client.messages import Job, JobState, OutputStream, TaskAttempt
from gpushare.client.waiting import follow_jobs, has_ended
from gpushare.errors import GpushareError, UnavailableError
from gpushare.reasons import Reason

if TYPE_CHECKING:
    from gpushare.cli.feeding import Feeder
    from gpushare.cli.interrupts import Interrupts
    from gpushare.client.aio import AsyncClient

_ATTEMPTS_AT_ONCE = 32
# After the end of the job: how long its output may bring nothing before the rest is given up.
_STALL_LIMIT_S = 30.0
_CANCELS_AT_ONCE = 16
# Who leaves while the jobs are being cancelled waits so long for the scheduler to hear of it.
_CANCEL_WAIT_S = 3.0

_STREAMS = ((STDOUT_FD, OutputStream.OUTPUT_STREAM_STDOUT), (STDERR_FD, OutputStream.OUTPUT_STREAM_STDERR))


class OutputFollower:
    """Reads the output of jobs into a sink, from now to their end.

    `jobs` are as they were listed; `task_index` limits it to one task, `attempt` to one attempt (0: the newest of
    each task, and those that follow it); `offsets` says by attempt and descriptor where to begin. With `fail_fast` the
    first stream that cannot be read ends it all, else `errors` collects them.
    """

    def __init__(
        self,
        client: AsyncClient,
        jobs: Sequence[Job],
        sink: LogSink,
        *,
        task_index: int | None = None,
        attempt: int = 0,
        fail_fast: bool = False,
        on_change: Callable[[Job], None] | None = None,
        offsets: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        self.errors: list[GpushareError] = []
        self._client = client
        self._names = [job.name for job in jobs]
        self._sink = sink
        self._task_index = task_index
        self._attempt = attempt
        self._fail_fast = fail_fast
        self._on_change = on_change
        self._offsets = offsets or {}
        self._room = asyncio.Semaphore(_ATTEMPTS_AT_ONCE)
        self._readers: dict[tuple[str, int, int], asyncio.Task[None]] = {}
        self._failed = asyncio.Event()
        self._last_byte_s = time.monotonic()
        self._quiet_outage = False
        self._notes = OutputNotes(tell)

    async def run(self) -> dict[str, Job]:
        """The jobs as they ended. Raises GpushareError; OSError where the output cannot be written."""
        watching = asyncio.create_task(self._watch())
        failing = asyncio.create_task(self._failed.wait())
        try:
            await asyncio.wait({watching, failing}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                ended = watching.result()
                await self._read_to_end(failing)
            self._raise_first()
            return ended
        finally:
            for task in (watching, failing, *self._readers.values()):
                task.cancel()
            await asyncio.gather(watching, failing, *self._readers.values(), return_exceptions=True)

    async def _watch(self) -> dict[str, Job]:
        ended: dict[str, Job] = {}
        changes = follow_jobs(self._client, self._names, on_reconnect=self._on_reconnect)
        async for job in changes:
            self._quiet_outage = False
            if self._on_change is not None:
                self._on_change(job)
            for attempt in job.tasks:
                if attempt.HasField("start_time") and self._task_index in (None, attempt.task_index):
                    self._read(job, attempt)
            if has_ended(job):
                ended[job.name] = job
        return ended

    def _read(self, job: Job, attempt: TaskAttempt) -> None:
        number = self._attempt or attempt.number
        key = (job.name, attempt.task_index, number)
        if key not in self._readers:
            self._notes.on_read(job, attempt, number)
            self._readers[key] = asyncio.create_task(self._read_attempt(job, attempt.task_index, number))

    async def _read_attempt(self, job: Job, task_index: int, number: int) -> None:
        streams = _STREAMS[:1] if job.spec.pty else _STREAMS
        async with self._room:
            try:
                await asyncio.gather(
                    *(self._read_stream(job, task_index, number, fd, stream) for fd, stream in streams)
                )
            except (GpushareError, OSError) as err:
                if isinstance(err, GpushareError):
                    self.errors.append(err)
                if self._fail_fast or isinstance(err, OSError):
                    self._failed.set()
                    raise

    async def _read_stream(self, job: Job, task_index: int, number: int, fd: int, stream: OutputStream) -> None:
        source = Source(job.name, task_index, number, fd, label_of(job, task_index, len(self._names)))
        answers = self._client.stream_logs(
            job.name,
            task_index=task_index,
            attempt=number,
            stream=stream,
            offset=self._offsets.get((number, fd), 0),
            follow=True,
            on_reconnect=self._on_reconnect,
        )
        async with contextlib.aclosing(answers):
            async for answer in answers:
                self._last_byte_s = time.monotonic()
                await self._sink.chunk(source, answer)
        await self._sink.end(source)

    async def _read_to_end(self, failing: asyncio.Task[bool]) -> None:
        """Everything has ended; what was printed may still be on its way."""
        self._last_byte_s = time.monotonic()
        while not failing.done():
            reading = [task for task in self._readers.values() if not task.done()]
            left_s = self._last_byte_s + _STALL_LIMIT_S - time.monotonic()
            if not reading:
                return
            if left_s <= 0:
                message = f"The end of the output could not be read in {_STALL_LIMIT_S:.0f} s."
                self.errors.append(
                    UnavailableError(
                        Reason.NODE_UNREACHABLE, message, what_to_do="Try `gpushare logs` when the node is back."
                    )
                )
                return
            await asyncio.wait({*reading, failing}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def _raise_first(self) -> None:
        for task in self._readers.values():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _on_reconnect(self, error: GpushareError) -> None:
        """One line an outage; every stream of the connection meets it."""
        if not self._quiet_outage:
            self._quiet_outage = True
            tell(f"note: {error.message} Trying again; the job is not affected.")


def label_of(job: Job, task_index: int, job_count: int) -> str:
    """What stands before each line: the task of a gang, the child of an array, or "" where only one task prints."""
    is_gang = job.spec.tasks > 1
    if job_count == 1:
        return str(task_index) if is_gang else ""
    return f"{job.id}/{task_index}" if is_gang else job.id


def job_code(job: Job) -> int:
    """The code that `run` and `wait` return for a job that has ended."""
    if job.HasField("exit_code"):
        return job.exit_code
    return 0 if job.state == JobState.JOB_STATE_SUCCEEDED else EXIT_OWN_FAILURE


def first_nonzero(codes: Sequence[int]) -> int:
    return next((code for code in codes if code), 0)


def tell(text: str) -> None:
    """One line on stderr."""
    # The terminal may be gone, and there is nobody else to tell; one that is in raw mode wants the CR.
    with contextlib.suppress(OSError):
        print(inert(text), file=sys.stderr, end="\r\n" if sys.stderr.isatty() else "\n", flush=True)


async def cancel_jobs(client: AsyncClient, names: Sequence[str]) -> None:
    """Cancels them, several at a time. Raises the first GpushareError at the end."""
    _, failed = await cancel_each(client, names)
    if failed is not None:
        raise failed


async def cancel_each(client: AsyncClient, names: Sequence[str]) -> tuple[list[Job], BaseException | None]:
    """The same; the jobs that were, as they are then, in order, and the first failure."""
    room = asyncio.Semaphore(_CANCELS_AT_ONCE)

    async def cancel(name: str) -> Job:
        async with room:
            return await client.cancel_job(name)

    outcomes = await asyncio.gather(*(cancel(name) for name in names), return_exceptions=True)
    failed = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)
    return [outcome for outcome in outcomes if isinstance(outcome, Job)], failed


async def follow_and_flush(follower: OutputFollower, sink: LogSink) -> dict[str, Job]:
    """The jobs as they ended, when everything that was read has been written, too."""
    try:
        return await follower.run()
    finally:
        await sink.close()


async def run_to_end(
    client: AsyncClient,
    jobs: Sequence[Job],
    reference: str,
    interrupts: Interrupts,
    feeder: Feeder | None = None,
    *,
    cancels: bool = True,
    told: Iterable[str] = (),
) -> int:
    """Follows jobs, cancels them on Ctrl-C where that `cancels`, and returns the code for the process.

    `reference` is what the person can call them; `feeder` gives the one job its input; `told` are reasons to wait that
    the person has read already. Raises GpushareError where the scheduler stays out of reach.
    """
    sink: LogSink = feeder.sink if feeder is not None else TextSink()
    notes = _WaitNotes(told, feeder.on_change if feeder is not None else None)
    offsets = feeder.offsets if feeder is not None else None
    follower = OutputFollower(client, jobs, sink, on_change=notes.on_change, offsets=offsets)
    names = [job.name for job in jobs]
    back = f"gpushare attach {reference}" if feeder is not None else f"gpushare logs -f {reference}"
    following = asyncio.create_task(follow_and_flush(follower, sink))
    feeding = asyncio.create_task(feeder.run()) if feeder is not None else None
    cancelling = asyncio.create_task(_cancel_when_asked(client, names, reference, interrupts, cancels))
    leaving = asyncio.create_task(interrupts.leave.wait())
    tasks: set[asyncio.Task[Any]] = {following, leaving} | ({feeding} if feeding is not None else set())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if feeder is not None and feeding is not None and feeding.done() and not following.done():
            feeding.result()
            feeder.close()
            print(file=sys.stderr)  # the job's line is where the cursor stands
            tell(f"note: left; job {reference} goes on ({back})")
            return 0
        if not following.done():
            if cancels and interrupts.cancel.is_set():
                # The second Ctrl-C may come before the first has got through.
                await asyncio.wait((cancelling,), timeout=_CANCEL_WAIT_S)
            is_cancelled = cancelling.done() and cancelling.result()
            tell(f"note: left; job {reference} {'is being cancelled' if is_cancelled else f'goes on ({back})'}")
            return interrupts.exit_code
        ended = following.result()
    except BrokenPipeError:
        tell(f"note: nobody reads the output; job {reference} goes on ({back})")
        return EXIT_BROKEN_PIPE
    finally:
        for task in (*tasks, cancelling):
            task.cancel()
        await asyncio.gather(*tasks, cancelling, return_exceptions=True)
        if feeder is not None:
            feeder.close()
    for error in follower.errors:
        tell(f"warning: {error}")
    in_order = [ended[name] for name in names]
    for job in in_order:
        if job.state != JobState.JOB_STATE_SUCCEEDED:
            own_id = job_id(job, client.settings.tenant)
            tell(f"job {own_id} {job_state(job)}: {reason_sentence(job.reason, job.detail)}")
    return first_nonzero([job_code(job) for job in in_order])


class _WaitNotes:
    """Says once for each reason why a job is not running yet; `then` hears of each change, too."""

    def __init__(self, told: Iterable[str], then: Callable[[Job], None] | None = None) -> None:
        self._said: set[str] = {Reason.SCHEDULING, *told}
        self._then = then

    def on_change(self, job: Job) -> None:
        if self._then is not None:
            self._then(job)
        if job.state == JobState.JOB_STATE_QUEUED and job.wait.reason and job.wait.reason not in self._said:
            self._said.add(job.wait.reason)
            tell(f"note: job {job.id} waits: {reason_sentence(job.wait.reason, job.wait.detail)}")


async def _cancel_when_asked(
    client: AsyncClient, names: Sequence[str], reference: str, interrupts: Interrupts, cancels: bool
) -> bool:
    """Whether the scheduler was told."""
    await interrupts.cancel.wait()
    if not cancels:
        interrupts.leave.set()
        return False
    tell(f"note: cancelling job {reference} (Ctrl-C once more leaves without waiting for its end)")
    try:
        await cancel_jobs(client, names)
    except GpushareError as err:
        tell(f"error: {err}")
        return False
    return True
