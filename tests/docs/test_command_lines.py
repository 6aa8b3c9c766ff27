"""Whatever command line is named anywhere, in a page or for a reason, is one that `gpushare` takes."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gpushare.cli.main import root
from gpushare.reasons import Reason
from gpushare.remedies import GROUPS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def take(line: str) -> None:
    """Raises click.UsageError for a command, option or value that there is not. That a parameter is left out, or a
    file is not here, is no mistake in a line that is only named."""
    program, *words = shlex.split(line)
    command: click.Command = root
    with contextlib.suppress(click.exceptions.Exit, click.MissingParameter, click.exceptions.NoArgsIsHelpError):
        context = root.make_context(program, words)
        while isinstance(command, click.Group):
            name, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None
            command = found
            context = command.make_context(name, words, parent=context)


def named_in(text: str) -> Iterator[str]:
    """Command lines of code blocks, up to their comment, pipe or redirection, and those between single backticks."""
    for place, part in enumerate(text.split("```")):
        lines = part.splitlines()[1:] if place % 2 else re.findall(r"`([^`\n]+)`", part)
        for line in lines:
            beginning = re.split(r"\s#|[|<>;&\\]", line.removeprefix("$ "))[0]
            # A word in quotes that was cut belongs to the job and not to gpushare.
            line = (
                beginning if beginning.count("'") % 2 == beginning.count('"') % 2 == 0 else beginning.split(" -- ")[0]
            )
            if line.startswith("gpushare "):
                yield line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_page_names_commands_that_there_are(path: Path) -> None:
    wrong = []
    for line in named_in(path.read_text()):
        try:
            take(line)
        except click.UsageError as err:
            if "does not exist" not in err.format_message():
                wrong.append(f"{line}: {err.format_message()}")
    assert not wrong


@pytest.mark.parametrize("line", ["gpushare lists", "gpushare jobs --here", "gpushare jobs --state gone"])
def test_a_command_that_there_is_not_is_seen(line: str) -> None:
    with pytest.raises(click.UsageError):
        take(line)


def test_each_reason_stands_in_one_group_with_a_command_that_there_is() -> None:
    listed = [reason for group in GROUPS for reason in group.commands]
    assert sorted(listed) == sorted(Reason), "a new reason has a row in gpushare/remedies.py"
    for line in (line for group in GROUPS for line in group.commands.values() if line):
        take(line)
