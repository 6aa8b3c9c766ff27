"""What went wrong, as one line for a person and one exit code for a program.

Imports the errors and the names; loaded only when something failed. Invariant: whatever was raised, the person reads a
sentence and never a traceback.
"""

from __future__ import annotations

import os
import traceback

from gpushare.cli.exits import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE
from gpushare.cli.fieldnames import in_options, option_of
from gpushare.errors import GpushareError
from gpushare.names import TextError
from gpushare.quantity import ArrayTooLargeError
from gpushare.reasons import Reason

DEBUG_ENV = "GPUSHARE_DEBUG"

_UNREACHABLE = frozenset({Reason.SCHEDULER_UNREACHABLE, Reason.DEADLINE_EXCEEDED, Reason.NOT_LEADER})


def describe(err: Exception, command: str = "") -> tuple[str, int]:
    """ "REASON: sentence (what to do)" and the exit code, after `command` failed."""
    if isinstance(err, GpushareError):
        return in_options(err, command), EXIT_UNREACHABLE if err.reason in _UNREACHABLE else EXIT_FAILED
    if isinstance(err, TextError):
        reason = Reason.ARRAY_TOO_LARGE if isinstance(err, ArrayTooLargeError) else Reason.INVALID_FIELD
        what = str(err).removeprefix(err.field)
        return f"{reason}: {_as_written(err.field)}{what}", EXIT_USAGE
    if isinstance(err, UnicodeEncodeError):
        return f"{Reason.INVALID_FIELD}: an argument is not valid UTF-8 (write it as UTF-8)", EXIT_USAGE
    if os.environ.get(DEBUG_ENV):
        traceback.print_exception(err)
    kind = err.strerror or str(err) if isinstance(err, OSError) else f"{type(err).__name__}: {err}"
    where = f" {err.filename!r}" if isinstance(err, OSError) and err.filename else ""
    return f"{Reason.INTERNAL}: {kind}{where} (set {DEBUG_ENV}=1 to see where, and report it)", EXIT_FAILED


def _as_written(field: str) -> str:
    """The option that a field came from; `argv[3]` and the like stay as they are."""
    known = option_of(field)
    if known.startswith("--"):
        return known
    return f"--{field.replace('_', '-')}" if field.replace("_", "").isalpha() and field.islower() else field
