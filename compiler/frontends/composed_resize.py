"""Interpolation along one axis."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import dim
from llmc.compiler.frontends.composed import Array, taken
from llmc.compiler.frontends.parts import Maker
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant


def nearest(m: Maker, x: Node, axis: int, places: Array) -> Node:
    """y[..., i, ...] = x[..., places[i], ...]; a whole number of copies of each is an expand."""
    size, out = x.shape[axis], len(places)
    if np.array_equal(places, np.arange(out)) and out == size:
        return x
    if isinstance(size, int) and out % size == 0 and np.array_equal(places, np.arange(out) // (out // size)):
        return repeated(m, x, axis, out // size)
    return taken(m, x, constant(np.asarray(places, np.int64), source=m.source), axis)


def repeated(m: Maker, x: Node, axis: int, times: int) -> Node:
    """Each element along an axis several times."""
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    single = m.reshape(x, (*before, size, 1, *after))
    wide = m.op("expand", single, shape=(*before, size, times, *after))
    return m.reshape(wide, (*before, dim(size * times), *after))
