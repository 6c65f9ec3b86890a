"""`llmc completion`: a script that lets the shell complete llmc's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_EPILOG = """\b
Examples:
  echo 'eval "$(llmc completion bash)"' >> ~/.bashrc
  echo 'eval "$(llmc completion zsh)"'  >> ~/.zshrc
  llmc completion fish > ~/.config/fish/completions/llmc.fish
"""

_INSTALL = {
    "bash": 'add this line to ~/.bashrc:  eval "$(llmc completion bash)"',
    "zsh": 'add this line to ~/.zshrc:  eval "$(llmc completion zsh)"',
    "fish": "llmc completion fish > ~/.config/fish/completions/llmc.fish",
}


@click.command("completion", epilog=_EPILOG, short_help="Print a shell completion script.")
@click.argument("shell", type=click.Choice(list(_INSTALL)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL, with a comment that says how to install it."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells"
    script = kind(ctx.find_root().command, {}, "llmc", "_LLMC_COMPLETE").source()
    click.echo(f"# {_INSTALL[shell]}\n{script}")
