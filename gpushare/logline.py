"""The daemons' logs: a line for each event, `log.info("what happened", field=value)`, on stderr.

Imports the standard library alone, and of that only what a daemon has loaded anyway: it stands at the start of each.
Invariants: a line is written whole, by one call; what cannot be written down as JSON is told as Python shows it; a log
that cannot be written to ends nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO


class Log:
    """Writes JSON lines to `stream`, or to the stderr of the moment; as text where a person reads along (`plain`)."""

    def __init__(self, stream: TextIO | None = None, *, plain: bool = False) -> None:
        self._stream = stream
        self._plain = plain

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: Any) -> None:
        """`exc_info` is told with its traceback."""
        if exc_info is not None:
            fields["exception"] = "".join(traceback.format_exception(exc_info)).rstrip("\n")
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the exception that is being handled."""
        self.error(event, exc_info=sys.exception(), **fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        if self._plain:
            told = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
            line = f"{at} [{level}] {event} {told}".rstrip()
        else:
            line = json.dumps({**fields, "event": event, "level": level, "timestamp": at}, default=repr)
        stream = self._stream or sys.stderr
        with contextlib.suppress(OSError, ValueError):
            stream.write(line + "\n")
            stream.flush()


def _word(value: Any) -> str:
    """A value of a plain line: a text of one word as it is, everything else as Python shows it."""
    return value if isinstance(value, str) and len(value.split()) == 1 and value == value.strip() else repr(value)
