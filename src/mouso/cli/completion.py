"""``mouso completion``."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class


@click.command(epilog='Example: eval "$(mouso completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
def completion(shell: str | None) -> None:
    """Print the completion script of a shell, to be sourced by its start-up file.

    It completes commands and options, and the names of tasks and queues of the app in the settings. SHELL is the
    one in $SHELL if left out.
    """
    from mouso.cli import cli
    from mouso.cli import complete as complete  # it teaches click about bash

    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    found = get_completion_class(name)
    if found is None:
        raise click.UsageError(f"there is no completion for the shell {name!r}; write bash, zsh or fish")
    click.echo(found(cli, {}, "mouso", "_MOUSO_COMPLETE").source())
