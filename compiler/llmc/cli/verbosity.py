"""`-v` and `-q`, which llmc and each of its commands take, before the command's name or after it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from llmc.errors import LlmcWarning

_SAID = "llmc.verbosity"  # in click's `meta`, which a command has in common with the group: -1 quiet, 1 and up verbose


def _level() -> int:
    context = click.get_current_context(silent=True)
    return context.meta.get(_SAID, 0) if context else 0


def is_quiet() -> bool:
    """Whether only results and errors are wanted."""
    return _level() < 0


def say(text: str) -> None:
    """A line on stderr for those who typed -v."""
    if _level() > 0:
        click.echo(text, err=True)


def _set(ctx: click.Context, level: int) -> None:
    if ctx.meta.get(_SAID, level) * level < 0:
        raise click.UsageError("--verbose and --quiet exclude each other.", ctx)
    ctx.meta[_SAID] = level


def _verbose(ctx: click.Context, param: click.Parameter, count: int) -> None:
    if not count:
        return
    _set(ctx, count)
    before = os.environ.get("LLMC_DEBUG", "0")
    if before.isdigit():  # who reads it tells the user of anything else
        os.environ["LLMC_DEBUG"] = str(max(int(before), count))


def _quiet(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    if given:
        _set(ctx, -1)


OPTIONS = (
    click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        is_eager=True,
        callback=_verbose,
        help="Say more on stderr: times of passes; -vv their graphs, -vvv their rules.",
    ),
    click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_quiet,
        help="Results and errors only: no progress, warnings or advice.",
    ),
)


def with_options(command: click.Command) -> click.Command:
    """The command, which takes `OPTIONS` too."""
    command.params += [option for option in OPTIONS if option not in command.params]
    return command


@contextmanager
def scope() -> Iterator[None]:
    """In here llmc's warnings are lines such as its errors; what -v sets ends with it."""
    before = os.environ.get("LLMC_DEBUG")
    with warnings.catch_warnings():
        warnings.simplefilter("always", LlmcWarning)
        warnings.showwarning = _shown(warnings.showwarning)
        try:
            yield
        finally:
            os.environ.pop("LLMC_DEBUG", None)
            if before is not None:
                os.environ["LLMC_DEBUG"] = before


def _shown(other: Any) -> Any:
    """`warnings.showwarning` for llmc's own; `other` shows those of libraries."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, LlmcWarning):
            other(message, category, filename, lineno, file, line)
        elif not is_quiet():
            print(f"warning: {message}", file=sys.stderr)

    return show
