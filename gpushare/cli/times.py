"""What a person writes for a moment: an ISO 8601 time, "now", or "+2h" from now.

Imports the standard library and the quantities. Invariant: a time without a zone is the local one of whoever writes it,
and what comes out is wall time in ms.
"""

from __future__ import annotations

import re
from datetime import datetime

from gpushare.names import TextError
from gpushare.quantity import QuantityError, parse_duration_ms

TIME_ACCEPTED = (
    'a time like "2026-12-01T09:00" (local) or "2026-12-01T09:00Z" or "2026-12-01T09:00+01:00", "now", or "+2h"'
)
REPEAT_ACCEPTED = '"daily", "weekly", or a time between two starts like "12h"'

_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?)?(Z|[+-][0-9]{2}:[0-9]{2})?", re.ASCII)
_NAMED_REPEATS = {"daily": 86_400_000, "weekly": 7 * 86_400_000}


def parse_moment_ms(text: str, field: str, now_ms: int) -> int:
    """Raises TextError for what is no moment."""
    if text == "now":
        return now_ms
    if text.startswith("+"):
        try:
            return now_ms + parse_duration_ms(text[1:], field)
        except QuantityError as err:
            raise TextError(field, text, err.why, TIME_ACCEPTED) from err
    if _ISO.fullmatch(text) is None:
        raise TextError(field, text, "is no time", TIME_ACCEPTED)
    try:
        # astimezone takes a time without a zone for a local one.
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError) as err:
        raise TextError(field, text, "is no time that can be", TIME_ACCEPTED) from err


def parse_repeat_ms(text: str, field: str = "repeat") -> int:
    """From one start to the next. Raises TextError."""
    if text in _NAMED_REPEATS:
        return _NAMED_REPEATS[text]
    try:
        return parse_duration_ms(text, field)
    except QuantityError as err:
        raise TextError(field, text, err.why, REPEAT_ACCEPTED) from err
