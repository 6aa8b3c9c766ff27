"""The executor: starts, watches, stops, adopts and seals task attempts on this host.

Imports asyncio, msgspec and this package's launch modules, never grpc. Invariants: an attempt id is launched
at most once, whatever dies in between; a running job never depends on this process (its shim holds every
limit and record); an attempt is reported over only when its end is durable and nothing of it lives; what
cannot be confined as asked is refused, never run unconfined.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from gpushare.reasons import Reason
from gpushare_agent import cgroupfs, cgroups, checkpoint, procscan, settle
from gpushare_agent.attemptfiles import AttemptFiles
from gpushare_agent.attempttable import AttemptTable, Entry, within
from gpushare_agent.checkpoint import ExecRecord, StopRecord
from gpushare_agent.connections import Connections
from gpushare_agent.failpoints import failpoint
from gpushare_agent.launcherlink import LauncherGone, LauncherProcess
from gpushare_agent.launchspec import AttemptStatus, Containment, LaunchRefused, LaunchSpec, UnixUser
from gpushare_agent.lease import LeaseFile
from gpushare_agent.shim import LEASE_MARGIN_NS, MS
from gpushare_agent.shimlink import Message
from gpushare_agent.work import Work

__all__ = [
    "AttemptStatus",
    "Containment",
    "Executor",
    "ExecutorConfig",
    "LaunchRefused",
    "LaunchSpec",
    "UnixUser",
    "lease_needed_ms",
]

MAX_LAUNCHES_AT_ONCE = 32
OWN_TIMEOUT_S = 30.0
LAUNCH_TRIES = 3
HELLO_TIMEOUT_S = 1.0
# how long a shim may be silent behind a stop's grace before the agent ends the task by itself
SILENT_SHIM_S = 10.0
KILL_AGAIN_S = 1.0
REMOVE_TRIES = 40
REMOVE_WAIT_FIRST_S = 0.002
REMOVE_WAIT_LAST_S = 0.1
DELETE_FORGOTTEN_EVERY_S = 60.0
# While launches follow one another, the records of so many forgotten attempts may lie about: some 100 MB.
FORGOTTEN_KEPT = 5_000
BUSY_S = 10.0
SCAN_REUSE_S = 0.2
# After this long without a launch the kernel has forgotten the last move between groups.
QUIET_S = 0.02


def lease_needed_ms(grace_ms: int) -> int:
    """A `stop_and_requeue` attempt with that grace is ended when less lease than this is left: renew well before."""
    return grace_ms + LEASE_MARGIN_NS // MS


@dataclass(frozen=True)
class ExecutorConfig:
    """`state_dir` is absolute and durable, and enterable (0711) by the jobs' users when jobs run as others;
    `instance_id` names the agent's control groups. `weak` asks for no control groups at all; `run_as_self`
    lets root run specs without a user.
    """

    state_dir: Path
    instance_id: str
    weak: bool = False
    run_as_self: bool = False


class Executor:
    """One per agent. Order of use: construct, `start_launcher()` before grpc is imported, then inside the event
    loop `recover()`, anything, and `close()`; jobs live on. `on_change` is called in the loop for every
    change of a status and must not block.
    """

    def __init__(self, config: ExecutorConfig, on_change: Callable[[AttemptStatus], None]) -> None:
        self._config = config
        self._files = AttemptFiles(config.state_dir, config.instance_id, checkpoint.boot_id(), None)
        self._work = Work()
        self._on_change = on_change
        self._table = AttemptTable(self._files, self._work, on_change)
        self._launcher: LauncherProcess | None = None
        self._lease: LeaseFile | None = None
        self._job_files = 0
        self._slots = asyncio.Semaphore(MAX_LAUNCHES_AT_ONCE)
        self._scan: tuple[float, procscan.Scan | None] = (0.0, None)
        self._own_group = ""
        self._last_launch_s = 0.0

    @property
    def containment(self) -> Containment:
        """How attempts are held together on this host; known after `start_launcher`."""
        return self._files.layout.containment if self._files.layout is not None else "weak"

    @property
    def boot_id(self) -> str:
        """The boot that new attempts belong to."""
        return self._files.boot_id

    @property
    def connections(self) -> Connections:
        """The way in to running attempts."""
        return Connections(self._table, self._files)

    @property
    def launcher_pid(self) -> int:
        """0 if none runs."""
        return self._launcher.pid if self._launcher is not None and self._launcher.alive else 0

    def start_launcher(self) -> None:
        """Find out what this host can confine, make the directories, start the launcher. Synchronous, needs no
        event loop.

        Raises cgroups.CgroupsUnavailable if control groups are wanted (`weak` not set) and cannot be made,
        OSError if the state directory does not serve.
        """
        layout = None if self._config.weak else cgroups.probe(self._config.instance_id)
        self._own_group = cgroups.own_group() if layout is not None else ""
        self._files = AttemptFiles(self._config.state_dir, self._config.instance_id, self.boot_id, layout)
        self._table = AttemptTable(self._files, self._work, self._on_change)
        self._files.prepare_root()
        self._lease = LeaseFile(self._config.state_dir / "lease", self.boot_id)
        # two descriptors per live attempt are ours; a job keeps the limit that its host's admin set
        self._job_files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._new_launcher(self._lease)

    def _new_launcher(self, lease: LeaseFile, gone: LauncherProcess | None = None) -> LauncherProcess:
        """A launcher in place of `gone`; many launches may find it gone at once, and the first one replaces it."""
        old = self._launcher
        if old is not None:
            if old is not gone:
                return old
            self._work.spawn(self._work.in_thread(old.close))
        self._launcher = LauncherProcess(lease.fd, self._job_files, self._config.state_dir / "launcher.log")
        return self._launcher

    def renew_lease(self, deadline_boot_ns: int) -> None:
        """The node's lease now ends at that instant of CLOCK_BOOTTIME; every shim sees it within a second."""
        if self._lease is not None:
            self._lease.renew(deadline_boot_ns)

    def lease_left_ms(self) -> int:
        """How much of the node's lease is left."""
        return self._lease.left_ms() if self._lease is not None else 0

    # -- launch

    async def launch(self, spec: LaunchSpec, fence: Callable[[], Awaitable[None]] | None = None) -> None:
        """Start the attempt; returns once its shim has made the durable exec record and owns it. A known id
        does nothing.

        `fence` runs when the intent is durable and the control groups stand, and before the shim is forked:
        it sets the slice's limits on the card and reads them back, or raises LaunchRefused. On LaunchRefused
        nothing of the attempt is left.
        """
        if spec.attempt_id in self._table.entries:
            return
        lease = self._check(spec)
        entry = self._table.fresh(spec.attempt_id, self.boot_id)
        self._stir_groups()
        async with self._slots:
            try:
                entry.intent = await self._work.in_thread(self._files.prepare, spec)
                if fence is not None:
                    await fence()
                await self._hand_over(entry, lease)
            except Exception as error:
                del self._table.entries[spec.attempt_id]
                entry.over.set()
                if not (isinstance(error, LaunchRefused) and error.reason is Reason.STALE_ATTEMPT):
                    await self._discard(spec.attempt_id, keep_logs=False)
                raise

    def _stir_groups(self) -> None:
        """On a quiet node, let the kernel prepare for the shim's move while the intent is written."""
        now, before = time.monotonic(), self._last_launch_s
        self._last_launch_s = now
        if self._own_group and now - before > QUIET_S:
            self._work.spawn(self._work.in_thread(cgroups.stir, self._own_group))

    def _check(self, spec: LaunchSpec) -> LeaseFile:
        """Refuse what cannot be run as asked; the open lease."""
        if self._lease is None:
            raise LaunchRefused(Reason.INFRA, "the executor is not running")
        if not checkpoint.valid_attempt_id(spec.attempt_id):
            raise LaunchRefused(Reason.INVALID_FIELD, f"attempt id {spec.attempt_id!r} cannot name a file")
        if not spec.argv:
            raise LaunchRefused(Reason.INVALID_FIELD, "argv is empty")
        root = os.geteuid() == 0
        if root and not self._config.run_as_self and (spec.user is None or spec.user.uid == 0):
            raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, "this node runs no job as root and the job has no user")
        if not root and spec.user is not None and spec.user.uid != os.geteuid():
            text = f"the agent is not root and cannot become user {spec.user.name}"
            raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, text)
        if self._files.layout is None and spec.denied_devices:
            raise LaunchRefused(Reason.FENCE_FAILED, "weak containment cannot filter devices")
        if spec.on_disconnect == "stop_and_requeue" and self._lease.left_ms() <= lease_needed_ms(spec.grace_ms):
            text = f"{self._lease.left_ms()} ms of the node's lease are left and the job's grace is {spec.grace_ms} ms"
            raise LaunchRefused(Reason.LEASE_EXPIRED, text)
        return self._lease

    async def _hand_over(self, entry: Entry, lease: LeaseFile) -> None:
        """Have a shim forked and wait until it owns the attempt. Raises LaunchRefused; then no shim does or will."""
        directory = self._files.directory(entry.attempt_id)
        cause = ""
        for _ in range(LAUNCH_TRIES):
            message = await self._first_word(entry, lease)
            if message["event"] == "status":
                failpoint("agent.owned")
                return
            if entry.link is not None:
                entry.link.close()
                entry.link = None
            cause = str(message.get("detail"))
            if message["event"] == "refused":
                raise LaunchRefused(_reason(message.get("reason")), cause)
            # the channel's end says that no process holds it: if no shim had taken the attempt, none will
            if message["event"] == "silent" or await self._work.in_thread(settle.was_taken, directory):
                break
        try:
            taken = await self._work.in_thread(settle.seal, directory)
        except OSError:
            taken = ExecRecord()  # not known, so treated as one that may run
        if taken is None:
            raise LaunchRefused(Reason.INFRA, f"the attempt could not be started: {cause}")
        # it was taken after all, and its shim is dead or slow: no refusal, an attempt that goes its way
        self._table.adopt(entry, taken, self.boot_id)

    async def _first_word(self, entry: Entry, lease: LeaseFile) -> Message:
        """Order a shim; what it says first, or {event: dead | silent, detail}."""
        entry.first = asyncio.get_running_loop().create_future()
        try:
            await self._order(entry, lease)
            return await asyncio.wait_for(entry.first, OWN_TIMEOUT_S)
        except LauncherGone as error:
            return {"event": "dead", "detail": str(error)}
        except TimeoutError:
            return {"event": "silent", "detail": f"its shim did not take it within {OWN_TIMEOUT_S:g} s"}
        finally:
            entry.first = None

    async def _order(self, entry: Entry, lease: LeaseFile) -> None:
        launcher = self._launcher
        if launcher is None or not launcher.alive:
            launcher = self._new_launcher(lease, launcher)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        failpoint("agent.before_order")
        with theirs:
            try:
                await launcher.order(str(self._files.directory(entry.attempt_id)), theirs)
            except LauncherGone:
                ours.close()
                self._new_launcher(lease, launcher)
                raise
        failpoint("agent.after_order")
        entry.link = self._table.link(entry)
        entry.link.attach(ours)

    # -- stop

    async def stop(
        self,
        attempt_id: str,
        reason: Reason,
        grace_ms: int,
        detail: str = "",
        final_state: Literal["STOPPED", "FAILED"] = "STOPPED",
    ) -> None:
        """SIGTERM to the task, SIGKILL to all that is left after the grace; the end is `final_state` with
        `reason`.

        Returns when the order is recorded and on its way, not when the attempt is over. The first reason
        wins; a later stop can only shorten the grace. An attempt that is over or unknown is left as it is.
        """
        entry = self._table.entries.get(attempt_id)
        if entry is None or entry.status.final:
            return
        if entry.stop is None:
            entry.stop = StopRecord(reason, final_state, detail, grace_ms)
            await self._work.in_thread(settle.note_stop, self._files.directory(attempt_id), entry.stop)
        entry.stop = msgspec.structs.replace(entry.stop, grace_ms=min(grace_ms, entry.stop.grace_ms))
        self._table.send_stop(entry, entry.stop)
        if entry.stop_watch is not None:
            entry.stop_watch.cancel()
        entry.stop_watch = self._work.spawn(self._see_stop_through(entry, entry.stop.grace_ms))

    async def _see_stop_through(self, entry: Entry, grace_ms: int) -> None:
        """A shim that hangs does not keep its job alive: end the task from here, and the shim when the task is
        gone.
        """
        if await within(entry.over.wait(), grace_ms / 1000 + SILENT_SHIM_S):
            return
        groups = entry.intent.groups if entry.intent is not None else None
        if groups is None:
            if entry.link is not None:
                entry.link.kill()  # the main process dies with it; the rest is found by scanning
            return
        while not entry.over.is_set():
            await self._work.in_thread(cgroupfs.kill, groups.task_dir)
            if await within(entry.over.wait(), KILL_AGAIN_S):
                return
            if entry.link is not None and not await self._work.in_thread(cgroupfs.populated, groups.task_dir):
                entry.link.kill()

    # -- suspension

    def suspend(self, attempt_id: str, wanted: bool) -> None:
        """Stop all processes of the attempt until it is no longer wanted; told as SUSPENDED, and as RUNNING again. It
        is the shim's to do, and lasts across any restart of ours. One that is over or unknown is left as it is.
        """
        entry = self._table.entries.get(attempt_id)
        if entry is not None and not entry.status.final:
            entry.suspend = wanted
            self._table.send_suspend(entry)

    def tell(self, attempt_id: str, text: str) -> None:
        """A line of ours in the attempt's own output, where its owner reads it. Lost if its shim cannot be reached now:
        what is said here is never the only word.
        """
        entry = self._table.entries.get(attempt_id)
        if entry is not None and entry.link is not None and entry.tells and not entry.status.final:
            entry.link.send({"op": "tell", "text": text})

    # -- the time limit

    def set_run_limit(self, attempt_id: str, run_limit_ms: int) -> bool:
        """How long the task may run from its exec on, in place of what its spec says. It is its shim's to hold, and
        lasts across any restart of ours. One that is over or unknown is left as it is. False where the shim is of an
        earlier version, which cannot change it.
        """
        entry = self._table.entries.get(attempt_id)
        if entry is not None and not entry.status.final:
            entry.run_limit_ms = run_limit_ms
            self._table.send_limit(entry)
            return not entry.task_pid or entry.shim_limit_ms is not False
        return True

    # -- restart

    async def recover(self) -> list[AttemptStatus]:
        """Everything that earlier runs left: live attempts are adopted, ended ones judged. Call once, before
        anything else.

        Reads disk, control groups and shims only. Attempts whose end is still being proven are returned as
        STOPPING and reported through `on_change`. No running job notices.
        """
        names = set(await self._work.in_thread(self._files.attempts))
        if self._files.layout is not None:
            # a group without a directory: the state directory was emptied under a running job
            names.update(cgroups.attempts(self._files.layout))
        await self._work.in_thread(self._files.sweep, names)
        self._work.spawn(self._delete_forgotten())
        return list(await asyncio.gather(*(self._recover_one(name) for name in sorted(names))))

    async def _recover_one(self, attempt_id: str) -> AttemptStatus:
        found = await self._work.in_thread(settle.look, self._files.directory(attempt_id), attempt_id)
        entry = self._table.fresh(attempt_id, found.boot_id or self.boot_id)
        entry.intent, entry.stop = found.intent, found.stop
        if found.finished is not None:
            entry.status = found.finished
            entry.over.set()
            return entry.status
        # sealed before it is looked for: a shim that comes late finds the seal, and one in time has its socket
        taken = await self._work.in_thread(settle.seal, self._files.directory(attempt_id))
        entry.first = asyncio.get_running_loop().create_future()
        alive = taken is not None and self._table.adopt(entry, taken, self.boot_id)
        if alive and not await within(asyncio.shield(entry.first), HELLO_TIMEOUT_S):
            # its last word to the disk was that it took the attempt
            self._table.put(entry, msgspec.structs.replace(entry.status, state="RUNNING"))
        entry.first = None
        if entry.link is None and not entry.status.final:
            self._table.settle_soon(entry)
        if entry.settling is not None and not await within(asyncio.shield(entry.settling), KILL_AGAIN_S):
            self._table.put(entry, msgspec.structs.replace(entry.status, state="STOPPING"))
        return entry.status

    async def _delete_forgotten(self) -> None:
        """At once what another run of the agent left, beside the adoptions; then in quiet moments."""
        busy = False
        while True:
            # What cannot be read now is tried again.
            with contextlib.suppress(OSError):
                await self._work.in_thread(self._files.delete_forgotten, FORGOTTEN_KEPT if busy else 0)
            await asyncio.sleep(DELETE_FORGOTTEN_EVERY_S)
            busy = time.monotonic() - self._last_launch_s < BUSY_S

    async def seal(self, attempt_id: str) -> AttemptStatus:
        """Make sure that an attempt that never ran never will; the status it has then. One that runs or ran is
        left as it is.

        ValueError for an id that cannot name an attempt; OSError if the disk does not take the seal: ask again.
        """
        if not checkpoint.valid_attempt_id(attempt_id):
            raise ValueError(f"attempt id {attempt_id!r} cannot name a file")
        known = self._table.entries.get(attempt_id)
        if known is not None:
            return known.status
        entry = self._table.fresh(attempt_id, self.boot_id)
        directory = self._files.directory(attempt_id)
        try:
            taken = await self._work.in_thread(settle.seal, directory)
            if taken is None:
                self._table.put(entry, await self._work.in_thread(settle.judge, directory, attempt_id, self.boot_id))
                return entry.status
        except OSError:
            # nothing is known of it, and so it must not stand here as an attempt that is being launched
            del self._table.entries[attempt_id]
            entry.over.set()
            raise
        self._table.adopt(entry, taken, self.boot_id)
        return entry.status

    # -- looking

    def statuses(self) -> dict[str, AttemptStatus]:
        """Every attempt that was not forgotten."""
        return {attempt_id: entry.status for attempt_id, entry in self._table.entries.items()}

    def pids(self, attempt_id: str) -> set[int]:
        """The processes of the task now (not its shim); empty if there are none or the attempt is unknown."""
        entry = self._table.entries.get(attempt_id)
        if entry is None or entry.status.final:
            return set()
        if entry.intent is not None and entry.intent.groups is not None:
            return cgroupfs.processes(entry.intent.groups.task_dir)
        if entry.link is None or not entry.task_pid:
            return set()
        main = procscan.stat_of(entry.task_pid)
        since = main.start if main is not None else 0
        if time.monotonic() - self._scan[0] > SCAN_REUSE_S:
            self._scan = (time.monotonic(), procscan.Scan())
        scope = procscan.Scope(entry.link.shim_pid, entry.task_pid, self._files.tag(attempt_id), since)
        return procscan.members(scope, self._scan[1])

    def log_dir(self, attempt_id: str) -> Path:
        """Where `logfiles` finds what the attempt printed; it outlives `forget`."""
        return self._files.log_dir(attempt_id)

    def private_dir(self, attempt_id: str) -> Path:
        """The directory that a spec with `private_dir` gets, owned by the job's user."""
        return self._files.private_dir(attempt_id)

    def stop_notice(self, attempt_id: str) -> Path:
        """The file in which the task finds that it will be stopped; there is none before."""
        return self._files.stop_notice(attempt_id)

    # -- the end

    async def forget(self, attempt_id: str) -> None:
        """Remove records, script, private directory and control groups of an attempt that is over; its logs
        stay, and with them the mark that this id was used. Repeatable; ValueError if the attempt is not
        over.
        """
        entry = self._table.entries.get(attempt_id)
        if entry is None:
            return
        if not entry.status.final:
            raise ValueError(f"attempt {attempt_id} is {entry.status.state} and cannot be forgotten")
        await self._discard(attempt_id, keep_logs=True)
        self._table.entries.pop(attempt_id, None)
        if entry.link is not None:
            entry.link.close()

    async def _discard(self, attempt_id: str, keep_logs: bool) -> None:
        wait_s = REMOVE_WAIT_FIRST_S
        for _ in range(REMOVE_TRIES):
            if await self._work.in_thread(self._files.discard, attempt_id, keep_logs):
                return
            # its shim is on the last step and still in its group
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, REMOVE_WAIT_LAST_S)

    async def close(self) -> None:
        """Let go of everything; jobs and their shims go on, and the next executor on this state directory
        adopts them.
        """
        self._table.close()
        # first, because a caller in a hurry does not wait for the slower rest
        if self._files.layout is not None:
            cgroups.release(self._files.layout)
        if self._launcher is not None:
            await self._work.in_thread(self._launcher.close)
        await self._work.close()
        if self._lease is not None:
            self._lease.close()
            self._lease = None


def _reason(word: object) -> Reason:
    try:
        return Reason(str(word))
    except ValueError:
        return Reason.INFRA
