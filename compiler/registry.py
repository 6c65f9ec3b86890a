"""Tables that decorated functions put themselves into."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TypeVar

Function = TypeVar("Function")


def into(
    table: MutableMapping[str, Function], names: tuple[str, ...], what: str
) -> Callable[[Function], Function]:
    """A decorator that puts a function into `table` under each of `names`, of which none may be there.

    Args:
        what: what the functions are, for the message: "converters for aten.".
    """

    def register(function: Function) -> Function:
        for name in names:
            assert name not in table, f"two {what}{name}"
            table[name] = function
        return function

    return register
