"""Notes on a job that asks for a card which it will not see: `cuda:3` where it has one card, which is cuda:0.

Imports the standard library alone. Looks at texts only, and only at their begin; it never refuses anything, because a
script may hold such words and never come to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LOOKED_AT_BYTES = 64 << 10
# A name before it, as in `mycuda:3`, makes it something else.
_DEVICE = re.compile(r"(?<![\w.])cuda:(\d{1,3})(?![\w.:])")
_VISIBLE = re.compile(r"CUDA_VISIBLE_DEVICES['\"]?\]?\s*[=,]\s*['\"]?(\d{1,3}(?:\s*,\s*\d{1,3})*)")


def card_hint(texts: Iterable[bytes | str], cards: int) -> str:
    """What to tell of the first card out of reach that any of the texts names; "" for none. `cards`: how many each
    task of the job has; a job without cards is told nothing, as its program may ask for one only where there is one.
    """
    if cards < 1:
        return ""
    for text in texts:
        for asked in _asked(_plain(text)):
            if asked[1] >= cards:
                return f"{asked[0]} is asked for, but {sees(cards)}"
    return ""


def sees(cards: int) -> str:
    """How a job counts its cards."""
    if cards == 1:
        return "this job sees one card, as cuda:0, whichever card of the node it is; leave CUDA_VISIBLE_DEVICES alone"
    return (
        f"this job sees {cards} cards, as cuda:0 to cuda:{cards - 1}, whichever cards of the node they are; leave "
        "CUDA_VISIBLE_DEVICES alone"
    )


def _asked(text: str) -> Iterable[tuple[str, int]]:
    for found in _DEVICE.finditer(text):
        yield f"cuda:{found[1]}", int(found[1])
    for found in _VISIBLE.finditer(text):
        yield f"CUDA_VISIBLE_DEVICES={found[1]}", max(int(index) for index in found[1].split(","))


def _plain(text: bytes | str) -> str:
    if isinstance(text, str):
        return text[:_LOOKED_AT_BYTES]
    begin = text[:_LOOKED_AT_BYTES]
    return "" if b"\0" in begin else begin.decode(errors="replace")
