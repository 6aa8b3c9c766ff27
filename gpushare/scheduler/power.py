"""The admin's power hooks: the commands that put a node to sleep and wake it, run after the request is durable.

Imports the engine and asyncio. Invariants: at most one hook a node runs at a time, and a few in all; of the requests
that wait for a node only the latest is kept, so there are never more than nodes; what was asked for and may not have
happened is asked for again after a restart, so a hook must bear to be run twice; a hook that fails is told to the core
and leaves the node as it was. No shell is involved.

This process has imported grpc and must not fork and go on in Python. It does not: asyncio starts a program through
`subprocess`, whose child runs nothing but C code between vfork and exec (no preexec_fn here, which would change that),
and closes all descriptors but its own three.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog

from gpushare.core.commands import Call, ReportPower
from gpushare.core.events import Entry, NodePowerRequested, NodeSynced
from gpushare.core.kinds import Power
from gpushare.core.model import SYSTEM
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError
from gpushare.scheduler.engine import Engine

#: Hooks under way at once, over all nodes.
HOOKS_MAX = 16
#: A host that was told to sleep needs a moment to go; nobody wakes it before, unless it takes longer than this.
GOING_DOWN_S = 60.0
LOOK_EVERY_S = 0.2
KILL_WAIT_S = 5.0
#: Of what a hook prints, so much of the end is kept; its last line explains a failure.
OUTPUT_MAX_BYTES = 4096
DETAIL_MAX_CHARS = 300
NODE_WORD = "{node}"

_log = structlog.get_logger(__name__)


class PowerHooks:
    """`project` and `reset` are for the engine; `run` runs the hooks until it is cancelled. `commands` are words, in
    which {node} is replaced. `drop(node)` ends its agent's session: one that lives connects and syncs again."""

    def __init__(
        self,
        engine: Engine,
        commands: Mapping[Power, Sequence[str]],
        timeout_s: float,
        *,
        drop: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._commands = commands
        self._timeout_s = timeout_s
        self._drop = drop
        # The latest request of each node that has not begun; bounded by the number of nodes.
        self._wanted: dict[str, Power] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._went_down_s: dict[str, float] = {}
        self._changed = asyncio.Event()

    # -- for the engine

    def project(self, entries: Sequence[Entry], state: ClusterState) -> Callable[[], None] | None:
        """Requests that follow from `entries`, taken up once these are durable."""
        asked: dict[str, Power] = {}
        for entry in entries:
            event = entry.event
            if isinstance(event, NodePowerRequested) and not event.detail and event.power is not Power.ON:
                asked[event.node] = event.power
            elif isinstance(event, NodeSynced) and state.nodes[event.node].power is Power.DOWN:
                # It was told to sleep and is still there: the hook may not have been run.
                asked[event.node] = Power.DOWN
        return (lambda: self._ask(asked)) if asked else None

    def reset(self) -> None:
        """The engine leads anew: what is asked for now counts, whatever was before. Nodes that should sleep and do not
        are asked again once they sync."""
        self._wanted.clear()
        self._ask_anew()

    def _ask_anew(self) -> None:
        nodes = self._engine.state.nodes.values()
        self._ask({node.name: Power.WAKING for node in nodes if node.power is Power.WAKING})

    def _ask(self, asked: Mapping[str, Power]) -> None:
        self._wanted.update(asked)
        self._changed.set()

    # -- running hooks

    async def run(self) -> None:
        """Until cancelled; hooks under way are killed then, and run again by the next leader."""
        self._ask_anew()
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._begin()
        finally:
            tasks = list(self._busy.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._busy.clear()

    def _begin(self) -> None:
        for node in [n for n in self._wanted if n not in self._busy]:
            if len(self._busy) >= HOOKS_MAX:
                return
            task = asyncio.create_task(self._serve(node, self._wanted.pop(node)), name=f"power-{node}")
            self._busy[node] = task
            task.add_done_callback(partial(self._ended, node))

    def _ended(self, node: str, task: asyncio.Task[None]) -> None:
        self._busy.pop(node, None)
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a power hook was given up", node=node, exc_info=task.exception())

    async def _serve(self, node: str, power: Power) -> None:
        if not self._is_asked(node, power):
            return
        if power is Power.WAKING:
            await self._gone_down(node)
        detail = await self._hook(node, power)
        if power is Power.DOWN:
            self._went_down_s[node] = asyncio.get_running_loop().time()
        elif self._is_ready(node) and self._is_asked(node, power):
            # It has not gone to sleep, or its end was not heard: its next Sync tells, whatever the hook said.
            self._drop(node)
            return
        if detail:
            await self._report(node, power, detail)

    def _is_asked(self, node: str, power: Power) -> bool:
        known = self._engine.state.nodes.get(node)
        return known is not None and known.power is power

    def _is_ready(self, node: str) -> bool:
        return node in self._engine.state.nodes and self._engine.state.nodes[node].ready

    async def _gone_down(self, node: str) -> None:
        """A host on its way down would not hear that it is to wake."""
        loop = asyncio.get_running_loop()
        until_s = self._went_down_s.pop(node, -GOING_DOWN_S) + GOING_DOWN_S
        while self._is_ready(node) and loop.time() < until_s:
            await asyncio.sleep(LOOK_EVERY_S)

    async def _report(self, node: str, power: Power, detail: str) -> None:
        try:
            await self._engine.execute(ReportPower(node, power, detail), Call(SYSTEM))
        except GpushareError as err:
            _log.warning("the failure of a power hook was not noted", node=node, error=str(err))

    async def _hook(self, node: str, power: Power) -> str:
        """Run the command; "" where it worked, else why not, as a sentence for the node's detail."""
        name = f"power_{'down' if power is Power.DOWN else 'up'}_command"
        words = [word.replace(NODE_WORD, node) for word in self._commands.get(power, ())]
        if not words:
            return f"{name} is not set"
        code, said = await run_program(words, self._timeout_s)
        told = f": {said}" if said else ""
        if code == 0:
            _log.info("power hook done", node=node, hook=name, code=code)
            return ""
        if code is None:
            detail = f"{name} did not end within {self._timeout_s:g} s and was killed{told}"
        else:
            detail = f"{name} failed with exit code {code}{told}"
        _log.warning("power hook failed", node=node, hook=name, code=code, said=said)
        return detail[:DETAIL_MAX_CHARS]


async def run_program(words: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """(exit code, last line printed). The code is None where it had to be killed with all that it started, 128 + number
    for an end by a signal, 127 where it cannot be started. What it leaves running must not hold on to its output."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    tail = bytearray()
    loop = asyncio.get_running_loop()
    process: asyncio.subprocess.Process | None = None
    try:
        # A pipe of our own: asyncio's would wait for everybody who holds its other end.
        loop.add_reader(reading, _read_on, loop, reading, tail)
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as err:
            return 127, f"{words[0]}: {err.strerror}"
        finally:
            os.close(writing)
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            code = None
        _read_into(reading, tail)
        return (code if code is None or code >= 0 else 128 - code), _last_line(bytes(tail))
    finally:
        loop.remove_reader(reading)
        os.close(reading)
        if process is not None and process.returncode is None:
            await _kill(process)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """The hook and all that it started: it is a session of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        await asyncio.wait_for(process.wait(), KILL_WAIT_S)
    except TimeoutError:
        _log.error("a power hook cannot be killed", pid=process.pid)


def _read_on(loop: asyncio.AbstractEventLoop, descriptor: int, tail: bytearray) -> None:
    if not _read_into(descriptor, tail):
        loop.remove_reader(descriptor)


def _read_into(descriptor: int, tail: bytearray) -> bool:
    """Take what is there and keep the end of it; False at the end of the file."""
    try:
        data = os.read(descriptor, 65_536)
    except BlockingIOError:
        return True
    tail += data
    del tail[:-OUTPUT_MAX_BYTES]
    return bool(data)


def _last_line(printed: bytes) -> str:
    lines = [line.strip() for line in printed.decode(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return "".join(c if c.isprintable() else "?" for c in last)


def _environment() -> dict[str, str]:
    """Ours without our own settings and secrets."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GPUSHARE_")}
