"""How one ONNX node becomes IR nodes: the table of converters and what a converter is given.

A value is a `Node`, or `Sizes`: numbers computed from shapes, which are kept as expressions of the dims and never
become nodes unless something computes with them as data (their arithmetic is in `onnx_sizes.py`), or `Items`, a
sequence or an optional value, which exists while a file is read only. What a converter does not look at, it has not
understood: an attribute that is not as it would be without it, or an input, is then an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sympy import Symbol

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.onnx_agreed import agreeing, summed
from llmc.compiler.frontends.onnx_values import (
    Attributes,
    Inputs,
    Sizes,
    Value,
    known,
    want_room,
)
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import DTYPES, Node, Source, Weight, results_of
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.registry import into
from llmc.errors import LlmcError

FOLD_LIMIT = (
    65536  # elements of a constant that is computed at import; larger ones are left to the pass `fold`
)


Result = Value | tuple["Value | None", ...]  # None: of an output without a name
Converter = Callable[["Call"], Result]
TABLE: dict[str, Converter] = {}  # op type -> converter


def onnx_op(*types: str) -> Callable[[Converter], Converter]:
    """Register the decorated converter for these op types."""
    return into(TABLE, types, "converters for ")


@dataclass(frozen=True)
class Call:
    """One ONNX node with its inputs, already imported.

    Args:
        type: op type, such as `Gather`.
        inputs: None where an optional input is left out.
        attributes: tensors as arrays, texts as str, graphs as they are in the file.
        outputs: how many outputs the node has.
        opset: version of the op's domain.
        kinds: ONNX's element types of the inputs; 0 where there is none.
        declared: what the file says of the outputs' shapes, None where it does not say all of it.
        scope: where the node is, for ops with bodies: an `onnx_reader.Scope`.
        named: whether each output has a name; one without is wanted by nobody.
    """

    type: str
    inputs: Inputs
    attributes: Attributes
    outputs: int
    opset: int
    source: Source
    kinds: tuple[int, ...] = ()
    declared: tuple[tuple[int, ...] | None, ...] = ()
    scope: Any = None
    named: tuple[bool, ...] = ()

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def value(self, position: int) -> Value:
        """An input as it is."""
        value: Value | None = self.inputs[position] if position < len(self.inputs) else None
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
        self.require(isinstance(value, Sizes), "a sequence where a tensor is wanted")
        assert isinstance(value, Sizes)
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

    def known_dims(self, position: int) -> tuple[Dim, ...] | None:
        """A one-dimensional input of sizes, None if they are not known now."""
        array = known(self.value(position))
        return None if array is None else tuple(dim(n) for n in array.reshape(-1))

    def ints(self, position: int, attribute: str) -> tuple[int, ...] | None:
        """Integers that are an attribute in old opsets and an input in new ones; None if not given."""
        if attribute in self.attributes:
            return tuple(int(n) for n in self.attributes[attribute])
        if not self.has(position):
            return None
        numbers = self.dims(position, attribute)
        self.require(all(isinstance(n, int) for n in numbers), f"{attribute} that depend on sizes")
        return numbers

    def shape_of_result(self, what: str, position: int = 0) -> tuple[int, ...]:
        """The shape that the file declares for a result which is computed from the values of tensors."""
        declared = self.declared[position] if position < len(self.declared) else None
        self.require(
            declared is not None,
            f"{what} computed from the values of tensors",
            "export with static or input-derived shapes",
        )
        assert declared is not None
        self.trust(what)
        return declared

    def trust(self, what: str) -> None:
        """Take it that numbers at run time give the shapes that the import has: what the user is warned of."""
        if self.scope is not None:
            self.scope.reader.trusted.setdefault(self._place, what)

    def may_be_empty(self, size: Dim) -> None:
        """A dim of an input may be 0, though others are not."""
        if self.scope is not None and isinstance(size, Symbol):
            self.scope.reader.empty.add(str(size))

    def is_sum(self, size: Dim, of: Dim) -> bool:
        """Whether a dim of an input can be what others make of it, which the file is read again for."""
        able = (
            self.scope is not None
            and isinstance(size, Symbol)
            and size not in getattr(of, "free_symbols", ())
        )
        if able:
            self.scope.reader.sums.setdefault(size, of)
        return able

    def number_of_result(self, what: str, position: int, axis: int) -> int:
        """The declared size of an axis that is the one number of an input, which may have no other then."""
        size = self.shape_of_result(what)[axis]
        if self.scope is not None:  # what is in a branch may never run
            number = self.node(position) if self.scope.around is None else None
            self.scope.reader.numbers.append((self._place, number, size))
        return size

    @property
    def _place(self) -> str:
        return f"{self.type} {self.source}".rstrip()

    def declared_part(self, axes: Sequence[int] | None) -> tuple[int, ...]:
        """The declared sizes of some axes of the result, all where none are named."""
        shape = self.shape_of_result("sizes")
        return shape if axes is None else tuple(shape[a] for a in axes)

    def float(self, position: int, attribute: str, default: float) -> float:
        """A number that is an attribute in old opsets and an input, known now, in new ones."""
        if attribute in self.attributes:
            return float(self.attributes[attribute])
        if not self.has(position):
            return default
        return float(self.numbers(position, attribute).reshape(()))

    def wants(self, position: int) -> bool:
        """Whether an output is read by anything."""
        return position < len(self.named) and self.named[position]

    def without_meaning(self, *names: str) -> None:
        """Attributes that change nothing here."""
        self.attributes.read.update(names)

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
        made = self._made(name, inputs, attributes)
        for kind in results_of(made.type):
            want_room(kind.shape)
        return folded(made)

    def _made(self, name: str, inputs: tuple[Node, ...], attributes: Mapping[str, Any]) -> Node:
        try:
            return make(name, inputs, self.source, **attributes)
        except LlmcError:
            found = agreeing(name, inputs, attributes, self.source)
            if found is None or self.scope is None:
                raise
            made = make(name, found[0], self.source, **attributes)
            for size, of in filter(None, (summed(*pair) for pair in found[1])):
                self.is_sum(size, of)
            self.scope.reader.agreed.setdefault(self._place, set()).update(found[1])
            return made

    def number(self, value: Any, dtype: str) -> Node:
        """A rank-0 constant."""
        return constant(Weight(np.asarray(value).astype(DTYPES[dtype]), ""), source=self.source)

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
    name = names.pop() if len(names) == 1 else ""
    return constant(Weight(np.ascontiguousarray(array).reshape(node.shape), name), source=node.source)
