"""The executor: starts, watches, stops, adopts and seals task attempts on this host.

Imports asyncio, msgspec and this package's launch modules, never grpc. Invariants: an attempt id is launched at most once, whatever
dies in between; a running job never depends on this process (its shim holds every limit and record); an attempt is reported over only
when its end is durable and nothing of it lives; what cannot be confined as asked is refused, never run unconfined.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from gpushare.reasons import Reason
from gpushare_agent import cgroupfs, cgroups, checkpoint, procscan, records, settle
from gpushare_agent.attemptfiles import AttemptFiles
from gpushare_agent.checkpoint import Intent, StopRecord
from gpushare_agent.failpoints import failpoint
from gpushare_agent.launcherlink import LauncherGone, LauncherProcess
from gpushare_agent.launchspec import AttemptStatus, Containment, LaunchRefused, LaunchSpec, UnixUser
from gpushare_agent.shim import LEASE_MARGIN_NS, MS, STUCK_AFTER_NS, boot_ns
from gpushare_agent.shimlink import Message, ShimLink

__all__ = [
    "AttemptStatus",
    "Containment",
    "Executor",
    "ExecutorConfig",
    "LaunchRefused",
    "LaunchSpec",
    "UnixUser",
    "leave_time_ms",
]

T = TypeVar("T")

MAX_LAUNCHES_AT_ONCE = 32
THREADS = 8
OWN_TIMEOUT_S = 30.0
LAUNCH_TRIES = 2
HELLO_TIMEOUT_S = 1.0
# how long a shim may be silent behind a stop's grace before the agent ends the task by itself
SILENT_SHIM_S = 10.0
KILL_SLICE_S = 1.0
REMOVE_TRIES = 40
REMOVE_WAIT_S = 0.05
RECORD_RETRY_S = 1.0
SCAN_REUSE_S = 0.2
_LEASE = struct.Struct("<q")


def leave_time_ms(grace_ms: int) -> int:
    """How much lease, in ms, must be left for a `stop_and_requeue` attempt with that grace not to be ended: renew well before."""
    return grace_ms + LEASE_MARGIN_NS // MS


@dataclass(frozen=True)
class ExecutorConfig:
    """`state_dir` is absolute and durable, and enterable (0711) by the jobs' users when jobs run as others; `instance_id` names the
    agent's control groups. `weak` asks for no control groups at all; `run_as_self` lets root run specs without a user."""

    state_dir: Path
    instance_id: str
    weak: bool = False
    run_as_self: bool = False


@dataclass
class _Entry:
    """One attempt that this executor knows."""

    status: AttemptStatus
    link: ShimLink | None = None
    intent: Intent | None = None
    task_pid: int = 0
    stop: StopRecord | None = None
    first: asyncio.Future[Message] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    settling: asyncio.Task[None] | None = None


