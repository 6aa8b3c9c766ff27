"""A daemon as a child of `up`: started, watched, started again when it dies, stopped.

Imports asyncio. Invariants: a daemon is a session of its own, so that Ctrl-C reaches `up` alone, which stops the
daemons in order; it is told to stop when `up` dies; its output goes to its log; it is killed only when it does not
stop by itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from gpushare.errors import FailedPreconditionError, GpushareError
from gpushare.reasons import Reason

_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 10.0
# A daemon that lived for as long is not one that cannot start.
_SETTLED_S = 10.0
_STOP_LIMIT_S = 8.0
_TAIL_BYTES = 4096


class Daemon:
    """`module` is run with `--config`; `prepare` writes that file before each start and gives its path."""

    def __init__(
        self, name: str, module: str, log: Path, prepare: Callable[[], Awaitable[Path]], say: Callable[[str], None]
    ) -> None:
        self.name = name
        self._module = module
        self._log = log
        self._prepare = prepare
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Starts it once. Raises OSError or GpushareError."""
        config = await self._prepare()
        tether = [sys.executable, "-m", "gpushare.cli.tether", str(os.getpid())]
        command = [sys.executable, "-m", self._module, "--config", str(config)]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tether,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def check(self) -> None:
        """Raises FailedPreconditionError, with what it said last, where it is not running."""
        if not self.running:
            code = self._process.returncode if self._process is not None else None
            raise FailedPreconditionError(
                Reason.CONFIG_INVALID,
                f"The {self.name} {self._end_text(code)}",
                what_to_do=f"Its log is {self._log}.",
            )

    def _end_text(self, code: int | None) -> str:
        """What it said last explains an end of its own, but not one by a signal."""
        if code is None:
            return "is not running"
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}: {self.last_words()}"

    def last_words(self) -> str:
        """The last line of its log."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return "it left no log"
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    async def keep_running(self) -> None:
        """Starts it again whenever it dies, until it is stopped."""
        pause_s = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began_s = loop.time()
            if self._process is not None:
                code = await self._process.wait()
                if self._stopping.is_set():
                    return
                self._say(f"the {self.name} {self._end_text(code)}")
            if loop.time() - began_s > _SETTLED_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _MAX_PAUSE_S)
            try:
                await self.start()
                self._say(f"the {self.name} was started again")
            except (OSError, GpushareError) as err:
                self._process = None
                self._say(f"the {self.name} cannot be started again: {err}")

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not heard."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
        except TimeoutError:
            self._say(f"the {self.name} did not stop within {_STOP_LIMIT_S:.0f} s and is killed")
            process.kill()
            await process.wait()


def _environment() -> dict[str, str]:
    """Ours, without settings of daemons: these have a file each that says all."""
    prefixes = ("GPUSHARE_SCHEDULER_", "GPUSHARE_AGENT_")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
