"""What values are while an ONNX file is read, and what of a node its converter has looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.imported import LARGEST
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node

MOST_ELEMENTS = 1 << 32  # of a tensor
MOST_AXES = 16
_MOST_OF_TABLE = 1 << 27


@dataclass(frozen=True)
class Sizes:
    """Integers of which at least one depends on a symbolic dim: an object array of dims."""

    array: np.ndarray[Any, Any]
    dtype: str = "i64"


@dataclass(frozen=True)
class Items:
    """A sequence, or an optional value: one item or none."""

    items: tuple[Node | Sizes, ...]


Value = Node | Sizes | Items


def known(value: Value | None) -> np.ndarray[Any, Any] | None:
    """The numbers of `Sizes` or of a constant, None if they are not known now."""
    if isinstance(value, Sizes):
        return value.array
    if isinstance(value, Node) and value.op == "constant":
        array: np.ndarray[Any, Any] = value.attributes["value"].array
        return array
    return None


class Attributes(dict[str, Any]):
    """A node's attributes, and which of them have been looked at."""

    def __init__(self, values: Mapping[str, Any], protos: Sequence[Any] = ()) -> None:
        super().__init__(values)
        self.protos = protos
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


class Inputs(tuple["Value | None", ...]):
    """A node's inputs, and which of them have been looked at."""

    read: set[int]

    def __new__(cls, values: Sequence[Value | None]) -> Inputs:
        made = super().__new__(cls, values)
        made.read = set()
        return made

    def __getitem__(self, position: Any) -> Any:
        self.read |= (
            set(range(len(self))[position]) if isinstance(position, slice) else {position % len(self)}
        )
        return super().__getitem__(position)

    def __iter__(self) -> Iterator[Value | None]:
        self.read |= set(range(len(self)))
        return super().__iter__()


def want_table(*sizes: Dim) -> None:
    """Refuse numbers that would be computed at import, of so many elements, before they are."""
    count = math.prod(d for d in sizes if isinstance(d, int))
    if count > _MOST_OF_TABLE:
        raise UnsupportedError(f"a table of {count} elements", f"at most {_MOST_OF_TABLE} are possible")


def want_room(shape: Sequence[Dim]) -> None:
    """Refuse a tensor that no machine holds."""
    known_sizes = [d for d in shape if isinstance(d, int)]
    count = math.prod(known_sizes)
    if count > MOST_ELEMENTS or any(d > LARGEST for d in known_sizes):
        raise UnsupportedError(f"a tensor of {count} elements", f"at most {MOST_ELEMENTS} are possible")
