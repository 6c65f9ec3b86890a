"""`--dim NAME=SIZE`: dynamic axes of a file that always have one size."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click


class Fixed(click.ParamType[tuple[str, int]]):
    """A name and a size, such as `height=48`."""

    name = "dim"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*([^=\s]+)\s*=\s*(\d{1,9})\s*", str(value))
        if not found or not int(found[2]):
            self.fail(f"{value!r} is not of the form NAME=SIZE, such as height=48", param, ctx)
        return found[1], int(found[2])


def _as_dict(
    ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, int], ...]
) -> dict[str, int] | None:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{twice[0]} is given twice", ctx, param)
    return dict(pairs) or None


def dim_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--dim`, of commands that read a model's file; the command gets `dims`, a dict or None."""
    text = "A dynamic axis of an ONNX file that always has one size, as height=48. Repeatable."
    option = click.option(
        "--dim", "dims", metavar="NAME=SIZE", type=Fixed(), multiple=True, callback=_as_dict, help=text
    )
    return option(command)
