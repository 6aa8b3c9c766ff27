"""`gpushare completion`: the script that makes a shell complete our commands.

Imports click alone.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "gpushare"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL: commands, options, and the names of jobs, nodes, tenants and files.

    \b
    for this shell, or from its start-up file:
      bash:  source <(gpushare completion bash)
      zsh:   source <(gpushare completion zsh)
      fish:  gpushare completion fish | source
    once and for all:
      bash:  gpushare completion bash > ~/.local/share/bash-completion/completions/gpushare
      zsh:   gpushare completion zsh > DIR/_gpushare, with DIR in $fpath
      fish:  gpushare completion fish > ~/.config/fish/completions/gpushare.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, _PROGRAM, f"_{_PROGRAM.upper()}_COMPLETE").source())
