"""Options that several commands share. Imports click alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

_Function = TypeVar("_Function", bound=Callable[..., Any])

TABLE = "table"
JSON = "json"
WIDE = "wide"


def output_option(function: _Function) -> _Function:
    """`-o table|json|wide` as the parameter `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice([TABLE, JSON, WIDE]),
        default=TABLE,
        help="How to print it; json has the names of the API.",
    )(function)


def not_empty(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """A callback: an empty value that was typed, as by a script whose variable is not set, would choose everything."""
    if value == "" and ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
        raise click.BadParameter("it is empty; name one, or leave the option out", ctx, parameter)
    return value


def tenant_option(function: _Function) -> _Function:
    """`--tenant T` as the parameter `tenant`, "" where it was not given."""
    return click.option(
        "--tenant", metavar="T", default="", callback=not_empty, help="This tenant in place of your own."
    )(function)
