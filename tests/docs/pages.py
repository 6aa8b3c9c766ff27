"""Pages that are run: what a page of the documentation tells its reader to type is typed, and must print what it says.

Imports the standard library alone. A page is Markdown. In its ```console blocks a line that begins with `$ ` is a
command (`> ` continues it) and what follows is its output. A line `...` there stands for any lines, `...` in a line for
any text; columns may be wider or narrower; everything else is literal. HTML comments before a block say more:

    <!-- page: tenant=vision user=ada -->    who types, for the whole page
    <!-- run: user=admin -->                 who types the next block
    <!-- file: train.py -->                  the next block is that file
    <!-- not run: needs a card -->           the next console block is only read, and why

Invariants: every command of a page is run, in order, in one shell a person and one directory, or its page says why
not; a command that fails must be followed by `$ echo $?`, so that the reader sees it too.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ANY = "..."
COMMAND_LIMIT_S = 90.0
# Blocks of these kinds would hide commands from the runner.
_SHELL_KINDS = frozenset({"bash", "sh", "shell", "shell-session", "terminal"})
_COMMENT = re.compile(r"<!-- (page|run|file|not run): (.+) -->")
_FENCE = re.compile(r"```(\S*)\s*")


class PageError(AssertionError):
    """A page is written wrongly, or says what is not so; the text begins with page:line."""


class Command(NamedTuple):
    """One command, where it stands, and what the page says that it prints."""

    line: int
    text: str
    expected: tuple[str, ...]


class Console(NamedTuple):
    """A block of commands; `why_not` "" where they are run."""

    line: int
    commands: tuple[Command, ...]
    options: Mapping[str, str]
    why_not: str


class File(NamedTuple):
    """A block that the reader saves."""

    line: int
    name: str
    text: str


class Page(NamedTuple):
    path: Path
    options: Mapping[str, str]
    steps: tuple[Console | File, ...]

    @property
    def commands(self) -> list[Command]:
        return [command for step in self.steps if isinstance(step, Console) for command in step.commands]


class Seat(NamedTuple):
    """Where a shell is begun: its environment, and a command that begins it there."""

    environment: Mapping[str, str]
    prefix: Sequence[str] = ()


class Typed(NamedTuple):
    """What a command was, and what came of it."""

    text: str
    code: int
    output: str


# -- reading


def read_page(path: Path) -> Page:
    """Raises PageError for what the runner cannot take."""
    lines = path.read_text().splitlines()
    options: dict[str, str] = {}
    steps: list[Console | File] = []
    said: dict[str, str] = {}
    number = 0
    while number < len(lines):
        text = lines[number].strip()
        number += 1
        comment, fence = _COMMENT.fullmatch(text), _FENCE.fullmatch(text)
        if comment and comment[1] == "page":
            options = _options(comment[2])
        elif comment:
            said[comment[1]] = comment[2]
        elif fence:
            begin = number
            while number < len(lines) and lines[number].strip() != "```":
                number += 1
            if number == len(lines):
                raise PageError(f"{path}:{begin}: the block has no end")
            steps += _steps(path, begin + 1, fence[1], lines[begin:number], said)
            said = {}
            number += 1
        elif text and said:
            raise PageError(f"{path}:{number}: a comment for a block, and no block follows")
    return Page(path, options, tuple(steps))


def _steps(path: Path, line: int, kind: str, lines: Sequence[str], said: Mapping[str, str]) -> list[Console | File]:
    if "file" in said:
        return [File(line, said["file"], "\n".join(lines) + "\n")]
    if kind == "console":
        commands = _commands(path, line, lines)
        return [Console(line, commands, _options(said.get("run", "")), said.get("not run", ""))]
    if said or kind in _SHELL_KINDS or any(text.startswith("$ ") for text in lines):
        raise PageError(f"{path}:{line}: commands stand in ```console blocks, each behind a `$ `")
    return []


def _options(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split())


def _commands(path: Path, line: int, lines: Sequence[str]) -> tuple[Command, ...]:
    found: list[tuple[int, list[str], list[str]]] = []
    for number, text in enumerate(lines, line):
        if text.startswith("$ "):
            found.append((number, [text[2:]], []))
        elif not found:
            raise PageError(f"{path}:{number}: a console block begins with a `$ ` line")
        elif text.startswith("> ") and not found[-1][2]:
            found[-1][1].append(text[2:])
        else:
            found[-1][2].append(text.rstrip())
    return tuple(Command(number, "\n".join(words), tuple(expected)) for number, words, expected in found)


# -- comparing


def matches(expected: Sequence[str], got: Sequence[str]) -> bool:
    """Whether `got` is what the page says."""
    parts: list[list[str]] = [[]]
    for line in expected:
        if line.strip() == ANY:
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) == 1:
        return len(got) == len(expected) and _all_match(expected, got)
    first, last = parts[0], parts[-1]
    if not _all_match(first, got[: len(first)]):
        return False
    place = len(first)
    # Each part in its first place leaves the most room for those behind it.
    for part in parts[1:-1]:
        while not _all_match(part, got[place : place + len(part)]):
            place += 1
            if place > len(got):
                return False
        place += len(part)
    return len(got) - len(last) >= place and _all_match(last, got[len(got) - len(last) :])


def _all_match(expected: Sequence[str], got: Sequence[str]) -> bool:
    return len(expected) == len(got) and all(_line_matches(*pair) for pair in zip(expected, got, strict=True))


def _line_matches(expected: str, got: str) -> bool:
    pieces = (re.sub(r"(\\ )+", r"[ \\t]+", re.escape(piece)) for piece in expected.rstrip().split(ANY))
    return re.fullmatch(".*".join(pieces), got.rstrip()) is not None


def difference(where: str, expected: Sequence[str], got: Sequence[str]) -> str:
    """A diff in which lines that match look alike."""
    known = [line for line in expected if line.strip() != ANY]
    alike = [next((line for line in known if _line_matches(line, each)), each) for each in got]
    diff = difflib.unified_diff(expected, alike, where, "what it printed", lineterm="", n=99)
    return "\n".join(diff)


# -- running


class Shell:
    """One bash that keeps its directory and variables from command to command."""

    def __init__(self, directory: Path, seat: Seat) -> None:
        self._mark = secrets.token_hex(8)
        self._code = 0
        self._process = subprocess.Popen(
            [*seat.prefix, "bash", "--noprofile", "--norc"],
            cwd=directory,
            env=dict(seat.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def type(self, text: str, limit_s: float = COMMAND_LIMIT_S) -> Typed:
        """Runs `text` to its end. Raises TimeoutError with what it had printed."""
        assert self._process.stdin is not None
        # The code of the command before is $? of this one, as if nothing had come between.
        order = f"{{ (exit {self._code})\n{text}\n}} </dev/null\nprintf '{self._mark} %d\\n' $?\n"
        self._process.stdin.write(order.encode())
        self._process.stdin.flush()
        output = self._read_to_mark(text, limit_s)
        output, _, code = output.rpartition(self._mark)
        self._code = int(code)
        return Typed(text, self._code, output)

    def _read_to_mark(self, text: str, limit_s: float) -> str:
        assert self._process.stdout is not None
        descriptor, found = self._process.stdout.fileno(), bytearray()
        deadline_s = time.monotonic() + limit_s
        end = re.compile(self._mark.encode() + rb" \d+\n$")
        while end.search(found, max(0, len(found) - 64)) is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise TimeoutError(f"`{text}` had not ended after {limit_s:.0f} s; it printed:\n{found.decode()}")
            some = os.read(descriptor, 65536)
            if not some:
                raise EOFError(f"`{text}` ended its shell; it printed:\n{found.decode()}")
            found += some
        return found.decode(errors="replace")

    def close(self) -> None:
        """Ends it and what it left in the background."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def run_page(
    page: Page, directory: Path, seat_of: Callable[[Mapping[str, str]], Seat], limit_s: float = COMMAND_LIMIT_S
) -> list[Typed]:
    """Everything the page says, done in `directory`; what came of it. `seat_of` knows where who types sits, by a
    block's options; a command may take `limit_s`.

    Raises PageError where the page is not true.
    """
    shells: dict[tuple[tuple[str, str], ...], Shell] = {}
    typed: list[Typed] = []
    try:
        for step in page.steps:
            if isinstance(step, File):
                (directory / step.name).parent.mkdir(parents=True, exist_ok=True)
                (directory / step.name).write_text(step.text)
                continue
            if step.why_not:
                continue
            options = {**page.options, **step.options}
            key = tuple(sorted(options.items()))
            if key not in shells:
                shells[key] = Shell(directory, seat_of(options))
            typed += _run_block(page, step, shells[key], limit_s)
    finally:
        for shell in shells.values():
            shell.close()
    return typed


def _run_block(page: Page, block: Console, shell: Shell, limit_s: float) -> list[Typed]:
    typed: list[Typed] = []
    for place, command in enumerate(block.commands):
        where = f"{page.path}:{command.line}"
        try:
            done = shell.type(command.text, limit_s)
        except (TimeoutError, EOFError) as err:
            raise PageError(f"{where}: {err}") from None
        typed.append(done)
        got = done.output.splitlines()
        if not matches(command.expected, got):
            diff = difference(where, command.expected, got)
            raise PageError(f"{where}: `{command.text}` prints something else\n{diff}\n-- in full:\n{done.output}")
        follows = block.commands[place + 1].text if place + 1 < len(block.commands) else ""
        if done.code != 0 and "$?" not in follows:
            raise PageError(f"{where}: `{command.text}` ended with {done.code}:\n{done.output}")
    return typed
