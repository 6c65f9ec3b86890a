"""How one ONNX node becomes IR nodes: the table of converters and what a converter is given.

A value is a `Node`, or `Sizes`: numbers computed from shapes, which are kept as expressions of the dims and never
become nodes unless something computes with them as data. The converters are in `onnx_math.py`, `onnx_nn.py`,
`onnx_shape.py` and `onnx_index.py`, the arithmetic of `Sizes` in `onnx_sizes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import DTYPES, Node, Source
from llmc.compiler.ops import OPS, constant, make

FOLD_LIMIT = (
    65536  # elements of a constant that is computed at import; larger ones are left to the pass `fold`
)


@dataclass(frozen=True)
class Sizes:
    """Integers of which at least one depends on a symbolic dim: an object array of dims."""

    array: np.ndarray[Any, Any]
    dtype: str = "i64"


Value = Node | Sizes
Result = Value | tuple[Value, ...]
Converter = Callable[["Call"], Result]
TABLE: dict[str, Converter] = {}  # op type -> converter


def onnx_op(*types: str) -> Callable[[Converter], Converter]:
    """Register the decorated converter for these op types."""

    def register(convert: Converter) -> Converter:
        for op_type in types:
            assert op_type not in TABLE, f"two converters for {op_type}"
            TABLE[op_type] = convert
        return convert

    return register


def known(value: Value | None) -> np.ndarray[Any, Any] | None:
    """The numbers of `Sizes` or of a constant, None if they are not known now."""
    if isinstance(value, Sizes):
        return value.array
    if value is not None and value.op == "constant":
        array: np.ndarray[Any, Any] = value.attributes["value"].array
        return array
    return None


@dataclass(frozen=True)
class Call:
    """One ONNX node with its inputs, already imported.

    Args:
        type: op type, such as `Gather`.
        inputs: None where an optional input is left out.
        attributes: as graphsurgeon has them.
        outputs: how many outputs the node has.
        opset: version of the default domain.
    """

    type: str
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    outputs: int
    opset: int
    source: Source

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def value(self, position: int) -> Value:
        """An input as it is."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if value is None:
            raise UnsupportedError(f"input {position} is missing", "the file is damaged: export it again")
        return value

    def node(self, position: int) -> Node:
        """An input as a node; sizes become data."""
        return self.data(self.value(position))

    def nodes(self) -> list[Node]:
        """All inputs as nodes."""
        return [self.node(i) for i in range(len(self.inputs))]

    def data(self, value: Value) -> Node:
        """Sizes as an integer tensor of `dim` nodes."""
        if isinstance(value, Node):
            return value
        parts = [self.cast(self.op("dim", value=d), value.dtype) for d in value.array.reshape(-1)]
        if value.array.ndim == 0:
            return parts[0]
        rows = [self.op("reshape", p, shape=(1,)) for p in parts]
        flat = rows[0] if len(rows) == 1 else self.op("concat", *rows, axis=0)
        return self.reshape(flat, value.array.shape)

    def numbers(self, position: int, what: str) -> np.ndarray[Any, Any]:
        """An input whose numbers must be known now, as ints and dims."""
        array = known(self.value(position))
        if array is None:
            raise UnsupportedError(
                f"{what} computed from the values of tensors", "export with static or input-derived shapes"
            )
        return array

    def dims(self, position: int, what: str) -> tuple[Dim, ...]:
        """A one-dimensional input of sizes."""
        return tuple(dim(n) for n in self.numbers(position, what).reshape(-1))

    def ints(self, position: int, attribute: str) -> tuple[int, ...] | None:
        """Integers that are an attribute in old opsets and an input in new ones; None if not given."""
        if attribute in self.attributes:
            return tuple(int(n) for n in self.attributes[attribute])
        if not self.has(position):
            return None
        numbers = self.dims(position, attribute)
        self.require(all(isinstance(n, int) for n in numbers), f"{attribute} that depend on sizes")
        return numbers

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, or its default."""
        value = self.attributes.get(name)
        return default if value is None else value

    def axis(self, rank: int, default: int | None = None) -> int:
        """The attribute `axis`, counted from the start."""
        value = self.attribute("axis", default)
        self.require(isinstance(value, int) and -rank <= value < max(rank, 1), f"axis {value} of {rank} axes")
        return int(value) % max(rank, 1)

    def op(self, name: str, *inputs: Node, **attributes: Any) -> Node:
        """A node with this call's source; small results of constants are computed at once."""
        return folded(make(name, inputs, self.source, **attributes))

    def number(self, value: Any, dtype: str) -> Node:
        """A rank-0 constant."""
        return constant(np.asarray(value).astype(DTYPES[dtype]), source=self.source)

    def cast(self, x: Node, dtype: str) -> Node:
        """x -> cast(x), or x itself if it has the dtype."""
        return x if x.dtype == dtype else self.op("cast", x, dtype=dtype)

    def reshape(self, x: Node, shape: Sequence[Dim]) -> Node:
        """x -> reshape(x), or x itself if it has the shape."""
        shape = tuple(dim(d) for d in shape)
        return x if x.shape == shape else self.op("reshape", x, shape=shape)

    def transpose(self, x: Node, perm: Sequence[int]) -> Node:
        """x -> transpose(x), or x itself if nothing moves."""
        perm = tuple(perm)
        return x if perm == tuple(range(len(perm))) else self.op("transpose", x, perm=perm)

    def expand(self, x: Node, shape: Sequence[Dim]) -> Node:
        """x -> expand(x), or x itself if it has the shape."""
        shape = tuple(dim(d) for d in shape)
        return x if x.shape == shape else self.op("expand", x, shape=shape)

    def sliced(self, x: Node, axis: int, start: Dim, stop: Dim, step: int = 1) -> Node:
        """x[start:stop:step] along an axis, or x itself if that is all of it."""
        if (start, stop, step) == (0, x.shape[axis], 1):
            return x
        return self.op("slice", x, axis=axis, start=start, stop=stop, step=step)

    def require(self, holds: bool, reason: str, advice: str = "") -> None:
        """Refuse the node unless `holds`."""
        if not holds:
            raise UnsupportedError(reason, advice)


def folded(node: Node) -> Node:
    """The value of a node that reads constants only, if it is small; else the node."""
    if node.op in ("constant", "input", "dim") or any(i.op != "constant" for i in node.inputs):
        return node
    sizes = [*node.shape, *(node.attributes.get(k, 0) for k in ("start", "stop"))]
    if not all(isinstance(d, int) for d in sizes) or math.prod(node.shape) > FOLD_LIMIT:
        return node
    if len(node.inputs) > 0 and any(i.attributes["value"].array.size > FOLD_LIMIT for i in node.inputs):
        return node
    declared = OPS[node.op]
    arrays = [i.attributes["value"].array for i in node.inputs]
    extra: dict[str, Any] = {"sizes": {}} if declared.symbolic else {}
    array = np.asarray(declared.reference(*arrays, **node.attributes, **extra), DTYPES[node.dtype])
    names = {i.attributes["value"].name for i in node.inputs}
    return constant(
        np.ascontiguousarray(array).reshape(node.shape), names.pop() if len(names) == 1 else "", node.source
    )
