"""How long one task may run, and the word it hears before: a shim's arithmetic, no clock of its own.

Imports nothing. Times are nanoseconds of CLOCK_BOOTTIME. The limit counts from the exec; it may be changed while the
task runs, and a warning that was given for an end that is further away now is due again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost the shim's process a mebibyte
    from typing import Any

MS = 1_000_000


class TimeLimit:
    """Of the spec as it stands in the intent. `limit_ms` None: none."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.limit_ms: int | None = spec["run_limit_ms"]
        self._early_ms: int | None = spec["early_signal_ms"]
        self._begun_ns: int | None = None
        self._is_warned = False

    def begin(self, now_ns: int) -> None:
        """The exec went through."""
        self._begun_ns = now_ns

    def change(self, limit_ms: int, now_ns: int) -> None:
        """From now on it is another one, still counted from the exec."""
        self.limit_ms = limit_ms
        early = self._early_ns()
        self._is_warned = self._is_warned and early is not None and now_ns >= early

    def warned(self) -> None:
        """The early signal is on its way."""
        self._is_warned = True

    def end_ns(self) -> int | None:
        """When the task is to be stopped; None: not yet known, or never."""
        if self.limit_ms is None or self._begun_ns is None:
            return None
        return self._begun_ns + self.limit_ms * MS

    def is_over(self, now_ns: int) -> bool:
        end = self.end_ns()
        return end is not None and now_ns >= end

    def is_early_due(self, now_ns: int) -> bool:
        """The early signal is to be sent now."""
        early = self._early_ns()
        return not self._is_warned and early is not None and now_ns >= early

    def next_ns(self) -> int | None:
        """When to look again."""
        return self.end_ns() if self._is_warned or self._early_ms is None else self._early_ns()

    def _early_ns(self) -> int | None:
        end = self.end_ns()
        return None if end is None or self._early_ms is None else end - self._early_ms * MS
