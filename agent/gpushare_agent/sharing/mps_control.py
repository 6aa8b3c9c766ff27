"""One command session after another with a card's MPS control daemon, believing nothing but its words.

Imports the standard library alone. The control program ends with 0 on almost every error, serves one
session at a time and drops others without a word. So every session ends with a command whose answer is
known by its form, a batch counts only if that answer came, exit codes are ignored, and a session that was
dropped is tried again after a pause.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

SENTINEL = "get_default_active_thread_percentage"
PAUSE_S = (0.02, 0.1)
KILL_WAIT_S = 1.0


class ControlError(Exception):
    """The daemon did not answer a batch. `detail` says how, for a person."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class MpsControl:
    """The control channel of one daemon. Sessions are made one at a time."""

    def __init__(
        self,
        program: str,
        pipe: Path,
        environ: Mapping[str, str],
        *,
        timeout_s: float = 5.0,
        attempts: int = 4,
    ) -> None:
        self._program = program
        self._environ = {**environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._one_at_a_time = asyncio.Lock()

    async def ask(self, *commands: str, attempts: int | None = None) -> list[str]:
        """The lines that these commands print, in order. ControlError if the daemon does not answer all of
        them.
        """
        tries = attempts or self._attempts
        cause = ""
        async with self._one_at_a_time:
            for attempt in range(tries):
                if attempt:
                    await asyncio.sleep(random.uniform(*PAUSE_S) * attempt)
                try:
                    printed = await asyncio.wait_for(self._session(commands), self._timeout_s)
                except TimeoutError:
                    # A daemon that is silent once is silent for every session; more tries would only hold
                    # up others.
                    raise ControlError(
                        f"the MPS control daemon answered nothing within {self._timeout_s:g} s: it hangs, or "
                        "another session holds it"
                    ) from None
                except OSError as err:
                    raise ControlError(f"{self._program} cannot be run: {err.strerror}") from err
                lines = [line.strip() for line in printed.splitlines() if line.strip()]
                if lines and is_percentage(lines[-1]):
                    return lines[:-1]
                cause = f"it said {lines[-1]!r}" if lines else "it said nothing"
        raise ControlError(f"the MPS control daemon dropped the session, {tries} times in a row ({cause})")

    async def _session(self, commands: Sequence[str]) -> str:
        """Run the control program once. Its exit code says nothing."""
        process = await asyncio.create_subprocess_exec(
            self._program,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            printed, _ = await process.communicate("".join(f"{line}\n" for line in (*commands, SENTINEL)).encode())
            return printed.decode("utf-8", "replace")
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.wait_for(process.wait(), KILL_WAIT_S)


def is_percentage(text: str) -> bool:
    """Whether this is how the daemon prints a percentage: "100.0", but not a pid."""
    whole, dot, decimals = text.partition(".")
    return bool(dot) and whole.isdigit() and decimals.isdigit() and 0 <= float(text) <= 100


def shown_limit(mib: int) -> str:
    """How the daemon prints a memory limit: whole GiB, truncated."""
    return f"{mib // 1024}G"


def ceiling_mib(largest_share_mib: int, total_mib: int) -> int:
    """The server's memory ceiling for the largest share on a card.

    A whole number of GiB, at least one: the daemon prints limits in whole GiB, so that only such a ceiling
    can be read back without doubt. Never above the card.
    """
    return min(-(-largest_share_mib // 1024) * 1024, total_mib)
