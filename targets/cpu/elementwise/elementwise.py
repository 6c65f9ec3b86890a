"""Element-wise ops and fused chains of them: one generator.

Axes along which every input moves (or stands still) alike are merged: same-shape inputs make one flat loop.
Extents are run-time parameters: one kernel serves every size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops import OPS
from llmc.compiler.ops.elementwise import Step
from llmc.targets.tir.chain import (
    OPS_OF_CHAINS,
    Recipe,
    body_of,
    evaluate,
    family_of,
    merge_axes,
    want_computable,
)
from llmc.targets.tir.emit import LANES, Emitter, Expr, i64, splat
from llmc.targets.tir.grid import CHUNK, ceil_div, chunk_count, nbytes, offset, strides, vectors, walk
from llmc.targets.tir.later import tirx
from llmc.targets.tir.scalar_ops import from_storage, to_storage


def _step_cost(step: Step) -> int:
    return 2 if dict(step[2]).get("exponent") else OPS[step[0]].cost


def lower(node: Node) -> Call:
    """The call for one element-wise node."""
    axes = merge_axes(node.shape, [i.shape for i in node.inputs])
    body = body_of(node)
    want_computable("cpu", body)
    dtypes = tuple(i.dtype for i in node.inputs)
    recipe = Recipe(body, dtypes, node.dtype, tuple(has for _, has in axes))
    extents = tuple(extent for extent, _ in axes)
    kernel = Kernel(family_of(body), recipe, (*dtypes, node.dtype), len(extents), emitter(recipe))
    inner = extents[-1]
    vector_count = ceil_div(inner if isinstance(inner, int) and inner < CHUNK else CHUNK, LANES)
    work = sum(map(_step_cost, body))
    moved = (*node.inputs, node)
    return Call(
        kernel,
        moved,
        extents,
        dim(product(extents[:-1]) * ceil_div(inner, CHUNK)),
        vector_count * (work + len(moved)),
        dim(product(node.shape) * work),
        nbytes(*moved),
        node.source,
    )


def emitter(recipe: Recipe) -> Callable[[str, Any], Any]:
    """(symbol, cpu) -> PrimFunc of the recipe; items are chunks of the last merged axis."""

    def emit(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        sources = [k.pointer(f"x{i}", d) for i, d in enumerate(recipe.dtypes)]
        target = k.pointer("y", recipe.result)
        extents = [k.scalar(f"extent{i}") for i in range(len(recipe.axes))]
        steps = [strides(k, extents, [has[i] for has in recipe.axes]) for i in range(len(sources))]
        out = strides(k, extents, [True] * len(extents))
        with walk(k, [*extents[:-1], chunk_count(k, extents[-1])]) as index:
            start = k.let(index[-1] * i64(CHUNK))
            index = [*index[:-1], start]
            bases = [offset(k, index, s) for s in steps]
            _chunk(k, recipe, sources, bases, target, offset(k, index, out), extents[-1] - start)
        return k.function()

    return emit


def _chunk(
    k: Emitter, recipe: Recipe, sources: list[Any], bases: list[Expr], target: Any, base: Expr, left: Expr
) -> None:
    """min(left, CHUNK) elements from the base offsets."""
    fixed = {i: splat(k.load(source, bases[i])) for i, source in enumerate(sources) if not recipe.axes[-1][i]}

    def body(position: Expr, mask: Expr | None) -> None:
        inputs = []
        for i, source in enumerate(sources):
            value = fixed[i] if i in fixed else k.load(source, bases[i] + position, LANES, mask)
            inputs.append(from_storage(k, recipe.dtypes[i], value))
        k.store(target, base + position, to_storage(recipe.result, evaluate(k, recipe, inputs)), mask)

    vectors(k, k.let(tirx.min(left, i64(CHUNK))), body)


LOWERINGS: dict[str, Callable[[Node], Call]] = dict.fromkeys(OPS_OF_CHAINS, lower)
