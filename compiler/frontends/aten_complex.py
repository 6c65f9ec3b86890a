"""Complex numbers are two nodes, their real and imaginary parts; Fourier transforms are products with both.

A program's complex value is a `Complex` among the reader's values. What only moves elements is done to each part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.aten import Call, Converter, aten
from llmc.compiler.frontends.foreign import Foreign, is_foreign
from llmc.compiler.frontends.parts import sliced, to_end, transposed
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node, Source
from llmc.compiler.ops import constant

# ops that move elements, which are done to each part
_MOVES = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"),
        *("reshape_as", "transpose", "swapaxes", "t", "permute", "expand", "expand_as", "repeat", "slice"),
        *(
            "narrow",
            "select",
            "split",
            "split_with_sizes",
            "chunk",
            "unbind",
            "cat",
            "stack",
            "index",
            "roll",
        ),
        *("index_select", "alias", "clone", "contiguous", "detach", "detach_", "lift_fresh", "movedim"),
        *("lift_fresh_copy", "broadcast_to", "concat", "tile", "flip", "repeat_interleave"),
    }
)


@dataclass(frozen=True)
class Complex:
    """real + i imag, two nodes of one shape."""

    real: Node
    imag: Node


def weight_of(
    tensor: Any, name: str, source: Source, array: Callable[[Any], Any]
) -> Node | Complex | Foreign:
    """A tensor as a constant, a complex one as two; one of a dtype that the IR has not as it is.

    `array` gives the values of a tensor; one without memory holds zeros.
    """
    if is_foreign(tensor):
        return Foreign(torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor)
    if not tensor.is_complex():
        return constant(array(tensor), name, source)
    parts = [constant(array(p.contiguous()), name, source) for p in (tensor.real, tensor.imag)]
    return Complex(*parts)


def by_parts(call: Call, convert: Converter) -> Any:
    """What `convert` makes of a call, or, where it reads complex values, what is made of their parts."""
    if not any(isinstance(v, Complex) for v in _flat(call.arguments)):
        return convert(call)
    name = str(call.target).split(".")[1].rstrip("_")
    if name in _ARITHMETIC:
        return _ARITHMETIC[name](call)
    if name not in _MOVES and not str(call.target).split(".")[1].startswith(("view_as", "fft_")):
        raise UnsupportedError("complex numbers", "compute with their real and imaginary parts")
    if name in _MOVES:
        real, imag = (cast("Any", convert(_part(call, which))) for which in ("real", "imag"))
        if isinstance(real, tuple) and isinstance(imag, tuple):
            return tuple(map(Complex, real, imag))
        return Complex(real, imag)
    return convert(call)


def _flat(arguments: Mapping[str, Any]) -> list[Any]:
    return [v for given in arguments.values() for v in (given if isinstance(given, list) else [given])]


def _part(call: Call, which: str) -> Call:
    """The call on one part of its complex arguments."""

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return [of(v) for v in value]
        return getattr(value, which) if isinstance(value, Complex) else value

    arguments = {name: of(value) for name, value in call.arguments.items()}
    return Call(call.target, arguments, call.meta, call.source, call.symbols)


def _complex(call: Call, value: Any) -> Complex:
    """A real value has no imaginary part."""
    if isinstance(value, Complex):
        return value
    return Complex(call.scalar(value, "f32"), call.scalar(0.0, "f32"))


# --- arithmetic


def _product(call: Call) -> Complex:
    """(a + bi)(c + di) = (ac - bd) + (ad + bc)i; one that is real scales both parts."""
    a, b = call["self"], call["other"]
    if not isinstance(a, Complex):
        a, b = b, a
    if not isinstance(b, Complex):
        factor = call.scalar(b, "f32")
        return Complex(call.op("mul", a.real, factor), call.op("mul", a.imag, factor))
    straight, crossed = call.op("mul", a.real, b.real), call.op("mul", a.imag, b.imag)
    one, other = call.op("mul", a.real, b.imag), call.op("mul", a.imag, b.real)
    return Complex(call.op("sub", straight, crossed), call.op("add", one, other))


def _sum(op: str) -> Callable[[Call], Complex]:
    def convert(call: Call) -> Complex:
        a, b = (_complex(call, call[name]) for name in ("self", "other"))
        call.require(call.get("alpha", 1) == 1, "a sum of complex numbers with a factor")
        return Complex(call.op(op, a.real, b.real), call.op(op, a.imag, b.imag))

    return convert


def _conjugate(call: Call) -> Complex:
    x = call["self"]
    return Complex(x.real, call.op("neg", x.imag))


def _magnitude(call: Call) -> Node:
    x = call["self"]
    squares = [call.op("mul", part, part) for part in (x.real, x.imag)]
    return call.op("sqrt", call.op("add", *squares))


_ARITHMETIC: Mapping[str, Callable[[Call], Any]] = MappingProxyType(
    {
        "mul": _product,
        "multiply": _product,
        "add": _sum("add"),
        "sub": _sum("sub"),
        "neg": lambda call: Complex(*(call.op("neg", p) for p in (call["self"].real, call["self"].imag))),
        "real": lambda call: call["self"].real,
        "imag": lambda call: call["self"].imag,
        "abs": _magnitude,
        "conj": _conjugate,
        "_conj": _conjugate,
        "conj_physical": _conjugate,
        "_conj_physical": _conjugate,
        "resolve_conj": lambda call: call["self"],
        "to": lambda call: call["self"],
        "_to_copy": lambda call: call["self"],
        "view_as_real": lambda call: _joined(call, call["self"]),
    }
)


@aten("real.default", "conj.default", "_conj.default", "resolve_conj.default")
def _same(call: Call) -> Any:
    """Of a real tensor."""
    return call["self"]


@aten("imag.default", "view_as_real.default")
def _of_complex(call: Call) -> Node:
    raise UnsupportedError("the imaginary part of a real tensor")


def _joined(call: Call, x: Complex) -> Node:
    """`[...]` -> `[..., 2]`"""
    parts = [call.reshape(p, (*p.shape, 1)) for p in (x.real, x.imag)]
    return call.op("concat", *parts, axis=len(parts[0].shape) - 1)


@aten("view_as_complex.default")
def _view_as_complex(call: Call) -> Any:
    """`[..., 2]` -> `[...]`"""
    x = call["self"]
    axis = x.type.rank - 1
    return Complex(*(call.reshape(sliced(call, x, axis, i, 1), x.shape[:-1]) for i in (0, 1)))


@aten("polar.default", "complex.default")
def _polar(call: Call) -> Any:
    """By length and angle, or by parts."""
    if "complex" in str(call.target):
        return Complex(call["real"], call["imag"])
    length, angle = call["abs"], call["angle"]
    return Complex(*(call.op("mul", length, call.op(part, angle)) for part in ("cos", "sin")))


# --- Fourier transforms


@aten(*(f"fft_{kind}.default" for kind in ("fft", "ifft", "rfft")))
def _fft(call: Call) -> Any:
    return _transformed(call, [call.get("dim", -1)], call.get("n") is not None)


@aten(*(f"fft_{kind}.default" for kind in ("fftn", "ifftn", "fft2", "ifft2")))
def _fftn(call: Call) -> Any:
    given = call.get("dim", [-2, -1] if "2" in str(call.target) else None)
    rank = len(call.shape)
    return _transformed(call, list(range(rank)) if given is None else given, call.get("s") is not None)


def _transformed(call: Call, axes: list[int], resized: bool) -> Complex:
    """One axis after the other; a real input's last axis first, of which `rfft` keeps the first half."""
    call.require(not resized, "a Fourier transform that cuts or pads", "slice or pad first")
    name = str(call.target).split(".")[1]
    x = call["self"]
    rank = (x.real if isinstance(x, Complex) else x).type.rank
    sign = 1.0 if "_i" in name else -1.0
    for axis in (call.axis(a, rank) for a in reversed(axes)):
        x = _along(call, x, axis, sign, call.get("norm"))
    if name == "fft_rfft":
        axis = call.axis(axes[0], rank)
        x = Complex(*(sliced(call, p, axis, 0, call.shape[axis]) for p in (x.real, x.imag)))
    return x  # type: ignore[no-any-return]


