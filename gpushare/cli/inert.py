"""Text from other people made harmless for a terminal: names on one line, and log bytes as they stream by.

Imports the standard library alone. Invariants: nothing that this module lets through can move the cursor, set a title,
write a clipboard or answer the terminal. Colours and text attributes (SGR) survive in logs, never in names; what is
taken out stays visible as an escape such as \\x1b, so that nothing disappears.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

# Marks that reorder or hide what is on the line: they mislead on a terminal as much as a cursor movement does.
_MISLEADING = frozenset("\u061c\u200b\u200e\u200f\u2028\u2029\u2060\ufeff") | {
    chr(code) for span in ((0x202A, 0x202F), (0x2066, 0x206A)) for code in range(*span)
}
_SGR = re.compile(r"\x1b\[[0-9;:]*m")
_SGR_START = re.compile(r"\x1b(\[[0-9;:]*)?")
# An attribute sequence that is longer than this is no attribute sequence.
_SGR_MAX_CHARS = 64
_KEPT_IN_LOGS = frozenset("\r\t\n")

SGR_RESET = "\x1b[0m"


def inert(text: str) -> str:
    """`text` on one line: every control, direction and surrogate character as an escape, all else as it is."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or char in _MISLEADING


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, as `surrogateescape` carries it
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}"


class TerminalFilter:
    """Bytes of one output stream -> text that a terminal may show; state is kept across chunks.

    SGR, CR, TAB and LF pass; every other control sequence, and every byte that is no UTF-8, is shown escaped.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._pending = ""
        self.coloured = False

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """What may be shown of `data`; an unfinished sequence waits for the next call unless `final`."""
        text = self._pending + self._decoder.decode(data, final)
        self._pending = ""
        shown: list[str] = []
        position = 0
        while position < len(text):
            escape = text.find("\x1b", position)
            if escape < 0:
                shown.append(_shown_in_logs(text[position:]))
                break
            shown.append(_shown_in_logs(text[position:escape]))
            sgr = _SGR.match(text, escape)
            if sgr is not None and len(sgr[0]) <= _SGR_MAX_CHARS:
                shown.append(sgr[0])
                self.coloured = True
                position = sgr.end()
            elif not final and _may_become_sgr(text, escape):
                self._pending = text[escape:]
                break
            else:
                shown.append(_escaped("\x1b"))
                position = escape + 1
        return "".join(shown)


def _may_become_sgr(text: str, escape: int) -> bool:
    start = _SGR_START.match(text, escape)
    return start is not None and start.end() == len(text) and len(text) - escape <= _SGR_MAX_CHARS


def _shown_in_logs(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in _KEPT_IN_LOGS or not _is_unsafe(char) else _escaped(char) for char in text)
