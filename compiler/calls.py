"""What lowering makes of a graph: a list of kernel calls, and of regions that hold such lists.

A `Kernel` is one function, shared by every call with the same `key`; a `Call` says on which values, for which
scalars and for how many work items it runs. The program writer knows no more of a kernel than this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Node, Source, Weight


@dataclass(frozen=True)
class Kernel:
    """One kernel function.

    Args:
        family: which file of kernels made it: "linear".
        key: everything its code depends on; (family, key) identifies it.
        pointers: dtype of each pointer parameter, the written ones last.
        scalars: how many int64 parameters follow.
        emit: (symbol, cpu) -> TIR PrimFunc.
        scratch: bytes of scratch memory for each thread, passed before begin and end if not 0.
        threads: of a block of a GPU kernel, which has no begin, end and scratch; 0 for a CPU.
        about: what the files of its family want to know of it again: of a product, its shape and schedule.
        written: how many pointers it writes, one for each result of its node.
    """

    family: str
    key: Hashable
    pointers: tuple[str, ...]
    scalars: int
    emit: Callable[[str, Any], Any] = field(compare=False)
    scratch: int = 0
    threads: int = 0
    about: Any = field(default=None, compare=False)
    written: int = 1

    @property
    def symbol(self) -> str:
        """The C name: family and a hash of the key."""
        return f"{self.family}_{hashlib.sha256(repr(self.key).encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Panels:
    """A layout of a matrix, `[panels][depth / unit][width][unit]`: each row is a column of a panel.

    Args:
        width: rows of the matrix that lie in one panel, side by side.
        depth: columns of the matrix, and what they are padded to.
        unit: columns of a row that stay together.
    """

    width: int
    depth: int
    unit: int = 1


@dataclass(frozen=True)
class Packed:
    """A weight in a kernel's own layout, stored instead of the original.

    Args:
        weight: the values as the model has them.
        layout: names the layout; equal (weight, layout) are stored once.
        pack: array -> packed array.
        panels: what the layout is, where others may read rows of the weight from it.
    """

    weight: Weight
    layout: str
    pack: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = field(compare=False)
    panels: Panels | None = None


Operand = Node | Packed
Layouts = Sequence[Panels | None]  # of each operand that is read; None: as its dtype and shape say


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a kernel.

    Args:
        kernel: which.
        operands: one for each pointer that is read; a `constant` node is read from the weights file as it is. The last
            is the node whose results the call writes.
        scalars: one for each scalar parameter.
        items: how many work items; on a GPU, how many blocks.
        cost: work of one item, in vector operations or 64-byte lines moved: chunks are cut by it.
        flops, bytes: of the whole call, for the profile.
        source: for messages and profiles.
        laid: what makes the same call for other layouts of its operands, where there is such a kernel.
    """

    kernel: Kernel
    operands: tuple[Operand, ...]
    scalars: tuple[Dim, ...]
    items: Dim
    cost: Dim
    flops: Dim
    bytes: Dim
    source: Source = field(default_factory=Source)
    laid: Callable[[Layouts], Call] | None = None


@dataclass(frozen=True, eq=False)
class Region:
    """A loop or a branch: its node, and the calls that compute each of its bodies."""

    node: Node
    bodies: tuple[tuple[Call | Region, ...], ...]


Calls = Iterable[Call | Region]


def every_call(calls: Calls) -> Iterator[Call]:
    """The calls of a program, those of its regions' bodies too."""
    for call in calls:
        if isinstance(call, Call):
            yield call
            continue
        for body in call.bodies:
            yield from every_call(body)
