"""`rotary`: an item is a row, of which 16 numbers are turned at a time, or 16 of each half."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.tir.emit import LANES, Emitter, Expr
from llmc.targets.tir.grid import columns, nbytes, offset, strides, walk
from llmc.targets.tir.later import tirx
from llmc.targets.tir.rotary import Rotary, rotary_of, turn
from llmc.targets.tir.sums import negative


def lower(node: Node) -> Call:
    """The call for one `rotary`."""
    recipe, extents = rotary_of(node)
    moved = (*node.inputs, node)
    rows = dim(product(extents))
    kernel = Kernel("rotary", recipe, ("f32",) * 4, len(extents), partial(_emit, recipe=recipe))
    vectors = -(-recipe.size // LANES)
    return Call(
        kernel,
        moved,
        extents,
        rows,
        8 * vectors,
        dim(3 * rows * recipe.width),
        nbytes(*moved),
        node.source,
    )


def _emit(symbol: str, cpu: Any, *, recipe: Rotary) -> Any:
    k = Emitter(symbol)
    x, cos, sin, y = (k.pointer(name, "f32") for name in ("x", "cos", "sin", "y"))
    extents = [k.scalar(f"extent{i}") for i in range(len(recipe.axes))]
    dense = strides(k, extents, [True] * len(extents))
    steps = [strides(k, extents, [has[i] for has in recipe.axes]) for i in range(2)]
    with walk(k, extents) as index:
        row = k.let(offset(k, index, dense) * recipe.size)
        at = [k.let(offset(k, index, step) * recipe.width) for step in steps]
        _row(k, recipe, (x, row), (cos, at[0]), (sin, at[1]), (y, row))
    return k.function()


Place = tuple[Any, Expr]  # a buffer, and where in it a row begins


def _row(k: Emitter, recipe: Rotary, x: Place, cos: Place, sin: Place, y: Place) -> None:
    half = recipe.width // 2

    def load(place: Place, at: Expr, mask: Expr | None) -> Expr:
        return k.load(place[0], place[1] + at, LANES, mask)

    def halves(at: Expr, mask: Expr | None) -> None:
        a, b = (load(x, at + first, mask) for first in (0, half))
        for first, value, other in ((0, a, negative(b)), (half, b, a)):
            tables = (load(table, at + first, mask) for table in (cos, sin))
            k.store(y[0], y[1] + (at + first), turn(k, value, other, *tables), mask)

    def pairs(at: Expr, mask: Expr | None) -> None:
        value, *tables = (load(place, at, mask) for place in (x, cos, sin))
        k.store(y[0], y[1] + at, turn(k, value, _neighbours(k, value), *tables), mask)

    def rest(at: Expr, mask: Expr | None) -> None:
        place = at + recipe.width
        k.store(y[0], y[1] + place, load(x, place, mask), mask)

    if recipe.interleaved:
        columns(k, recipe.width, pairs)
    else:
        columns(k, half, halves)
    columns(k, recipe.size - recipe.width, rest)


def _neighbours(k: Emitter, value: Expr) -> Expr:
    """-v1, v0, -v3, v2, ..."""
    lanes = [tirx.IntImm("int32", i ^ 1) for i in range(LANES)]
    signs = tirx.Shuffle(
        [tirx.FloatImm("float32", -1.0 + 2 * (i % 2)) for i in range(LANES)],
        [tirx.IntImm("int32", i) for i in range(LANES)],
    )
    return k.let(k.let(tirx.Shuffle([value], lanes)) * signs)


LOWERINGS: dict[str, Callable[[Node], Call]] = {"rotary": lower}