def _along(call: Call, x: Any, axis: int, sign: float, norm: str | None) -> Complex:
    """X[k] = scale * sum of x[j] (cos + i sign sin)(2 pi j k / n), by products with two tables."""
    parts = (x.real, x.imag) if isinstance(x, Complex) else (call.cast(x, "f32"),)
    size = parts[0].shape[axis]
    cosines, sines = _tables(call, size, sign)
    products = [[_times(call, part, table, axis) for table in (cosines, sines)] for part in parts]
    real, imag = products[0]
    if len(products) > 1:
        real = call.op("sub", real, products[1][1])
        imag = call.op("add", imag, products[1][0])
    factor = _scale(call, size, sign, norm)
    return (
        Complex(real, imag) if factor is None else Complex(*(call.op("mul", p, factor) for p in (real, imag)))
    )


def _scale(call: Call, size: Dim, sign: float, norm: str | None) -> Node | None:
    """1 / n of the transform that the norm puts it on, 1 / sqrt(n) of both for "ortho"."""
    count = call.scalar(size, "f32")
    if norm == "ortho":
        return call.op("rsqrt", count)
    scaled = sign < 0 if norm == "forward" else sign > 0
    return call.op("div", call.scalar(1.0, "f32"), count) if scaled else None


def _tables(call: Call, size: Dim, sign: float) -> tuple[Node, Node]:
    """cos and sign * sin of 2 pi j k / n, `[n, n]`; j k is reduced by n first, as an integer."""
    if isinstance(size, int):
        steps = np.arange(size, dtype=np.int64)
        angles = np.outer(steps, steps) % size * (2 * math.pi / size)
        cosines, sines = np.cos(angles).astype(np.float32), (sign * np.sin(angles)).astype(np.float32)
        return constant(cosines, source=call.source), constant(sines, source=call.source)
    step = call.op("iota", length=size)
    turns = call.op("mul", call.reshape(step, (size, 1)), step)
    turns = call.cast(call.op("mod", turns, call.scalar(size, "i64")), "f32")
    turns = call.op("mul", turns, call.scalar(2 * math.pi, "f32"))
    angle = call.op("div", turns, call.scalar(size, "f32"))
    return call.op("cos", angle), call.op("mul", call.op("sin", angle), call.scalar(sign, "f32"))


def _times(call: Call, x: Node, table: Node, axis: int) -> Node:
    """x times a symmetric table along an axis."""
    rank = x.type.rank
    if rank > 1 and axis == rank - 2:
        return call.op("matmul", table, x)
    perm = to_end(rank, axis)
    last = transposed(call, x, perm)
    if table.op == "constant":
        return transposed(call, call.op("linear", last, table), perm)
    rows = last if rank > 1 else call.reshape(last, (1, *last.shape))
    return transposed(call, call.reshape(call.op("matmul", rows, table), last.shape), perm)
