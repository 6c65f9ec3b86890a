"""Element-wise ops and fused chains of them: one generator.

Axes along which every input moves (or stands still) alike are merged: same-shape inputs make one flat loop.
Extents are run-time parameters: one kernel serves every size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.graph import Node, TensorType
from llmc.compiler.ops import OPS
from llmc.compiler.ops.elementwise import Step, chain_value
from llmc.compiler.ops.rules import same_dim
from llmc.targets.tir.emit import LANES, Emitter, Expr, i64, splat
from llmc.targets.tir.grid import CHUNK, ceil_div, chunk_count, nbytes, offset, strides, vectors, walk
from llmc.targets.tir.scalar_ops import COSTS, OPERATIONS, apply, from_storage, to_storage


@dataclass(frozen=True)
class Recipe:
    """All an element-wise kernel depends on.

    Args:
        body: steps as in `chain`.
        dtypes: of the inputs.
        result: dtype of the output.
        axes: for each merged axis, which inputs have it.
    """

    body: tuple[Step, ...]
    dtypes: tuple[str, ...]
    result: str
    axes: tuple[tuple[bool, ...], ...]


def merge_axes(shape: tuple[Dim, ...], inputs: list[tuple[Dim, ...]]) -> list[tuple[Dim, tuple[bool, ...]]]:
    """(extent, which inputs have the axis) for each run of axes that all inputs treat alike; at least one."""
    merged: list[tuple[Dim, tuple[bool, ...]]] = []
    for position, extent in enumerate(shape):
        if same_dim(extent, 1):
            continue
        back = position - len(shape)
        has = tuple(len(s) >= -back and not same_dim(s[back], 1) for s in inputs)
        if merged and merged[-1][1] == has:
            merged[-1] = (dim(merged[-1][0] * extent), has)
        else:
            merged.append((extent, has))
    return merged or [(1, (True,) * len(inputs))]


def body_of(node: Node) -> tuple[Step, ...]:
    """The steps of an element-wise node as a chain's body."""
    if node.op == "chain":
        body: tuple[Step, ...] = node.attributes["body"]
        return tuple(_known_exponent(node, step) for step in body)
    attributes = tuple(sorted(node.attributes.items()))
    return (_known_exponent(node, (node.op, tuple(range(len(node.inputs))), attributes)),)


def _known_exponent(node: Node, step: Step) -> Step:
    """`pow` by a constant 1, 2, 3 or 4 is a product."""
    op, refs, _ = step
    if op == "pow" and refs[1] >= 0 and node.inputs[refs[1]].op == "constant":
        array = node.inputs[refs[1]].attributes["value"].array
        if array.size == 1 and array.item() in (1, 2, 3, 4):
            return (op, refs, (("exponent", int(array.item())),))
    return step


def _step_cost(step: Step) -> int:
    return 2 if dict(step[2]).get("exponent") else COSTS.get(step[0], 1)


def lower(node: Node) -> Call:
    """The call for one element-wise node."""
    axes = merge_axes(node.shape, [i.shape for i in node.inputs])
    body = body_of(node)
    dtypes = tuple(i.dtype for i in node.inputs)
    recipe = Recipe(body, dtypes, node.dtype, tuple(has for _, has in axes))
    extents = tuple(extent for extent, _ in axes)
    kernel = Kernel("chain", recipe, (*dtypes, node.dtype), len(extents), emitter(recipe))
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


def evaluate(k: Emitter, recipe: Recipe, inputs: list[Expr]) -> Expr:
    """The chain's value on vectors of its inputs."""
    results: list[Expr] = []
    kinds: list[str] = []
    for op, refs, attributes in recipe.body:
        dtypes = tuple(chain_value(r, recipe.dtypes, kinds) for r in refs)
        known = {name: value for name, value in attributes if op != "pow"}
        kinds.append(OPS[op].rule(*(TensorType(d, ()) for d in dtypes), **OPS[op].complete(known)).dtype)
        arguments = [chain_value(r, inputs, results) for r in refs]
        extra = {} if op == "cast" else dict(attributes)
        results.append(apply(k, op, dtypes, kinds[-1], arguments, extra))
    return results[-1]


LOWERINGS: dict[str, Callable[[Node], Call]] = {op: lower for op in (*OPERATIONS, "cast", "chain")}