class Executor:
    """One per agent. Order of use: construct, `start_launcher()` before grpc is imported, then inside the event loop `recover()`,
    anything, and `close()`; jobs live on. `on_change` is called in the loop for every change of a status and must not block.
    """

    def __init__(self, config: ExecutorConfig, on_change: Callable[[AttemptStatus], None]) -> None:
        self._config = config
        self._on_change = on_change
        self._layout: cgroups.Layout | None = None
        self._files = AttemptFiles(config.state_dir, config.instance_id, checkpoint.boot_id(), None)
        self._entries: dict[str, _Entry] = {}
        self._launcher: LauncherProcess | None = None
        self._lease_fd = -1
        self._slots = asyncio.Semaphore(MAX_LAUNCHES_AT_ONCE)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="executor")
        self._background: set[asyncio.Task[None]] = set()
        self._scan: tuple[float, list[procscan.Proc]] = (0.0, [])
        self._closed = False

    @property
    def containment(self) -> Containment:
        """How attempts are held together on this host; known after `start_launcher`."""
        return self._layout.containment if self._layout is not None else "weak"

    @property
    def boot_id(self) -> str:
        """The boot that new attempts belong to."""
        return self._files.boot_id

    # -- the launcher

    def start_launcher(self) -> None:
        """Find out what this host can confine, make the directories, start the launcher. Synchronous, needs no event loop.

        Raises cgroups.CgroupsUnavailable if control groups are wanted (`weak` not set) and cannot be made.
        """
        if not self._config.weak:
            self._layout = cgroups.probe(self._config.instance_id)
        self._files = AttemptFiles(
            self._config.state_dir, self._config.instance_id, self._files.boot_id, self._layout
        )
        self._files.prepare_root()
        self._lease_fd = _open_lease(self._config.state_dir / "lease", self._files.boot_id)
        self._start_launcher_process()

    def _start_launcher_process(self) -> LauncherProcess:
        self._launcher = LauncherProcess(self._lease_fd, self._config.state_dir / "launcher.log")
        return self._launcher

    @property
    def launcher_pid(self) -> int:
        """0 if none runs."""
        return self._launcher.pid if self._launcher is not None and self._launcher.alive else 0

    def renew_lease(self, deadline_boot_ns: int) -> None:
        """The node's lease now ends at that instant of CLOCK_BOOTTIME; every shim sees it within a second."""
        os.pwrite(self._lease_fd, _LEASE.pack(deadline_boot_ns), 0)

    # -- launch

    async def launch(self, spec: LaunchSpec, fence: Callable[[], Awaitable[None]] | None = None) -> None:
        """Start the attempt; returns once its shim has made the durable exec record and owns it. A known id does nothing.

        `fence` runs when the intent is durable and the control groups stand, and before the shim is forked: it sets the slice's
        limits on the card and reads them back, or raises LaunchRefused. On LaunchRefused nothing of the attempt is left.
        """
        if spec.attempt_id in self._entries:
            return
        self._check(spec)
        entry = _Entry(AttemptStatus(attempt_id=spec.attempt_id, state="LAUNCHING", boot_id=self.boot_id))
        self._entries[spec.attempt_id] = entry
        async with self._slots:
            try:
                entry.intent = await self._in_thread(self._files.prepare, spec)
                if fence is not None:
                    await fence()
                await self._hand_over(spec.attempt_id, entry)
            except LaunchRefused as refused:
                del self._entries[spec.attempt_id]
                if refused.reason is not Reason.STALE_ATTEMPT:
                    await self._discard(spec.attempt_id, keep_logs=False)
                raise

    def _check(self, spec: LaunchSpec) -> None:
        if self._closed or self._lease_fd < 0:
            raise LaunchRefused(Reason.INFRA, "the executor is not running")
        if not checkpoint.valid_attempt_id(spec.attempt_id):
            raise LaunchRefused(Reason.INVALID_FIELD, f"attempt id {spec.attempt_id!r} cannot name a file")
        if not spec.argv:
            raise LaunchRefused(Reason.INVALID_FIELD, "argv is empty")
        if os.geteuid() == 0 and not self._config.run_as_self and (spec.user is None or spec.user.uid == 0):
            raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, "this node runs no job as root and the job has no user")
        if os.geteuid() != 0 and spec.user is not None and spec.user.uid != os.geteuid():
            text = f"the agent is no root and cannot become user {spec.user.name}"
            raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, text)
        if self._layout is None and spec.denied_devices:
            raise LaunchRefused(Reason.FENCE_FAILED, "weak containment cannot filter devices")
        if spec.on_disconnect == "stop_and_requeue":
            (deadline,) = _LEASE.unpack(os.pread(self._lease_fd, _LEASE.size, 0))
            left_ms = (deadline - boot_ns()) // MS
            if left_ms <= leave_time_ms(spec.grace_ms):
                text = f"{max(0, left_ms)} ms of the node's lease are left and the job's grace is {spec.grace_ms} ms"
                raise LaunchRefused(Reason.LEASE_EXPIRED, text)

    async def _hand_over(self, attempt_id: str, entry: _Entry) -> None:
        """Have a shim forked and wait until it owns the attempt. Raises LaunchRefused; then no shim does or will."""
        cause = ""
        for _ in range(LAUNCH_TRIES):
            first: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            entry.first = first
            try:
                await self._order(attempt_id, entry)
                message = await asyncio.wait_for(asyncio.shield(first), OWN_TIMEOUT_S)
            except LauncherGone as error:
                cause = str(error)
                continue
            except TimeoutError:
                message = {"event": "dead", "detail": f"the shim did not take the attempt within {OWN_TIMEOUT_S:g} s"}
            finally:
                entry.first = None
            if message["event"] == "status":
                failpoint("agent.owned")
                return
            if entry.link is not None:
                entry.link.close()
                entry.link = None
            if message["event"] == "refused":
                raise LaunchRefused(_reason(message.get("reason")), str(message.get("detail")))
            if not await self._in_thread(self._seal_on_disk, attempt_id):
                # it was taken after all, and its shim died or is slow: no refusal, an attempt that goes its way
                self._adopt_or_settle(attempt_id, entry)
                return
            cause = str(message.get("detail") or "its shim died before it took the attempt")
            break
        raise LaunchRefused(Reason.INFRA, f"the attempt could not be started: {cause}")

    async def _order(self, attempt_id: str, entry: _Entry) -> None:
        directory = str(self._files.directory(attempt_id))
        launcher = self._launcher
        if launcher is None or not launcher.alive:
            launcher = self._start_launcher_process()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = ShimLink(
            directory, functools.partial(self._hear, attempt_id), functools.partial(self._shim_died, attempt_id)
        )
        failpoint("agent.before_order")
        with theirs:
            try:
                await launcher.order(directory, theirs)
            except LauncherGone:
                ours.close()
                raise
        failpoint("agent.after_order")
        link.attach(ours)
        entry.link = link

    # -- what shims say

    def _hear(self, attempt_id: str, message: Message) -> None:
        entry = self._entries.get(attempt_id)
        if entry is None:
            return
        if message.get("event") == "status":
            try:
                status = msgspec.convert(message, AttemptStatus)
            except msgspec.ValidationError:
                return
            if entry.link is not None and not entry.link.hold(int(message["shim_pid"]), int(message["shim_start"])):
                # gone already: what it said last is on the way, and the end of the channel after it
                pass
            entry.task_pid = int(message["task_pid"])
            self._set(entry, status)
            if entry.stop is not None and status.state in ("LAUNCHING", "RUNNING"):
                self._send_stop(entry, entry.stop)
        if entry.first is not None and not entry.first.done():
            entry.first.set_result(message)

    def _shim_died(self, attempt_id: str) -> None:
        entry = self._entries.get(attempt_id)
        if entry is None:
            return
        entry.link = None
        if entry.first is not None:
            if not entry.first.done():
                entry.first.set_result({"event": "dead"})
            return
        if not entry.status.final:
            self._settle_soon(attempt_id, entry)

    def _set(self, entry: _Entry, status: AttemptStatus) -> None:
        if entry.status.final or status == entry.status:
            return
        entry.status = status
        if status.final:
            entry.over.set()
        self._on_change(status)

    # -- attempts without a shim

    def _settle_soon(self, attempt_id: str, entry: _Entry) -> None:
        if entry.settling is None:
            entry.settling = self._spawn(self._settle(attempt_id, entry))

    async def _settle(self, attempt_id: str, entry: _Entry) -> None:
        """Prove that nothing of it lives, then report what the disk says about it."""
        directory = self._files.directory(attempt_id)
        status = await self._in_thread(settle.finished, directory, attempt_id)
        if status is None and entry.status.boot_id == self.boot_id:
            await self._end_remains(attempt_id, entry)
        while status is None:
            try:
                status = await self._in_thread(settle.judge, directory, attempt_id, self.boot_id)
            except OSError as error:
                detail = f"the end of the attempt cannot be recorded: {error}"
                self._set(entry, msgspec.structs.replace(entry.status, state="STOPPING", detail=detail))
                await asyncio.sleep(RECORD_RETRY_S)
        if status.started_ms is None and entry.status.started_ms is not None:
            status = msgspec.structs.replace(status, started_ms=entry.status.started_ms)
        self._set(entry, status)

    async def _end_remains(self, attempt_id: str, entry: _Entry) -> None:
        directory = self._files.directory(attempt_id)
        groups = cgroups.describe(self._layout, attempt_id) if self._layout is not None else None
        tag = f"{self._config.instance_id}/{attempt_id}"
        left = await self._in_thread(settle.remains, directory, entry.intent, groups, tag, self.boot_id)
        began = boot_ns()
        while not await self._in_thread(settle.kill_for, left, KILL_SLICE_S):
            if boot_ns() - began > STUCK_AFTER_NS and not entry.status.stuck:
                detail = f"processes {sorted(left.pids())[:16]} still live {STUCK_AFTER_NS // (1000 * MS)} s after SIGKILL"
                stuck = msgspec.structs.replace(entry.status, state="STOPPING", stuck=True, detail=detail)
                self._set(entry, stuck)

    def _seal_on_disk(self, attempt_id: str) -> bool:
        directory = self._files.directory(attempt_id)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        dirfd = records.open_directory(str(directory))
        try:
            return checkpoint.seal(dirfd)
        finally:
            os.close(dirfd)

    async def seal(self, attempt_id: str) -> AttemptStatus:
        """Make sure that an attempt that never ran never will; the status it has then. One that runs or ran is left as it is.

        ValueError for an id that cannot name an attempt; OSError if the disk does not take the seal.
        """
        if not checkpoint.valid_attempt_id(attempt_id):
            raise ValueError(f"attempt id {attempt_id!r} cannot name a file")
        entry = self._entries.get(attempt_id)
        if entry is not None:
            return entry.status
        sealed = await self._in_thread(self._seal_on_disk, attempt_id)
        entry = self._entries.setdefault(
            attempt_id, _Entry(AttemptStatus(attempt_id=attempt_id, state="LAUNCHING", boot_id=self.boot_id))
        )
        if sealed:
            status = await self._in_thread(
                settle.judge, self._files.directory(attempt_id), attempt_id, self.boot_id
            )
            self._set(entry, status)
        else:
            self._adopt_or_settle(attempt_id, entry)
        return entry.status

    # -- stop

    async def stop(
        self,
        attempt_id: str,
        reason: Reason,
        grace_ms: int,
        detail: str = "",
        final_state: Literal["STOPPED", "FAILED"] = "STOPPED",
    ) -> None:
        """SIGTERM to the task, SIGKILL to all that is left after the grace; the end is `final_state` with `reason`.

        Returns when the order is recorded and on its way, not when the attempt is over. The first reason wins; a later stop can only
        shorten the grace. An attempt that is over or unknown is left as it is.
        """
        entry = self._entries.get(attempt_id)
        if entry is None or entry.status.final:
            return
        stop = StopRecord(reason, final_state, detail, grace_ms)
        if entry.stop is None:
            entry.stop = stop
            await self._in_thread(self._record_stop, attempt_id, stop)
        self._send_stop(entry, msgspec.structs.replace(entry.stop, grace_ms=grace_ms))
        self._spawn(self._see_stop_through(entry, grace_ms))

    def _record_stop(self, attempt_id: str, stop: StopRecord) -> None:
        try:
            dirfd = records.open_directory(str(self._files.directory(attempt_id)))
        except FileNotFoundError:  # its launch is still being prepared: the order goes out with its first word
            return
        try:
            checkpoint.write_stop(dirfd, stop)
        except OSError:
            return  # a full disk must not keep a job alive; the shim holds the order too
        finally:
            os.close(dirfd)

    def _send_stop(self, entry: _Entry, stop: StopRecord) -> None:
        if entry.link is not None:
            order = {"op": "stop", "reason": stop.reason.value, "final_state": stop.final_state, "detail": stop.detail}
            entry.link.send({**order, "grace_ms": stop.grace_ms})

    async def _see_stop_through(self, entry: _Entry, grace_ms: int) -> None:
        """A shim that hangs does not keep its job alive: end the task from here, and the shim when the task is gone."""
        if await _within(entry.over, grace_ms / 1000 + SILENT_SHIM_S):
            return
        if entry.intent is None or entry.intent.groups is None:
            if entry.link is not None:
                entry.link.kill()  # the main process dies with it; the rest is found by scanning
            return
        task_dir = entry.intent.groups.task_dir
        while not await _within(entry.over, SILENT_SHIM_S):
            await self._in_thread(cgroupfs.kill, task_dir)
            if await _within(entry.over, KILL_SLICE_S):
                return
            if entry.link is not None and not await self._in_thread(cgroupfs.populated, task_dir):
                entry.link.kill()

    # -- restart

    async def recover(self) -> list[AttemptStatus]:
        """Everything that earlier runs left: live attempts are adopted, ended ones judged. Call once, before anything else.

        Reads disk, control groups and shims only. Attempts whose end is still being proven are returned as STOPPING and
        reported through `on_change`. No running job notices.
        """
        names = await self._in_thread(self._files.attempts)
        if self._layout is not None:
            # a group without a directory: the state directory was emptied under a running job
            names += [name for name in cgroups.attempts(self._layout) if name not in names]
        await self._in_thread(self._files.sweep, set(names))
        found = await asyncio.gather(*(self._recover_one(name) for name in names))
        return list(found)

    async def _recover_one(self, attempt_id: str) -> AttemptStatus:
        intent, finished, stop, lived_in = await self._in_thread(self._read, attempt_id)
        entry = _Entry(
            finished or AttemptStatus(attempt_id=attempt_id, state="LAUNCHING", boot_id=lived_in), intent=intent
        )
        self._entries[attempt_id] = entry
        if finished is not None:
            entry.over.set()
            return finished
        entry.stop = stop
        heard = asyncio.get_running_loop().create_future()
        entry.first = heard
        if self._adopt_or_settle(attempt_id, entry):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(heard), HELLO_TIMEOUT_S)
        entry.first = None
        if entry.link is None and not entry.status.final:
            self._settle_soon(attempt_id, entry)
        if entry.settling is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(entry.settling), KILL_SLICE_S)
        if entry.link is None and not entry.status.final:
            self._set(entry, msgspec.structs.replace(entry.status, state="STOPPING"))
        return entry.status

    def _read(self, attempt_id: str) -> tuple[Intent | None, AttemptStatus | None, StopRecord | None, str]:
        directory = self._files.directory(attempt_id)
        directory.mkdir(mode=0o700, exist_ok=True)
        dirfd = records.open_directory(str(directory))
        try:
            intent = checkpoint.read_intent(dirfd, attempt_id)
            taken = checkpoint.read_exec(dirfd)
            lived_in = (taken.boot_id if taken is not None else "") or (intent.boot_id if intent is not None else "")
            finished = checkpoint.read_exit(dirfd, attempt_id)
            return intent, finished, checkpoint.read_stop(dirfd), lived_in or self.boot_id
        finally:
            os.close(dirfd)

    def _adopt_or_settle(self, attempt_id: str, entry: _Entry) -> bool:
        """True if a shim took the connection; else the attempt is judged in the background."""
        directory = str(self._files.directory(attempt_id))
        link = ShimLink(
            directory, functools.partial(self._hear, attempt_id), functools.partial(self._shim_died, attempt_id)
        )
        taken = self._taken(attempt_id)
        if taken is not None and taken.boot_id == self.boot_id:
            link.hold(taken.shim_pid, taken.shim_start)
        if entry.status.boot_id == self.boot_id and link.connect():
            entry.link = link
            if taken is not None:
                self._set(entry, msgspec.structs.replace(entry.status, state="RUNNING"))
            return True
        link.close()
        self._settle_soon(attempt_id, entry)
        return False

    def _taken(self, attempt_id: str) -> checkpoint.ExecRecord | None:
        dirfd = records.open_directory(str(self._files.directory(attempt_id)))
        try:
            return checkpoint.read_exec(dirfd)
        finally:
            os.close(dirfd)

    # -- looking

    def statuses(self) -> dict[str, AttemptStatus]:
        """Every attempt that was not forgotten."""
        return {attempt_id: entry.status for attempt_id, entry in self._entries.items()}

    def pids(self, attempt_id: str) -> set[int]:
        """The processes of the task now (not its shim); empty if there are none or the attempt is unknown."""
        entry = self._entries.get(attempt_id)
        if entry is None or entry.status.final:
            return set()
        if entry.intent is not None and entry.intent.groups is not None:
            return cgroupfs.processes(entry.intent.groups.task_dir)
        if entry.link is None or not entry.task_pid:
            return set()
        main = procscan.stat_of(entry.task_pid)
        scope = procscan.Scope(
            entry.link.shim_pid, entry.task_pid, f"{self._config.instance_id}/{attempt_id}", main.start if main else 0
        )
        if time.monotonic() - self._scan[0] > SCAN_REUSE_S:
            self._scan = (time.monotonic(), procscan.snapshot())
        return procscan.members(scope, self._scan[1])

    def log_dir(self, attempt_id: str) -> Path:
        """Where `logfiles` finds what the attempt printed; it outlives `forget`."""
        return self._files.log_dir(attempt_id)

    def private_dir(self, attempt_id: str) -> Path:
        """The directory that a spec with `private_dir` gets, owned by the job's user."""
        return self._files.private_dir(attempt_id)

    # -- the end

    async def forget(self, attempt_id: str) -> None:
        """Remove records, script, private directory and control groups of an attempt that is over; its logs stay, and with them the
        mark that this id was used. Repeatable; ValueError if the attempt is not over."""
        entry = self._entries.get(attempt_id)
        if entry is None:
            return
        if not entry.status.final:
            raise ValueError(f"attempt {attempt_id} is {entry.status.state} and cannot be forgotten")
        await self._discard(attempt_id, keep_logs=True)
        self._entries.pop(attempt_id, None)
        if entry.link is not None:
            entry.link.close()

    async def _discard(self, attempt_id: str, keep_logs: bool) -> None:
        for _ in range(REMOVE_TRIES):
            if await self._in_thread(self._files.discard, attempt_id, keep_logs):
                return
            await asyncio.sleep(REMOVE_WAIT_S)  # the shim is on its last step

    async def close(self) -> None:
        """Let go of everything; jobs and their shims go on, and the next executor on this state directory adopts them."""
        self._closed = True
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for entry in self._entries.values():
            if entry.link is not None:
                entry.link.close()
                entry.link = None
        if self._launcher is not None:
            await self._in_thread(self._launcher.close)
        self._threads.shutdown(wait=True)
        if self._lease_fd >= 0:
            os.close(self._lease_fd)
            self._lease_fd = -1
        if self._layout is not None:
            cgroups.release(self._layout)

    # -- plumbing

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *arguments))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _reason(word: object) -> Reason:
    try:
        return Reason(str(word))
    except ValueError:
        return Reason.INFRA


def _open_lease(path: Path, boot_id: str) -> int:
    """The lease's file, never replaced: shims hold it open. A deadline of another boot means nothing and is cleared."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    mark = boot_id.encode()
    if os.pread(fd, 4096, _LEASE.size) != mark:
        os.pwrite(fd, _LEASE.pack(0) + mark, 0)
        os.ftruncate(fd, _LEASE.size + len(mark))
    return fd
