"""What values are while an ONNX file is read, and what of a node its converter has looked at."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.imported import LARGEST
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node

MOST_ELEMENTS = 1 << 32  # of a tensor
MOST_AXES = 16
_MOST_OF_TABLE = 1 << 27
_MOST_DEGREE, _MOST_TERMS = 32, 1000  # of an expression of sizes


@dataclass(frozen=True)
class Sizes:
    """Integers of which at least one depends on a symbolic dim: an object array of dims."""

    array: np.ndarray[Any, Any]
    dtype: str = "i64"


@dataclass(frozen=True)
class Unsized:
    """An item whose size numbers at run time decide: it can be counted, not read."""


@dataclass(frozen=True)
class Items:
    """A sequence, or an optional value: one item or none."""

    items: tuple[Node | Sizes | Unsized, ...]


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
    least = [d if isinstance(d, int) else _least(d) for d in shape]
    if max(least, default=0) > LARGEST and 0 not in least:
        raise UnsupportedError(f"an axis of {max(least)} elements", f"at most {LARGEST} are possible")
    if math.prod(least) > MOST_ELEMENTS:
        raise UnsupportedError(
            f"a tensor of {math.prod(least)} elements", f"at most {MOST_ELEMENTS} are possible"
        )


@functools.cache
def _least(size: Any) -> int:
    """Of a size that grows with dims, which are at least 1; 0 of one that may not."""
    if size.is_Symbol:
        return 1
    at_one = size.subs(dict.fromkeys(size.free_symbols, 1))
    return max(int(at_one), 0) if at_one.is_Integer else 0


def want_short(size: Dim) -> None:
    """Refuse arithmetic on sizes that grows without end, before anything is worked out of it."""
    if not isinstance(size, int) and (_degree(size) > _MOST_DEGREE or sympy.count_ops(size) > _MOST_TERMS):
        raise UnsupportedError(
            "a size that no tensor has", "it is computed from the sizes of others over and over"
        )


def _degree(size: Any) -> int:
    """The highest power of a dim, all together."""
    if size.is_Pow:
        return abs(int(size.exp)) * _degree(size.base) if size.exp.is_Integer else _MOST_DEGREE + 1
    parts = [_degree(part) for part in size.args]
    return int(size.is_Symbol) + (sum(parts) if size.is_Mul else max(parts, default=0))
