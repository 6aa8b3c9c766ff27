"""How an attempt stands and how it ended, from what its shim saw: facts in, one flat status out.

Imports the small shared modules alone; the reasons are plain words here, so that a shim need not load the
enum (a test keeps the two in step). The first cause wins: a launch that failed, else a stop that was
accepted before the main process was over, else the kernel's memory killer, else the main process's own exit.
"""

from __future__ import annotations

import os
import time

from gpushare_agent import cgroupfs, signals, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from typing import Any

_REASON_OF_STAGE = {"workdir": "WORKDIR", "output": "EXEC", "exec": "EXEC", "privileges": "LAUNCH_DENIED"}
NOT_EXECUTABLE_CODE = 126


class AttemptEnd:
    """Collects the facts of one attempt's end; `final` may be asked once nothing of the task lives."""

    def __init__(self, spec: dict[str, Any], groups: dict[str, Any] | None) -> None:
        self._spec = spec
        self._groups = groups
        self._started_ms: int | None = None
        self._ended_ms: int | None = None
        self._stop: tinyjson.Flat | None = None
        self._failure: tuple[str, int | None, str] | None = None
        self._exit_code: int | None = None
        self._signal: int | None = None
        self._sent: list[tuple[int, float]] = []
        self._ended_at = 0.0
        self._note = ""
        self.over = False
        self.stuck = False
        self.suspended = False

    @property
    def running(self) -> bool:
        """True from the exec until a stop or the end, suspended or not."""
        return self._started_ms is not None and self._stop is None and not self.over

    @property
    def stopping(self) -> bool:
        """True once a stop was accepted."""
        return self._stop is not None

    def started(self) -> None:
        """The exec went through."""
        self._started_ms = _now_ms()

    def never_started(self, stage: str, text: str) -> None:
        """The task could not even be forked."""
        self._fail(stage, None, text)
        self.over = True

    def launch_failed(self, report: bytes) -> None:
        """The child told why it did not reach its exec (see `task`)."""
        try:
            failed = tinyjson.loads(report)
            self._fail(str(failed["stage"]), failed["exit_code"], str(failed["text"]))
        except (ValueError, KeyError):
            self._fail("unknown", None, "the task ended before its exec and could not say why")

    def stop(self, order: tinyjson.Flat) -> None:
        """A stop was accepted: {reason, final_state, detail}."""
        self._stop = order

    def sent(self, number: int) -> None:
        """A signal went to the task because of the stop."""
        if self._stop is not None:
            self._sent.append((number, time.monotonic()))

    def main_ended(self, status: int) -> None:
        """The main process's wait status."""
        self.over = True
        self._ended_at = time.monotonic()
        self._ended_ms = _now_ms()
        if os.WIFSIGNALED(status):
            self._signal = os.WTERMSIG(status)
        else:
            self._exit_code = os.WEXITSTATUS(status)

    def mark_stuck(self, pids: list[int], after_s: int) -> None:
        """Processes outlived SIGKILL."""
        self.stuck = True
        self._note = f"processes {pids[:16]} still live {after_s} s after SIGKILL (asleep in the kernel?)"

    def note(self, text: str) -> None:
        """Something that an admin should see while it lasts."""
        self._note = text

    def current(self) -> tinyjson.Flat:
        """The status of an attempt that is not over."""
        if self._stop is not None or self.over:
            state = "STOPPING"
        else:
            running = "SUSPENDED" if self.suspended else "RUNNING"
            state = "LAUNCHING" if self._started_ms is None else running
        reason = str(self._stop["reason"]) if self._stop is not None else None
        detail = self._note or (str(self._stop["detail"]) if self._stop is not None else "")
        return self._status(state, reason, detail)

    def final(self) -> tinyjson.Flat:
        """The status that goes into the exit record."""
        if self._failure is not None:
            reason, self._exit_code, detail = self._failure
            self._signal = None
            return self._status("FAILED", reason, detail)
        if self._stop is not None:
            detail = "; ".join(part for part in (str(self._stop["detail"]), self._how_stopped()) if part)
            return self._status(str(self._stop["final_state"]), str(self._stop["reason"]), detail)
        if self._exit_code == 0:
            return self._status("SUCCEEDED", "COMPLETED", "")
        memory = self._host_memory()
        if memory:
            return self._status("FAILED", "HOST_MEMORY_LIMIT", memory)
        if self._signal is not None:
            text = f"ended by {signals.name_of(self._signal)}{self._pids_note()}"
            return self._status("FAILED", "SIGNALLED", text)
        return self._status("FAILED", "EXIT_CODE", f"exited with code {self._exit_code}{self._pids_note()}")

    def _status(self, state: str, reason: str | None, detail: str) -> tinyjson.Flat:
        return {
            "state": state,
            "reason": reason,
            "detail": detail,
            "exit_code": self._exit_code,
            "signal": self._signal,
            "stop_signal": self._sent[-1][0] if self._sent else None,
            "started_ms": self._started_ms,
            "ended_ms": self._ended_ms if self._ended_ms is not None or not self.over else _now_ms(),
            "stuck": self.stuck,
        }

    def _fail(self, stage: str, exit_code: int | None, text: str) -> None:
        reason = _REASON_OF_STAGE.get(stage, "INFRA")
        if reason == "EXEC" and exit_code is None:
            exit_code = NOT_EXECUTABLE_CODE
        words = text if reason in ("WORKDIR", "EXEC") else f"{stage}: {text}"
        self._failure = (reason, exit_code, words)

    def _how_stopped(self) -> str:
        how = f"by {signals.name_of(self._signal)}" if self._signal is not None else f"with code {self._exit_code}"
        if not self._sent:
            return f"ended {how}"
        began = self._sent[0][1]
        words = [f"{signals.name_of(number)} at {at - began:.1f} s" for number, at in self._sent]
        return f"{', '.join(words)}, ended {how} at {self._ended_at - began:.1f} s"

    def _host_memory(self) -> str:
        """Figures, if the kernel killed a process of the job for its memory; else an empty text."""
        if self._groups is None or self._spec["host_memory_mib"] is None:
            return ""
        files = self._groups["memory_files"]
        kills = cgroupfs.counter(files["events"], "oom_kill")
        if not kills:
            return ""
        limit = self._spec["host_memory_mib"]
        peak = _read_mib(files["peak"])
        used = f", peak {peak} MiB" if peak is not None else ""
        return (
            f"it needed more host memory than its {limit} MiB{used}; the kernel killed {kills} of its processes; "
            "ask for more with --host-memory"
        )

    def _pids_note(self) -> str:
        if self._groups is None or self._spec["pids_max"] is None:
            return ""
        hits = cgroupfs.counter(self._groups["pids_events"], "max")
        limit = self._spec["pids_max"]
        return f" (it was refused a new process {hits} times at its limit of {limit})" if hits else ""


def _read_mib(path: str) -> int | None:
    try:
        return int(cgroupfs.get(path)) // (1024 * 1024)
    except (OSError, ValueError):
        return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
