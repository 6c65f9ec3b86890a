"""How one ATen call becomes IR nodes: the table of converters and what a converter is given.

The converters themselves are in the files `aten_*.py`; what other frontends write alike is in `composed*.py`. Each
is registered under the names of the overloads it takes and returns a node, or a tuple of nodes for several results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import sympy
import torch

from llmc.compiler.dims import Dim, dim, floored, from_one, symbol
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import DTYPES, Node, Source
from llmc.compiler.ops import constant, make
from llmc.compiler.registry import into

TORCH_DTYPES: Mapping[Any, str] = MappingProxyType(
    {
        torch.float32: "f32",
        torch.float16: "f16",
        torch.int8: "i8",
        torch.uint8: "u8",
        torch.int32: "i32",
        torch.int64: "i64",
        torch.bool: "bool",
    }
)

Result = Node | tuple[Node | None, ...]  # None: a result that is not computed, whose readers are refused
Converter = Callable[["Call"], Result]
TABLE: dict[str, Converter] = {}  # ATen overload such as "add.Tensor" -> converter


def aten(*overloads: str) -> Callable[[Converter], Converter]:
    """Register the decorated converter for these overloads."""
    return into(TABLE, overloads, "converters for aten.")


def dtype_of(torch_dtype: Any) -> str:
    """llmc's name of a torch dtype; of complex numbers that of their parts."""
    if torch_dtype is torch.complex64:
        return "f32"
    if torch_dtype not in TORCH_DTYPES:
        raise UnsupportedError(
            f"dtype {str(torch_dtype).removeprefix('torch.')}",
            "convert the model with .float() before export",
        )
    return TORCH_DTYPES[torch_dtype]


@dataclass(frozen=True)
class Symbols:
    """Names of torch's size symbols (`s10` -> `batch`).

    Args:
        corners: sizes of all dims between which the others lie: what is linear in them is greatest at one of these.
    """

    names: MutableMapping[Any, Any]
    corners: Sequence[Mapping[str, int]] = ()

    def settle(self, shape: Sequence[Any], size: int) -> None:
        """The symbol that torch made for a size which depends on values, in `shape`, is this number."""
        for value in shape:
            if isinstance(value, torch.SymInt) and value.node.expr not in self.names:
                self.names[value.node.expr] = sympy.Integer(size)

    def dim(self, value: Any) -> Dim:
        """A size as torch has it (int, SymInt) as a dim of the IR."""
        if isinstance(value, torch.SymInt):
            expr = value.node.expr
            expr = expr.xreplace(dict(self.names))
            expr = expr.replace(lambda e: type(e).__name__ in ("Mod", "PythonMod"), _remainder)
            expr = expr.replace(
                lambda e: type(e).__name__ == "FloorDiv", lambda e: floored(e.args[0] / e.args[1])
            )
            self._check(expr)
            expr = expr.replace(lambda e: type(e).__name__ in ("Max", "Min"), self._extreme)
            empty = {name for sizes in self.corners for name, size in sizes.items() if not size}
            return from_one(dim(expr), empty)
        return dim(value)

    def _extreme(self, found: Any) -> Any:
        """torch's Max or Min as sympy's, or the one of the two that it always is."""
        if len(found.args) == 2 and self.corners:
            more = sympy.expand(found.args[0] - found.args[1])
            corners = [{symbol(n): size for n, size in sizes.items()} for sizes in self.corners]
            values = [more.xreplace(sizes) for sizes in corners] if _is_linear(more) else []
            for sign in (1, -1):
                if values and all(v.is_Integer and sign * v >= 0 for v in values):
                    return found.args[(sign < 0) == (type(found).__name__ == "Max")]
        return getattr(sympy, type(found).__name__)(*found.args)

    def _check(self, expr: Any) -> None:
        """Only named dims, and functions that dims can print and compute."""
        if unknown := expr.free_symbols - set().union(*(size.free_symbols for size in self.names.values())):
            raise UnsupportedError(
                f"a size that depends on values ({min(map(str, unknown))})",
                "use shapes that follow from the inputs'",
            )
        strange = {type(f).__name__ for f in expr.atoms(sympy.Function)} - {"floor", "Max", "Min"}
        if strange:
            raise UnsupportedError(
                f"a size computed by {min(strange)}", "use sums, products and floor division of sizes"
            )


def _is_linear(value: Any) -> bool:
    """Whether it is a sum of dims and numbers, each with a factor."""
    terms = value.as_coefficients_dict()
    return all(term.is_Symbol or term.is_Number for term in terms)


def _remainder(mod: Any) -> Any:
    """a mod b -> a - b * floor(a / b)."""
    a, b = mod.args
    return a - b * floored(a / b)


