"""Usage errors beyond click's own: several at once, and what somebody who knows Slurm may have meant.

Imports click alone, as the root of the command line does.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

# Names of other programs' commands, and of none of ours -> what is typed here.
_HERE = {
    "cordon": "gpushare node cordon",
    "drain": "gpushare node drain",
    "sacct": "gpushare jobs -a",
    "salloc": "gpushare shell",
    "sbatch": "gpushare submit",
    "scancel": "gpushare cancel",
    "scontrol": "gpushare job",
    "sinfo": "gpushare nodes",
    "squeue": "gpushare jobs",
    "srun": "gpushare run",
    "uncordon": "gpushare node uncordon",
    "undrain": "gpushare node uncordon",
}


class SeveralUsageErrors(click.UsageError):
    """Each of `errors` is a line of its own."""

    def __init__(self, errors: Sequence[click.UsageError], ctx: click.Context | None) -> None:
        super().__init__("; ".join(error.message for error in errors), ctx)
        self.errors = list(errors)


def sentences(err: click.UsageError) -> list[str]:
    """What is wrong, and where the help is, a sentence for each line."""
    path = err.ctx.command_path if err.ctx is not None else "gpushare"
    errors = err.errors if isinstance(err, SeveralUsageErrors) else [err]
    return [f"INVALID_FIELD: {_text(each).rstrip('.')} (see: {path} --help)" for each in errors]


def _text(err: click.UsageError) -> str:
    """As click has it; of a command that there is not, with what was perhaps meant."""
    name = getattr(err, "command_name", "")  # older versions of click do not say it
    if not name or err.ctx is None:
        return err.format_message()
    if name in _HERE:
        return f"{err.message} Here it is: {_HERE[name]}"
    import difflib

    group = err.ctx.command
    known = group.list_commands(err.ctx) if isinstance(group, click.Group) else []
    close = difflib.get_close_matches(name, known, n=1)
    return f"{err.message} Did you mean {close[0]!r}?" if close else err.message
