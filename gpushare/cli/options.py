"""Options that several commands share. Imports click alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

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


def tenant_option(function: _Function) -> _Function:
    """`--tenant T` as the parameter `tenant`, "" where it was not given."""
    return click.option("--tenant", metavar="T", default="", help="This tenant in place of your own.")(function)