class Call:
    """One ATen call: its arguments by schema name, already imported, and the result torch foresaw.

    `call["dim"]` is an argument: a Node, a number, a dim, a list of these, or None. `shape` and `dtype` are
    those of the (first) result.
    """

    def __init__(
        self, target: Any, arguments: Mapping[str, Any], meta: Any, source: Source, symbols: Symbols
    ) -> None:
        self.target, self.arguments, self.meta, self.source, self.symbols = (
            target,
            arguments,
            meta,
            source,
            symbols,
        )

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument this overload may not have."""
        value = self.arguments.get(name, default)
        return default if value is None else value

    @functools.cached_property
    def shape(self) -> tuple[Dim, ...]:
        return self.shape_of(self._first)

    @functools.cached_property
    def dtype(self) -> str:
        return dtype_of(self._first.dtype)

    @property
    def _first(self) -> Any:
        return self.meta[0] if isinstance(self.meta, (tuple, list)) else self.meta

    def shape_of(self, meta: Any) -> tuple[Dim, ...]:
        """The shape of a fake tensor."""
        return tuple(self.symbols.dim(d) for d in meta.shape)

    def op(self, name: str, *inputs: Node, **attributes: Any) -> Node:
        """A node with this call's source."""
        return make(name, inputs, self.source, **attributes)

    def cast(self, x: Node, dtype: str) -> Node:
        """x -> cast(x), or x itself if it has the dtype."""
        return x if x.dtype == dtype else self.op("cast", x, dtype=dtype)

    def reshape(self, x: Node, shape: Sequence[Dim]) -> Node:
        """x -> reshape(x), or x itself if it has the shape."""
        return x if x.shape == tuple(shape) else self.op("reshape", x, shape=tuple(shape))

    def scalar(self, value: Any, dtype: str) -> Node:
        """A number or size as a rank-0 node; a node passes through a cast."""
        if isinstance(value, Node):
            return self.cast(value, dtype)
        if isinstance(value, (bool, int, float)):
            return constant(np.asarray(value).astype(DTYPES[dtype]), source=self.source)
        return self.cast(self.op("dim", value=value), dtype)

    def tensors(self, *names: str) -> list[Node]:
        """Arguments cast to the dtype PyTorch promotes them to; numbers become rank-0 nodes."""
        values = [self[name] for name in names]
        dtype = promote(values)
        return [self.scalar(value, dtype) for value in values]

    def axis(self, value: Any, rank: int | None = None) -> int:
        """A possibly negative axis, of the result unless `rank` is given."""
        rank = len(self.shape) if rank is None else rank
        return int(value) % max(rank, 1)

    def axes(self, value: Any, rank: int) -> tuple[int, ...]:
        """Axes of a reduction: None or an empty list means all."""
        if value is None or value == []:
            return tuple(range(rank))
        chosen = value if isinstance(value, list) else [value]
        return tuple(sorted(self.axis(a, rank) for a in chosen))

    def require(self, holds: bool, reason: str, advice: str = "") -> None:
        """Refuse the call unless `holds`."""
        if not holds:
            raise UnsupportedError(reason, advice)


_BY_NAME = {name: torch_dtype for torch_dtype, name in TORCH_DTYPES.items()}


def promote(values: Sequence[Any]) -> str:
    """PyTorch's type promotion over nodes and Python numbers (sizes count as integers)."""
    return dtype_of(functools.reduce(torch.promote_types, _categories(values)))


def _categories(values: Sequence[Any]) -> list[Any]:
    """A rank-0 node or a number changes the dtype only if its category (bool, int, float) is higher."""
    shaped = [_BY_NAME[v.dtype] for v in values if isinstance(v, Node) and v.type.rank]
    small = [_small(v) for v in values if not (isinstance(v, Node) and v.type.rank)]
    if not shaped:
        nodes = [_BY_NAME[v.dtype] for v in values if isinstance(v, Node)]
        numbers = [_small(v) for v in values if not isinstance(v, Node)]
        return _lift(nodes, numbers) if nodes else numbers
    return _lift(shaped, small)


def _lift(base: list[Any], others: list[Any]) -> list[Any]:
    top = max(_rank(d) for d in base)
    return base + [d for d in others if _rank(d) > top]


def _small(value: Any) -> Any:
    if isinstance(value, Node):
        return _BY_NAME[value.dtype]
    if isinstance(value, bool):
        return torch.bool
    return torch.float32 if isinstance(value, float) else torch.int64


def _rank(torch_dtype: Any) -> int:
    return 0 if torch_dtype is torch.bool else 2 if torch_dtype.is_floating_point else 1
