"""`--dim NAME=SIZE` and `--dim NAME=LOW..HIGH`, dynamic axes of a file that have one size, or other bounds; `--fix
NAME=NUMBER`, inputs that have one value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import click

from llmc.compiler.frontends.axes import Asked


class Sized(click.ParamType[tuple[str, Asked]]):
    """A name and a size, such as `height=48`, or a name and bounds, such as `height=32..2048`."""

    name = "dim"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Asked]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*([^=\s]+)\s*=\s*(\d{1,9})(?:\.\.(\d{1,9}))?\s*", str(value))
        if not found or not 1 <= int(found[2]) <= int(found[3] or found[2]):
            form = "NAME=SIZE or NAME=LOW..HIGH, such as height=48 or height=32..2048"
            self.fail(f"{value!r} is not of the form {form}", param, ctx)
        low = int(found[2])
        return found[1], (low, int(found[3])) if found[3] else low


class Valued(click.ParamType[tuple[str, int | float]]):
    """A name and a number, such as `sr=16000`."""

    name = "fix"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | float]:
        if isinstance(value, tuple):
            return value
        name, _, text = str(value).rpartition("=")
        number = _number(text)
        if not name.strip() or number is None:
            form = "NAME=NUMBER, such as sr=16000, of digits that a double holds"
            self.fail(f"{value!r} is not of the form {form}", param, ctx)
        return name.strip(), number


def _number(text: str) -> int | float | None:
    """An integer with all its digits, however it is written, else a float; None where neither holds the number."""
    try:
        exact, near = Decimal(text.strip()), float(text)
    except (ArithmeticError, ValueError):
        return None
    whole = math.isfinite(near) and exact == exact.to_integral_value()
    if not math.isfinite(near) or near.is_integer() > whole:
        return None
    return int(exact) if whole else near


def as_dict(
    ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, Any], ...]
) -> dict[str, Any] | None:
    """A callback: pairs as a dict, None without any; a name that is given twice is refused."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{twice[0]} is given twice", ctx, param)
    return dict(pairs) or None


def dim_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--dim` and `--fix`, of commands that read a model's file; the command gets `dims` and `fixed`, dicts or None."""
    text = (
        "A dynamic axis of an ONNX file that always has one size, as height=48, or its bounds, as height=32..2048. "
        "Repeatable."
    )
    option = click.option(
        "--dim", "dims", metavar="NAME=SIZE", type=Sized(), multiple=True, callback=as_dict, help=text
    )
    fix = click.option(
        "--fix",
        "fixed",
        metavar="NAME=NUMBER",
        type=Valued(),
        multiple=True,
        callback=as_dict,
        help="An input of an ONNX file that always has one value, as sr=16000. Repeatable.",
    )
    return option(fix(command))
