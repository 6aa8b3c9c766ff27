"""Every reason has a command to type, or none on purpose, and the command line takes it."""

from __future__ import annotations

import contextlib
import shlex

import click
import pytest

from gpushare.cli.main import root
from gpushare.reasons import Reason
from gpushare.remedies import GROUPS


def test_each_reason_stands_in_one_group() -> None:
    listed = [reason for group in GROUPS for reason in group.commands]
    assert sorted(listed) == sorted(Reason), "a new reason has a row in gpushare/remedies.py"


@pytest.mark.parametrize("typed", sorted({line for group in GROUPS for line in group.commands.values() if line}))
def test_the_command_line_takes_it(typed: str) -> None:
    program, *words = shlex.split(typed)
    assert program == "gpushare"
    command: click.Command = root
    context = root.make_context(program, words)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found
        with contextlib.suppress(click.exceptions.Exit):  # of --help
            context = command.make_context(name, words, parent=context)
