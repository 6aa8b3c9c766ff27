"""JSON for the launcher and the shims, without the standard `json` package.

`json` pulls in `re` and `enum`, more than a mebibyte in a process of which every task attempt keeps a copy.
The C scanner below it is the same, so what is read here is what `json.loads` reads. Writing covers flat
objects, which is all a record or message is. Imports `_json` alone.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from typing import Any

Flat = dict[str, str | int | bool | None]


class _Context:
    """What the C scanner asks of its decoder: the defaults of `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan: Any = _json.make_scanner(_Context())  # type: ignore[arg-type]


def loads(data: bytes) -> dict[str, Any]:
    """The object that `data` (UTF-8) holds; ValueError if it is anything else, torn or followed by more."""
    try:
        text = data.decode()
        value, end = _scan(text, 0)
    except (StopIteration, ValueError, RecursionError, ImportError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if text[end:].strip() or not isinstance(value, dict):
        raise ValueError("not one JSON object")
    return value


def dumps(record: Flat) -> bytes:
    """One flat object as ASCII JSON."""
    return ("{" + ",".join(f"{_text(key)}:{_value(value)}" for key, value in record.items()) + "}").encode()


def _text(value: str) -> str:
    return str(_json.encode_basestring_ascii(value))


def _value(value: str | int | bool | None) -> str:
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else _text(value)
