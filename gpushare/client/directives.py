"""The lines of a job script that say how it is to run: `#GPUSHARE` and `#SBATCH` in its leading comments.

Pure: the standard library's `shlex` alone. Invariants: the first line that is no comment ends the search, so that
nothing the script prints or pipes is ever taken for a directive; whatever the bytes are, the outcome is a list or a
DirectiveError that names a line.
"""

from __future__ import annotations

import io
import re
import shlex
from typing import NamedTuple

GPUSHARE = "#GPUSHARE"
SBATCH = "#SBATCH"
LINES_MAX = 256
LINE_MAX_BYTES = 16_384
_LOOKED_AT_BYTES = 64 << 10
_SHOWN_BYTES = 60
_LOOKALIKE = re.compile(rb"#+\s*(sbatch|gpushare)\s+-", re.IGNORECASE)


class DirectiveError(ValueError):
    """A directive that cannot be followed: `line` counts from 1, `text` is what a person reads about it."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")
        self.line = line
        self.text = text


class Directive(NamedTuple):
    """One line: its number, whether it is `#GPUSHARE` or `#SBATCH`, and its words as a shell would split them."""

    line: int
    kind: str
    words: tuple[str, ...]


class Setting(NamedTuple):
    """What one directive says about one option of `gpushare submit`. `option` has no dashes ("host-memory"), `source`
    is what stands in the script ("#SBATCH --mem")."""

    line: int
    source: str
    option: str
    value: str


def directives_of(script: bytes, wrong: list[DirectiveError]) -> list[Directive]:
    """In the order of the lines; what is none although it begins as one goes to `wrong`."""
    found: list[Directive] = []
    for number, raw in enumerate(io.BytesIO(script), start=1):
        line = raw.strip()
        if line and not line.startswith(b"#"):
            break
        for kind in (GPUSHARE, SBATCH):
            if raw.startswith(kind.encode()):
                try:
                    found += _directive(number, kind, line[len(kind) :])
                except DirectiveError as err:
                    wrong.append(err)
        if len(found) + len(wrong) > LINES_MAX:
            wrong.append(DirectiveError(number, f"there are more than {LINES_MAX} directives"))
            break
    return found


def lookalikes_of(script: bytes) -> list[DirectiveError]:
    """Lines that are no directives and may have been meant as such, each with what a person reads about it."""
    found: list[DirectiveError] = []
    is_head = True
    for number, raw in enumerate(io.BytesIO(script[:_LOOKED_AT_BYTES]), start=1):
        line = raw.strip()
        is_head = is_head and (not line or line.startswith(b"#"))
        match = _LOOKALIKE.match(line)
        if match is None or (is_head and raw.startswith((GPUSHARE.encode(), SBATCH.encode()))):
            continue
        kind = f"#{match[1].decode().upper()}"
        shown = ascii(line[:_SHOWN_BYTES].decode(errors="replace"))
        why = f"write {kind} at the beginning of the line" if is_head else "it stands behind the first command"
        found.append(DirectiveError(number, f"looks like a directive and is not one: {shown} ({why})"))
    return found


def _directive(number: int, kind: str, rest: bytes) -> list[Directive]:
    if rest.startswith(b"-"):
        raise DirectiveError(number, f"write a space behind {kind}")
    if rest and not rest[:1].isspace():
        return []  # "#SBATCHES" and the like are words of somebody's comment
    if len(rest) > LINE_MAX_BYTES:
        raise DirectiveError(number, f"{kind}: the line has more than {LINE_MAX_BYTES} bytes")
    # A byte that is no UTF-8 is told apart later, by whatever option it belongs to.
    words = _words(number, kind, rest.decode(errors="surrogateescape"))
    return [Directive(number, kind, words)] if words else []


def _words(number: int, kind: str, text: str) -> tuple[str, ...]:
    """As a shell splits them, up to a word that begins with #."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in lexer:
            if word.startswith("#"):
                break
            words.append(word)
    except ValueError as err:
        raise DirectiveError(number, f"{kind}: {str(err).lower()}") from err
    return tuple(words)
