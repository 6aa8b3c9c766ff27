"""The attempts that an executor knows: each one's status, its shim's connection, and how its end is found out.

Imports asyncio and this package's vocabulary. A status only moves forward and its last value is durable on
disk before anybody hears it. While a shim lives, only the shim speaks; when it is dead, the attempt is
judged by what it left (see `settle`), after everything of it is proven gone.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpushare_agent import cgroups, settle
from gpushare_agent.attemptfiles import AttemptFiles
from gpushare_agent.checkpoint import ExecRecord, Intent, StopRecord
from gpushare_agent.launchspec import AttemptStatus
from gpushare_agent.shim import MS, STUCK_AFTER_NS, boot_ns
from gpushare_agent.shimlink import Message, ShimLink
from gpushare_agent.work import Work

KILL_SLICE_S = 1.0
RECORD_RETRY_S = 1.0


class Asked:
    """Something that was asked of a shim: its `answer`, and for a process beside the task how that `ended`."""

    def __init__(self, asked_id: str) -> None:
        loop = asyncio.get_running_loop()
        self.id = asked_id
        self.answer: asyncio.Future[Message] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()

    def hear(self, message: Message) -> None:
        """A word of the shim on it."""
        if message.get("event") == "exec_end":
            if not self.ended.done():
                self.ended.set_result(int(message["exit_code"]))
        elif not self.answer.done():
            self.answer.set_result(message)
        else:
            _close_fd(message)

    def fail(self) -> None:
        """The shim says nothing more."""
        for future in (self.answer, self.ended):
            if not future.done():
                future.set_exception(ConnectionResetError("it is gone"))
                # whoever waits hears of it; where nobody does it is no news
                future.exception()

    def drop(self) -> None:
        """Nobody waits for it; a descriptor that was answered with and not taken is closed."""
        if self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None:
            _close_fd(self.answer.result())
        self.answer.cancel()
        self.ended.cancel()


@dataclass
class Entry:
    """One attempt. `first` is waiting for the shim's first word; `over` is set when the status is final."""

    status: AttemptStatus
    intent: Intent | None = None
    link: ShimLink | None = None
    task_pid: int = 0
    # What is wanted of it; None: as its shim has it. A shim of an earlier version cannot suspend, or tell.
    suspend: bool | None = None
    suspends: bool = False
    tells: bool = False
    # The time limit that it is to have, and that its shim has; nor can such a shim change it (False).
    run_limit_ms: int | None = None
    shim_limit_ms: int | bool | None = False
    # Nor can it lend its task's input, or start processes beside it.
    connects: bool = False
    asked: dict[str, Asked] = field(default_factory=dict)
    stop: StopRecord | None = None
    stop_watch: asyncio.Task[None] | None = None
    first: asyncio.Future[Message] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    settling: asyncio.Task[None] | None = None

    @property
    def attempt_id(self) -> str:
        """Its name."""
        return self.status.attempt_id

    def fail_asked(self) -> None:
        """Nothing that was asked so far is answered any more: a shim ends what a connection began with it."""
        for asked in self.asked.values():
            asked.fail()


