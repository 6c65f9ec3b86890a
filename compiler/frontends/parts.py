"""Parts of tensors and orders of axes, as converters of every frontend need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llmc.compiler.dims import Dim, dim
from llmc.compiler.graph import Node, Source


class Maker(Protocol):
    """The call that is converted: `aten.Call` or `onnx_call.Call`."""

    @property
    def source(self) -> Source: ...

    def op(self, name: str, *inputs: Node, **attributes: Any) -> Node: ...

    def reshape(self, x: Node, shape: Sequence[Dim]) -> Node: ...

    def require(self, holds: bool, reason: str, advice: str = "") -> None: ...


def transposed(call: Maker, x: Node, perm: Sequence[int]) -> Node:
    """x -> transpose(x), or x itself if nothing moves."""
    perm = tuple(perm)
    return x if perm == tuple(range(len(perm))) else call.op("transpose", x, perm=perm)


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes `perm`."""
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def to_end(rank: int, axis: int) -> tuple[int, ...]:
    """The order in which `axis` changes places with the last axis; it undoes itself."""
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    return tuple(perm)


def expanded(call: Maker, x: Node, shape: Sequence[Dim]) -> Node:
    """x -> expand(x), or x itself if it has the shape."""
    return x if x.shape == tuple(shape) else call.op("expand", x, shape=tuple(shape))


def from_start(index: Any, size: Any) -> Dim:
    """A possibly negative index counted from the start."""
    below = (
        index < 0 if isinstance(index, int) else getattr(index, "is_nonpositive", False)
    )  # -seq, seq being 1 or more
    return dim(index + size) if below else dim(index)


def sliced(call: Maker, x: Node, axis: int, start: Any, length: Any, step: int = 1) -> Node:
    """`length` elements from `start` on; all of them is x itself."""
    if (start, length, step) == (0, x.shape[axis], 1):
        return x
    stop = start if length == 0 else dim(start + (length - 1) * step + 1)
    return call.op("slice", x, axis=axis, start=start, stop=stop, step=step)


def replaced(call: Maker, x: Node, part: Node, axis: int, start: Dim, step: int = 1) -> Node:
    """x with `part` in the place of `sliced(x, axis, start, length of part, step)`."""
    length = part.shape[axis]
    if length == 0:
        return x
    if step > 1:
        places = call.op("iota", length=length, start=start, step=step)
        return call.op("scatter", x, places, part, axis=axis)
    stop = dim(start + length)
    rest = dim(x.shape[axis] - stop)
    before = [] if start == 0 else [sliced(call, x, axis, 0, start)]
    after = [] if rest == 0 else [sliced(call, x, axis, stop, rest)]
    parts = [*before, part, *after]
    return part if len(parts) == 1 else call.op("concat", *parts, axis=axis)


def tiled(call: Maker, x: Node, times: Sequence[Dim]) -> Node:
    """Each axis n becomes [1, n], is expanded to [times, n] and merged again."""
    shape = (1,) * (len(times) - x.type.rank) + x.shape
    split = tuple(d for n in shape for d in (1, n))
    many = tuple(d for t, n in zip(times, shape, strict=True) for d in (t, n))
    whole = tuple(dim(t * n) for t, n in zip(times, shape, strict=True))
    return call.reshape(call.op("expand", call.reshape(x, split), shape=many), whole)
