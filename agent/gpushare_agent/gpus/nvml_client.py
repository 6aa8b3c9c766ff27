"""The cards of this host through NVML, read by a child process that may be killed at any moment.

Implements `port.GpuLibrary`; imports no pynvml. Invariants: one child at a time, and while a child that was
killed has not died (a call stuck in the kernel) no other is started; a snapshot ends within its deadline
whatever the driver does; stopping the agent never waits for a stuck child. A card that was seen once stays
in every later snapshot, as lost if the driver no longer shows it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gpushare_agent.gpus.child import ChildProcess
from gpushare_agent.gpus.owners import UserNames
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuProcess, GpuSample, GpuSnapshot

MAX_REPLY_BYTES = 16 << 20
KILL_WAIT_S = 0.3
CLOSE_WAIT_S = 0.5


class _ChildGoneError(Exception):
    """The child ended or spoke rubbish instead of answering."""


class _NvmlChild:
    """The child with its two pipes. One request at a time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        try:
            self.process = ChildProcess.spawn(
                # Without `site`: the parent's path is handed over, which is faster and smaller.
                [sys.executable, "-S", "-P", "-m", "gpushare_agent.gpus.nvml", str(os.getpid())],
                {**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=request_end,
                stdout=reply_end,
            )
        except OSError:
            os.close(self._requests)
            os.close(self._replies)
            raise
        finally:
            os.close(request_end)
            os.close(reply_end)
        os.set_blocking(self._replies, False)
        os.set_blocking(self._requests, False)
        self.started_s = time.monotonic()
        self.answered = False
        self._buffer = bytearray()
        self._reply: asyncio.Future[bytes] | None = None

    def ask(self) -> asyncio.Future[bytes]:
        """Send a request unless one is under way; the future of its reply line fails with _ChildGoneError."""
        if self._reply is not None and not self._reply.done():
            return self._reply
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        try:
            os.write(self._requests, b"\n")
        except OSError as err:
            raise _ChildGoneError(f"its pipe is closed ({err})") from err
        loop.add_reader(self._replies, self._on_readable)
        return self._reply

    def _on_readable(self) -> None:
        reply = self._reply
        try:
            data = os.read(self._replies, 1 << 16)
        except BlockingIOError:
            return
        self._buffer += data
        if reply is None or reply.done():
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._replies)
            reply.set_exception(_ChildGoneError("it ended without an answer"))
        elif self._buffer.endswith(b"\n"):
            self.answered = True
            reply.set_result(bytes(self._buffer))
            self._buffer.clear()
        elif len(self._buffer) > MAX_REPLY_BYTES:
            reply.set_exception(_ChildGoneError(f"its answer is longer than {MAX_REPLY_BYTES} bytes"))

    def close_pipes(self) -> None:
        """The child sees the end of its input and leaves by itself if it can."""
        if self._replies < 0:
            return
        asyncio.get_running_loop().remove_reader(self._replies)
        os.close(self._requests)
        os.close(self._replies)
        self._requests = self._replies = -1
        if self._reply is not None and not self._reply.done():
            self._reply.cancel()