class AttemptTable:
    """All entries by id; `on_change` hears each change of a status, once."""

    def __init__(self, files: AttemptFiles, work: Work, on_change: Callable[[AttemptStatus], None]) -> None:
        self.entries: dict[str, Entry] = {}
        self._files = files
        self._work = work
        self._on_change = on_change

    def fresh(self, attempt_id: str, boot_id: str) -> Entry:
        """A new entry in LAUNCHING, in place of any other of that id."""
        entry = Entry(AttemptStatus(attempt_id=attempt_id, state="LAUNCHING", boot_id=boot_id))
        self.entries[attempt_id] = entry
        return entry

    def put(self, entry: Entry, status: AttemptStatus) -> None:
        """The new status, unless the attempt is over already or nothing changed."""
        if entry.status.final or status == entry.status:
            return
        entry.status = status
        if status.final:
            entry.over.set()
        self._on_change(status)

    # -- what shims say

    def link(self, entry: Entry) -> ShimLink:
        """A connection to be made to the entry's shim."""
        directory = str(self._files.directory(entry.attempt_id))
        hear, died = functools.partial(self._hear, entry), functools.partial(self._shim_died, entry)
        return ShimLink(directory, hear, died, entry.fail_asked)

    def send_stop(self, entry: Entry, stop: StopRecord) -> None:
        """Pass a stop on; if nobody listens now, it is repeated with the shim's next word."""
        if entry.link is not None:
            order = {"op": "stop", "reason": stop.reason.value, "final_state": stop.final_state, "detail": stop.detail}
            entry.link.send({**order, "grace_ms": stop.grace_ms})

    def send_suspend(self, entry: Entry) -> None:
        """Tell the shim, where it is not so already; said again with each of its words."""
        suspended = entry.status.state == "SUSPENDED"
        if entry.link is None or not entry.suspends or entry.suspend in (None, suspended):
            return
        if entry.status.state in ("LAUNCHING", "RUNNING", "SUSPENDED"):
            entry.link.send({"op": "suspend" if entry.suspend else "resume"})

    def send_limit(self, entry: Entry) -> None:
        """The same for its time limit."""
        if entry.link is None or entry.shim_limit_ms is False or entry.run_limit_ms in (None, entry.shim_limit_ms):
            return
        if entry.status.state in ("LAUNCHING", "RUNNING", "SUSPENDED"):
            entry.link.send({"op": "limit", "run_limit_ms": entry.run_limit_ms})

    def _hear(self, entry: Entry, message: Message) -> None:
        if message.get("event") in ("exec", "exec_end", "input"):
            self._hear_answer(entry, message)
            return
        if message.get("event") == "refused" and entry.link is not None:
            entry.link.close()  # its death is no news: it never had the attempt
            entry.link = None
        if message.get("event") == "status" and not self._take_status(entry, message):
            return
        if entry.first is not None and not entry.first.done():
            entry.first.set_result(message)

    def _hear_answer(self, entry: Entry, message: Message) -> None:
        asked = entry.asked.get(str(message.get("id")))
        if asked is not None and not asked.answer.cancelled():
            asked.hear(message)
        else:
            _close_fd(message)

    def _take_status(self, entry: Entry, message: Message) -> bool:
        try:
            status = msgspec.convert(message, AttemptStatus)
            shim = msgspec.convert(message, ExecRecord)
        except msgspec.ValidationError:
            return False
        if entry.link is not None:
            # fails for a shim that has ended meanwhile; then the channel's end is what tells of its death
            entry.link.hold(shim.shim_pid, shim.shim_start)
        entry.task_pid = int(message.get("task_pid") or 0)
        entry.suspends = message.get("suspends") is True
        entry.tells = message.get("tells") is True
        entry.shim_limit_ms = message.get("run_limit_ms", False)
        entry.connects = message.get("connects") is True
        self.put(entry, status)
        if entry.stop is not None and status.state in ("LAUNCHING", "RUNNING", "SUSPENDED"):
            self.send_stop(entry, entry.stop)
        else:
            self.send_suspend(entry)
            self.send_limit(entry)
        return True

    def _shim_died(self, entry: Entry) -> None:
        entry.link = None
        entry.fail_asked()
        if entry.first is not None and not entry.first.done():
            entry.first.set_result({"event": "dead", "detail": "its shim died before it took the attempt"})
        elif not entry.status.final:
            self.settle_soon(entry)

    # -- attempts without a shim

    def adopt(self, entry: Entry, taken: ExecRecord, boot_id: str) -> bool:
        """Connect to the attempt's shim, which had bound its socket before it made its exec record (`taken`,
        empty if that is torn); False if it does not live, and then the attempt is being judged.
        """
        link = self.link(entry)
        if entry.status.boot_id == boot_id:
            if taken.shim_pid:
                link.hold(taken.shim_pid, taken.shim_start)
            if link.connect():
                entry.link = link
                return True
        link.close()
        self.settle_soon(entry)
        return False

    def settle_soon(self, entry: Entry) -> None:
        """Judge the attempt in the background, once."""
        if entry.settling is None:
            entry.settling = self._work.spawn(self._settle(entry))

    async def _settle(self, entry: Entry) -> None:
        """Prove that nothing of it lives, then report what the disk says about it."""
        directory = self._files.directory(entry.attempt_id)
        status = await self._work.in_thread(settle.finished, directory, entry.attempt_id)
        if status is None and entry.status.boot_id == self._files.boot_id:
            await self._end_remains(entry)
        while status is None:
            try:
                status = await self._work.in_thread(settle.judge, directory, entry.attempt_id, self._files.boot_id)
            except OSError as error:
                detail = f"the end of the attempt cannot be recorded: {error}"
                self.put(entry, msgspec.structs.replace(entry.status, state="STOPPING", detail=detail))
                await asyncio.sleep(RECORD_RETRY_S)
        self.put(entry, status)

    async def _end_remains(self, entry: Entry) -> None:
        directory = self._files.directory(entry.attempt_id)
        layout = self._files.layout
        groups = cgroups.describe(layout, entry.attempt_id) if layout is not None else None
        tag = self._files.tag(entry.attempt_id)
        left = await self._work.in_thread(settle.remains, directory, entry.intent, groups, tag, self._files.boot_id)
        began = boot_ns()
        while not await self._work.in_thread(settle.kill_for, left, KILL_SLICE_S):
            if boot_ns() - began > STUCK_AFTER_NS and not entry.status.stuck:
                seconds = STUCK_AFTER_NS // (1000 * MS)
                detail = f"processes {sorted(left.pids())[:16]} still live {seconds} s after SIGKILL"
                stuck = msgspec.structs.replace(entry.status, state="STOPPING", stuck=True, detail=detail)
                self.put(entry, stuck)

    def close(self) -> None:
        """Let go of the shims."""
        for entry in self.entries.values():
            if entry.link is not None:
                entry.link.close()
                entry.link = None


def _close_fd(message: Message) -> None:
    fd = message.pop("fd", None)
    if isinstance(fd, int):
        os.close(fd)


async def within(event: Awaitable[Any], seconds: float) -> bool:
    """True if it came about in time."""
    try:
        await asyncio.wait_for(event, seconds)
    except TimeoutError:
        return False
    return True
