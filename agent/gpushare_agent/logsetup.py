"""The agent's log: events with fields, as JSON lines, or as text where a person reads along.

Written to stderr, which systemd or `up` keep; never holds a secret, a command or an environment.
"""

from __future__ import annotations

import sys
from typing import TextIO

from gpushare.logline import Log


def make_log(stream: TextIO | None = None) -> Log:
    """A logger: `log.info("what happened", field=value)`. JSON unless the stream is a terminal."""
    target = stream or sys.stderr
    return Log(target, plain=target.isatty())


def place_of(err: BaseException) -> str:
    """Where an unexpected error arose, "file:line": enough to find it without a traceback in a person's face."""
    frame = err.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else ""
