"""`--dim NAME=SIZE` and `--dim NAME=LOW..HIGH`: dynamic axes of a file that have one size, or other bounds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

Size = int | tuple[int, int]


class Sized(click.ParamType[tuple[str, Size]]):
    """A name and a size, such as `height=48`, or a name and bounds, such as `height=32..2048`."""

    name = "dim"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Size]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*([^=\s]+)\s*=\s*(\d{1,9})(?:\.\.(\d{1,9}))?\s*", str(value))
        if not found or not 1 <= int(found[2]) <= int(found[3] or found[2]):
            form = "NAME=SIZE or NAME=LOW..HIGH, such as height=48 or height=32..2048"
            self.fail(f"{value!r} is not of the form {form}", param, ctx)
        low = int(found[2])
        return found[1], (low, int(found[3])) if found[3] else low


def _as_dict(
    ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, Size], ...]
) -> dict[str, Size] | None:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{twice[0]} is given twice", ctx, param)
    return dict(pairs) or None


def dim_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--dim`, of commands that read a model's file; the command gets `dims`, a dict or None."""
    text = (
        "A dynamic axis of an ONNX file that always has one size, as height=48, or its bounds, as height=32..2048. "
        "Repeatable."
    )
    option = click.option(
        "--dim", "dims", metavar="NAME=SIZE", type=Sized(), multiple=True, callback=_as_dict, help=text
    )
    return option(command)
