"""The agent's log: events with fields, as JSON lines, or as text where a person reads along.

Imports structlog. Written to stderr, which systemd or `up` keep; never holds a secret, a command or an environment.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

import structlog


def make_log(stream: TextIO | None = None) -> Any:
    """A logger: `log.info("what happened", field=value)`. JSON unless the stream is a terminal."""
    target = stream or sys.stderr
    render: Any = structlog.processors.JSONRenderer()
    if target.isatty():
        render = structlog.dev.ConsoleRenderer(pad_event_to=0)
    return structlog.wrap_logger(
        structlog.PrintLogger(target),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )


def place_of(err: BaseException) -> str:
    """Where an unexpected error arose, "file:line": enough to find it without a traceback in a person's face."""
    frame = err.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else ""