class NvmlLibrary:
    """`GpuLibrary` over NVML.

    `deadline_s` bounds a snapshot. A child that has not answered yet is given `start_deadline_s` before it
    is killed, since without persistence mode the driver takes seconds per card to open; snapshots meanwhile
    say so. After a state that a new child may not have (driver missing, mismatch, crash) the next child
    comes after a pause that doubles from `backoff_first_s` to `backoff_max_s`. `stuck_file` remembers a
    child that did not die across a restart of the agent.
    """

    name = "nvml"

    def __init__(
        self,
        *,
        deadline_s: float = 5.0,
        start_deadline_s: float = 60.0,
        backoff_first_s: float = 1.0,
        backoff_max_s: float = 60.0,
        stuck_file: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        self._start_deadline_s = start_deadline_s
        self._backoff_first_s = backoff_first_s
        self._backoff_max_s = backoff_max_s
        self._environ = dict(os.environ if environ is None else environ)
        self._names = UserNames()
        self._child: _NvmlChild | None = None
        self._stuck_file = stuck_file
        self._stuck: ChildProcess | None = _left_behind(stuck_file)
        self._stuck_since_s = time.monotonic()
        self._backoff_s = 0.0
        self._retry_at_s = 0.0
        self._trouble = GpuSnapshot(state=DriverState.ERROR)
        self._seen: dict[str, GpuInfo] = {}
        self._flight: asyncio.Task[GpuSnapshot] | None = None
        self._closed = False

    async def snapshot(self) -> GpuSnapshot:
        """Read every card once; callers at the same time share the reading. See `GpuLibrary.snapshot`."""
        if self._closed:
            return _trouble(DriverState.ERROR, "the library was closed")
        if self._flight is None or self._flight.done():
            self._flight = asyncio.get_running_loop().create_task(self._take())
        flight = self._flight
        try:
            return await asyncio.shield(flight)
        except asyncio.CancelledError:
            if flight.cancelled():  # by close(), not by whoever waits here
                return _trouble(DriverState.ERROR, "the library was closed")
            raise

    async def close(self) -> None:
        """See `GpuLibrary.close`. A stuck child is left to the kernel, which kills it when this process
        ends.
        """
        self._closed = True
        if self._flight is not None and not self._flight.done():
            self._flight.cancel()
            await asyncio.wait([self._flight], timeout=CLOSE_WAIT_S)
        await self._drop_child()
        if self._stuck is not None:
            self._stuck.close()
            self._stuck = None

    async def _take(self) -> GpuSnapshot:
        if self._stuck is not None:
            if self._stuck.alive():
                return self._still_stuck(self._stuck)
            self._forget_stuck()
        if self._child is None and time.monotonic() < self._retry_at_s:
            return msgspec.structs.replace(self._trouble, taken_boot_ns=_boot_ns())
        try:
            child = self._child = self._child or _NvmlChild(self._environ)
            line = await asyncio.wait_for(asyncio.shield(child.ask()), self._deadline_s - KILL_WAIT_S)
            snapshot = msgspec.json.decode(line, type=GpuSnapshot)
        except TimeoutError:
            return await self._missed()
        except (OSError, _ChildGoneError, msgspec.DecodeError) as err:
            await self._drop_child()
            return self._pause(_trouble(DriverState.ERROR, f"the process that reads the cards failed: {err}"))
        if snapshot.state is not DriverState.OK:
            await self._drop_child()
            return self._pause(msgspec.structs.replace(snapshot, taken_boot_ns=_boot_ns()))
        self._backoff_s = 0.0
        return await self._named(self._with_lost_cards(snapshot))

    async def _missed(self) -> GpuSnapshot:
        """The deadline passed: wait on if the driver may still be opening its cards, else kill the child."""
        child = self._child
        if child is None:
            return _trouble(DriverState.HUNG, "the NVIDIA driver does not answer")
        age_s = time.monotonic() - child.started_s
        if not child.answered and age_s < self._start_deadline_s:
            return _trouble(DriverState.HUNG, f"the NVIDIA driver is still opening its cards ({age_s:.0f} s so far)")
        await self._drop_child()
        detail = f"the NVIDIA driver did not answer within {self._deadline_s:g} s"
        return _trouble(DriverState.HUNG, f"{detail}; the process that asked it was killed")

    async def _drop_child(self) -> None:
        """Kill the child. If it does not die it becomes the stuck one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.close_pipes()
        child.process.send(signal.SIGKILL)
        if await child.process.wait(KILL_WAIT_S):
            child.process.close()
            return
        self._stuck, self._stuck_since_s = child.process, time.monotonic()
        self._remember_stuck(child.process.pid)

    def _still_stuck(self, stuck: ChildProcess) -> GpuSnapshot:
        since_s = time.monotonic() - self._stuck_since_s
        detail = f"a call into the NVIDIA driver has been stuck for {since_s:.0f} s (pid {stuck.pid} cannot be killed)"
        return _trouble(DriverState.HUNG, f"{detail}; no other is made until it ends")

    def _remember_stuck(self, pid: int) -> None:
        if self._stuck_file is None:
            return
        try:
            self._stuck_file.write_text(f"{pid} {_start_ticks(pid)}\n", encoding="ascii")
        except OSError:
            return  # only a restarted agent would have read it, and it would find the driver hung by itself

    def _forget_stuck(self) -> None:
        if self._stuck is not None:
            self._stuck.close()
            self._stuck = None
        if self._stuck_file is not None:
            self._stuck_file.unlink(missing_ok=True)

    def _pause(self, trouble: GpuSnapshot) -> GpuSnapshot:
        """Remember the trouble, and when to try again."""
        self._backoff_s = min(max(self._backoff_s * 2, self._backoff_first_s), self._backoff_max_s)
        self._retry_at_s = time.monotonic() + self._backoff_s
        self._trouble = trouble
        return trouble

    def _with_lost_cards(self, snapshot: GpuSnapshot) -> GpuSnapshot:
        """Infos and samples of every card ever seen, in one order; those that have vanished as lost."""
        self._seen.update({info.uuid: info for info in snapshot.infos})
        samples = {sample.uuid: sample for sample in snapshot.samples}
        details = [snapshot.detail] if snapshot.detail else []
        details += [
            f"card {sample.uuid} cannot be identified: {sample.error}"
            for sample in snapshot.samples
            if sample.uuid not in self._seen
        ]
        ordered = sorted(self._seen.values(), key=lambda info: (info.index, info.uuid))
        return msgspec.structs.replace(
            snapshot,
            detail="; ".join(details),
            infos=tuple(ordered),
            samples=tuple(samples.get(info.uuid) or _vanished(info.uuid) for info in ordered),
        )

    async def _named(self, snapshot: GpuSnapshot) -> GpuSnapshot:
        """Replace the uids that the child reports by names."""
        uids = {int(row.user) for sample in snapshot.samples for row in sample.processes if row.user}
        if not uids:
            return snapshot
        names = await self._names.of(uids)

        def named(row: GpuProcess) -> GpuProcess:
            return msgspec.structs.replace(row, user=names[int(row.user)]) if row.user else row

        samples = tuple(
            msgspec.structs.replace(sample, processes=tuple(named(row) for row in sample.processes))
            for sample in snapshot.samples
        )
        return msgspec.structs.replace(snapshot, samples=samples)


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _trouble(state: DriverState, detail: str) -> GpuSnapshot:
    return GpuSnapshot(state=state, detail=detail, taken_boot_ns=_boot_ns())


def _vanished(uuid: str) -> GpuSample:
    return GpuSample(uuid=uuid, error="the driver no longer shows this card: it fell off the bus", lost=True)


def _start_ticks(pid: int) -> int:
    """Start time of a process since boot in clock ticks, the field after which a pid cannot be mistaken."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def _left_behind(stuck_file: Path | None) -> ChildProcess | None:
    """The stuck child of an earlier agent, if it is still there."""
    if stuck_file is None or not stuck_file.exists():
        return None
    try:
        pid, ticks = (int(word) for word in stuck_file.read_text(encoding="ascii").split())
        process = ChildProcess.adopt(pid)
        if _start_ticks(pid) == ticks:
            return process
        process.close()
    except (OSError, ValueError):
        pass
    stuck_file.unlink(missing_ok=True)
    return None
