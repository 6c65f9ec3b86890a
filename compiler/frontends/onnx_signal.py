"""ONNX's Fourier transforms, windows and mel filters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import dim, floored
from llmc.compiler.frontends.composed_pad import padded
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_choice import Axes, by_values, selected
from llmc.compiler.frontends.onnx_kinds import DTYPES
from llmc.compiler.frontends.onnx_values import known, want_table
from llmc.compiler.frontends.parts import to_end
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

Parts = tuple[Node, "Node | None"]  # real and imaginary; None: there is none


def _parts(call: Call, x: Node) -> Parts:
    """`[..., 1]` or `[..., 2]`."""
    axis = x.type.rank - 1
    call.require(x.shape[axis] in (1, 2), "numbers of neither one nor two parts")
    found = [call.reshape(call.sliced(x, axis, i, i + 1), x.shape[:-1]) for i in range(x.shape[axis])]
    return found[0], found[1] if len(found) > 1 else None


def _joined(call: Call, real: Node, imag: Node) -> Node:
    parts = [call.reshape(p, (*p.shape, 1)) for p in (real, imag)]
    return call.op("concat", *parts, axis=real.type.rank)


def _times(call: Call, x: Node, table: np.ndarray[Any, Any], axis: int) -> Node:
    """The sum over j of x[..., j, ...] * table[k, j]."""
    perm = to_end(x.type.rank, axis)
    weight = constant(np.ascontiguousarray(table, np.float32), source=call.source)
    flat = call.transpose(x, perm)
    rows = flat if x.type.rank > 1 else call.reshape(flat, (1, *flat.shape))
    made = call.op("linear", rows, weight)
    return call.transpose(made if x.type.rank > 1 else call.reshape(made, made.shape[1:]), perm)


def _tables(size: int, outs: int, sign: float, factor: float) -> list[np.ndarray[Any, Any]]:
    """cos and sign * sin of 2 pi j k / size, `[outs, size]`; j k is reduced by the size first, as an integer."""
    want_table(size, outs)
    angles = np.outer(np.arange(outs), np.arange(size)) % size * (2 * math.pi / size)
    return [factor * np.cos(angles), factor * sign * np.sin(angles)]


def _transformed(call: Call, x: Parts, axis: int, tables: list[np.ndarray[Any, Any]]) -> tuple[Node, Node]:
    """(a + bi)(cos + i sin)"""
    real, imag = x
    straight, crossed = (_times(call, real, table, axis) for table in tables)
    if imag is None:
        return straight, crossed
    other, more = (_times(call, imag, table, axis) for table in tables)
    return call.op("sub", straight, more), call.op("add", crossed, other)


def _resized(call: Call, x: Parts, axis: int, length: int) -> Parts:
    """Cut, or with zeros behind it."""

    def one(part: Node) -> Node:
        size = part.shape[axis]
        if size >= length:
            return call.sliced(part, axis, 0, length)
        after = [length - size if a == axis else 0 for a in range(part.type.rank)]
        return padded(call, part, [0] * part.type.rank, after)

    return one(x[0]), None if x[1] is None else one(x[1])


@onnx_op("DFT")
def _dft(call: Call) -> Node:
    """The axis was an attribute before opset 20; one that is given at run time is chosen there."""
    x = call.node(0)
    rank = x.type.rank
    inverse, half = bool(call.attribute("inverse", 0)), bool(call.attribute("onesided", 0))
    call.require(not call.has(1) or known(call.value(1)) is not None, "the length of a Fourier transform")
    if call.opset < 20:
        return _along(call, x, call.attribute("axis", 1) % rank, inverse, half)
    given = known(call.value(2)) if call.has(2) else np.array(-2)
    if given is not None:
        return _along(call, x, int(given.reshape(())) % rank, inverse, half)
    wanted = call.shape_of_result("the axis of a Fourier transform")
    long_enough = [a for a in range(rank - 1) if x.shape[a] != 1 or not (inverse and half)]
    made: dict[Axes, Node] = {(axis,): _along(call, x, axis, inverse, half) for axis in long_enough}
    fitting = [axes for axes, y in made.items() if y.shape == wanted]
    return selected(call, call.reshape(call.node(2), (1,)), fitting, rank, made.__getitem__)


def _along(call: Call, x: Node, axis: int, inverse: bool, half: bool) -> Node:
    """Of a real input `onesided` gives the first half; backwards it takes one."""
    size = x.shape[axis]
    call.require(isinstance(size, int), "a Fourier transform of a dynamic size")
    given = known(call.value(1)) if call.has(1) else None
    length = int(size) if given is None else int(given.item())
    if inverse and half:
        return _inverse_of_half(call, x, axis, 2 * (int(size) - 1) if given is None else length)
    parts = _resized(call, _parts(call, x), axis, length)
    outs = length // 2 + 1 if half else length
    tables = _tables(length, outs, 1.0 if inverse else -1.0, 1 / length if inverse else 1.0)
    return _joined(call, *_transformed(call, parts, axis, tables))


def _inverse_of_half(call: Call, x: Node, axis: int, length: int) -> Node:
    """The real signal whose spectrum is its first half, mirrored."""
    real, imag = _resized(call, _parts(call, x), axis, length // 2 + 1)
    twice = np.full(length // 2 + 1, 2.0)
    twice[0] = 1
    if length % 2 == 0:
        twice[-1] = 1
    cosines, sines = (t * twice / length for t in _inverse_tables(length))
    y = _times(call, real, cosines, axis)
    y = y if imag is None else call.op("sub", y, _times(call, imag, sines, axis))
    return call.reshape(y, (*y.shape, 1))


def _inverse_tables(length: int) -> list[np.ndarray[Any, Any]]:
    want_table(length, length)
    angles = np.outer(np.arange(length), np.arange(length // 2 + 1)) % length * (2 * math.pi / length)
    return [np.cos(angles), np.sin(angles)]


@onnx_op("STFT")
def _stft(call: Call) -> Node:
    """A transform of each frame, times a window."""
    signal, window = call.node(0), call.node(2) if call.has(2) else None
    half = bool(call.attribute("onesided", 1))
    lengths = _frame_lengths(call, window, half)
    made: dict[Axes, Node] = {(n,): _of_frames(call, signal, window, n, half) for n in lengths}
    if len(made) == 1:
        return next(iter(made.values()))
    return by_values(call, call.reshape(call.node(3), (1,)), list(made), made.__getitem__)


def _of_frames(call: Call, signal: Node, window: Node | None, length: int, half: bool) -> Node:
    known_step = known(call.value(1))
    if known_step is None:
        count = call.shape_of_result("the step of frames")[1]
        step = call.cast(call.reshape(call.node(1), ()), "i64")
    else:
        width = int(known_step.reshape(()))
        step, count = (
            call.number(width, "i64"),
            dim(floored((signal.shape[1] - length) / sympy.Integer(width)) + 1),
        )
    starts = call.op("mul", call.reshape(call.op("iota", length=count), (count, 1)), step)
    places = call.op("add", starts, call.op("iota", length=length))
    outs = length // 2 + 1 if half else length
    parts = [
        _frames(call, p, places, window) for p in _parts(call, _with_parts(call, signal)) if p is not None
    ]
    both = (parts[0], parts[1] if len(parts) > 1 else None)
    return _joined(call, *_transformed(call, both, 2, _tables(length, outs, -1.0, 1.0)))


def _with_parts(call: Call, signal: Node) -> Node:
    return signal if signal.type.rank == 3 else call.reshape(signal, (*signal.shape, 1))


def _frame_lengths(call: Call, window: Node | None, half: bool) -> list[int]:
    """How long frames are; where only the result tells, that may be one of two."""
    if window is not None:
        call.inputs.read.add(3)
        call.require(isinstance(window.shape[0], int), "a window of a dynamic size")
        return [int(window.shape[0])]
    if known(call.value(3)) is not None:
        return [int(call.numbers(3, "the length of frames").item())]
    outs = call.shape_of_result("the length of frames")[2]
    return [2 * outs - 2, 2 * outs - 1] if half else [outs]


def _frames(call: Call, part: Node, places: Node, window: Node | None) -> Node:
    """`[batch, frames, length]`"""
    frames = call.transpose(call.op("embedding", call.transpose(part, (1, 0)), places), (2, 0, 1))
    return frames if window is None else call.op("mul", frames, window)


# --- windows


_WINDOWS = {
    "HannWindow": (0.5, -0.5, 0.0),
    "HammingWindow": (25 / 46, -21 / 46, 0.0),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


@onnx_op(*_WINDOWS)
def _window(call: Call) -> Node:
    """a + b cos(2 pi n / size) + c cos(4 pi n / size); of a periodic one the size is one more than what is kept."""
    given = known(call.value(0))
    size = call.number_of_result("the size of a window", 0, 0) if given is None else given.item()
    call.require(isinstance(size, int), "a window of a dynamic size")
    want_table(size)
    kind = call.attribute("output_datatype", 1)
    call.require(DTYPES.get(kind) == "f32", "a window of integers")
    whole = size if call.attribute("periodic", 1) else size - 1
    turns = 2 * math.pi * np.arange(size) / max(whole, 1)
    a, b, c = _WINDOWS[call.type]
    made = a + b * np.cos(turns) + c * np.cos(2 * turns)
    return constant(made.astype(np.float32), source=call.source)


@onnx_op("MelWeightMatrix")
def _mel(call: Call) -> Node:
    """Triangles whose corners lie evenly on the mel scale, as the standard's example computes them."""
    values = [call.numbers(i, "a mel filter").item() for i in range(5)]
    bins, length, rate = (int(v) for v in values[:3])
    want_table(bins, length)
    low, high = (float(v) for v in values[3:])
    kind = call.attribute("output_datatype", 1)
    call.require(DTYPES.get(kind) == "f32", "mel filters of integers")
    edges = [2595 * math.log10(1 + f / 700) for f in (low, high)]
    mels = np.arange(bins + 2) * ((edges[1] - edges[0]) / (bins + 2)) + edges[0]
    hertz = 700 * (10 ** (mels / 2595) - 1)
    places = ((length + 1) * hertz // rate).astype(np.int64)
    made = np.zeros((length // 2 + 1, bins))
    for i in range(bins):
        first, middle, last = places[i : i + 3]
        if middle == first:
            made[middle, i] = 1
        for j in range(first, middle + 1):
            made[j, i] = made[j, i] if middle == first else (j - first) / (middle - first)
        for j in range(middle, last):
            made[j, i] = (last - j) / (last - middle)
    return constant(made.astype(np.float32), source=call.source)
