"""What the shell offers for options whose values are names; nothing is imported until it asks."""

from __future__ import annotations

import click


def targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Of `--target`: llmc's and those of installed packages."""
    from llmc.targets.host import all_targets

    return _beginning(["native", *all_targets()], incomplete)


def tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Of `--task`."""
    from llmc.compiler.frontends.tasks import TASKS

    return _beginning(["auto", *TASKS], incomplete)


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
