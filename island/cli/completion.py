"""`island completion`: prints a completion script for a shell."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from island.cli import base


class Shell(StrEnum):
    """A shell with a completion script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("completion")(completion)


def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a script that completes commands, options and file names in a shell.

    bash, with the package bash-completion:

    \b
    mkdir -p ~/.local/share/bash-completion/completions
    island completion bash > ~/.local/share/bash-completion/completions/island

    zsh, with a DIR of $fpath:

    \b
    island completion zsh > DIR/_island

    fish:

    \b
    mkdir -p ~/.config/fish/completions
    island completion fish > ~/.config/fish/completions/island.fish

    The script has all names in it: pressing the key starts no other program.
    """
    from island.cli import completion_scripts
    from island.cli.main import build

    base.print_line(completion_scripts.script(shell.value, typer.main.get_command(build())))
