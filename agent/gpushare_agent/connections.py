"""What the agent asks of an attempt's shim for those who connect to the task: its input, and processes beside it.

Imports asyncio and this package's vocabulary. A request goes to the shim with an id and is answered under it; a
descriptor passes with it, so that no byte of a connection goes through the shim. Invariants: nothing is asked of a shim
whose task does not run, or which is of a version that cannot do it; whoever waits for a shim that dies is told.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from gpushare.reasons import Reason
from gpushare_agent.attemptfiles import AttemptFiles
from gpushare_agent.attempttable import Asked, AttemptTable, Entry
from gpushare_agent.launchspec import LaunchSpec
from gpushare_agent.shimlink import Message

ANSWER_TIMEOUT_S = 10.0
# What a shim takes in one message, less what surrounds it.
ORDER_MAX_BYTES = 60 * 1024

_ids = itertools.count(1)


class NotConnected(Exception):
    """There is no connection, for `reason`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Connections:
    """The running attempts of this node, for those who connect to them."""

    def __init__(self, table: AttemptTable, files: AttemptFiles) -> None:
        self._table = table
        self._files = files

    def spec(self, attempt_id: str) -> LaunchSpec:
        """What it was launched with. Raises NotConnected unless it runs."""
        entry = self._running(attempt_id)
        assert entry.intent is not None
        return entry.intent.spec

    def over(self, attempt_id: str) -> asyncio.Event:
        """Set when the attempt is."""
        return self._running(attempt_id).over

    def private_dir(self, attempt_id: str) -> Path:
        """A directory of the job's user that goes with the attempt, made where there was none. Blocks on the disk;
        raises OSError."""
        path = self._files.private_dir(attempt_id)
        self._files.make_private_dir(attempt_id, self.spec(attempt_id).user)
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise NotADirectoryError(f"{path} is no directory")
        return path

    async def start(
        self, attempt_id: str, argv: Sequence[str], *, pty: bool, env: Mapping[str, str], streams: Sequence[int]
    ) -> Asked:
        """Start a process beside the task; `streams` are its standard three and where it tells why it could not exec.
        The answer's `ended` is its exit code once it has one. Raises NotConnected."""
        entry = self._running(attempt_id)
        asked = self._ask(entry)
        order = {"op": "exec", "id": asked.id, "argv": list(argv), "pty": pty, "env": dict(env)}
        data = msgspec.json.encode(order)
        if len(data) > ORDER_MAX_BYTES:
            raise NotConnected(Reason.INVALID_FIELD, f"the command has {len(data)} bytes; up to {ORDER_MAX_BYTES} fit")
        answer = await self._answer(entry, asked, data, streams)
        if "refused" in answer:
            self.forget(attempt_id, asked)
            known = str(answer["refused"]) in Reason.__members__
            reason = Reason(str(answer["refused"])) if known else Reason.INTERNAL
            raise NotConnected(reason, str(answer.get("detail", "")))
        return asked

    def end(self, attempt_id: str, asked: Asked) -> None:
        """Nobody waits for that process any more: it is told to end, and killed if it does not."""
        entry = self._table.entries.get(attempt_id)
        if entry is not None and entry.link is not None and not asked.ended.done():
            entry.link.send({"op": "end_exec", "id": asked.id})
        self.forget(attempt_id, asked)

    def forget(self, attempt_id: str, asked: Asked) -> None:
        """Nothing more will be heard of it."""
        entry = self._table.entries.get(attempt_id)
        if entry is not None:
            entry.asked.pop(asked.id, None)
        asked.drop()

    async def input_fd(self, attempt_id: str) -> int | None:
        """A descriptor of the task's input, ours to close; None where it has none, or it was ended."""
        entry = self._running(attempt_id)
        asked = self._ask(entry)
        try:
            answer = await self._answer(entry, asked, msgspec.json.encode({"op": "input", "id": asked.id}), ())
            fd = answer.pop("fd", None)
            return fd if isinstance(fd, int) else None
        finally:
            self.forget(attempt_id, asked)

    def close_input(self, attempt_id: str) -> None:
        """The task comes to the end of its input."""
        entry = self._table.entries.get(attempt_id)
        if entry is not None and entry.link is not None:
            entry.link.send({"op": "close_input"})

    def _running(self, attempt_id: str) -> Entry:
        entry = self._table.entries.get(attempt_id)
        if entry is None or entry.intent is None or entry.status.state != "RUNNING" or entry.link is None:
            raise NotConnected(Reason.NOT_RUNNING, "the task does not run here now")
        if not entry.connects:
            detail = "the task was started by an earlier version, to whose jobs nobody can connect"
            raise NotConnected(Reason.NOT_RUNNING, detail)
        return entry

    def _ask(self, entry: Entry) -> Asked:
        asked = Asked(f"{os.getpid()}-{next(_ids)}")
        entry.asked[asked.id] = asked
        return asked

    async def _answer(self, entry: Entry, asked: Asked, data: bytes, fds: Sequence[int]) -> Message:
        try:
            if entry.link is None or not entry.link.send_with(data, fds):
                raise NotConnected(Reason.INTERNAL, "the process that holds the task does not listen; try again")
            return await asyncio.wait_for(asyncio.shield(asked.answer), ANSWER_TIMEOUT_S)
        except (TimeoutError, ConnectionError) as error:
            raise NotConnected(Reason.INTERNAL, f"the process that holds the task does not answer: {error}") from None
        finally:
            if not asked.answer.done():
                # It may have been done all the same, or be done soon.
                if entry.link is not None and fds:
                    entry.link.send({"op": "end_exec", "id": asked.id})
                entry.asked.pop(asked.id, None)
                asked.drop()
