"""Element-wise ops and chains on the GPU: one thread an element; the arithmetic is the CPU kernels'."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import flat
from llmc.targets.tir.chain import OPS_OF_CHAINS, Recipe, body_of, evaluate, merge_axes
from llmc.targets.tir.grid import offset, strides
from llmc.targets.tir.scalar_ops import from_storage, to_storage


def lower(node: Node) -> Call:
    """The call for one element-wise node."""
    axes = merge_axes(node.shape, [i.shape for i in node.inputs])
    dtypes = tuple(i.dtype for i in node.inputs)
    recipe = Recipe(body_of(node), dtypes, node.dtype, tuple(has for _, has in axes))

    def emit(k: GridEmitter) -> None:
        sources = [k.pointer(f"x{i}", d) for i, d in enumerate(dtypes)]
        target = k.pointer("y", node.dtype)
        extents = [k.scalar(f"extent{i}") for i in range(len(axes))]
        with k.each(k.total(extents)) as item:
            index = k.decode(item, extents)
            values = []
            for i, (source, dtype) in enumerate(zip(sources, dtypes, strict=True)):
                steps = strides(k, extents, [has[i] for _, has in axes])
                values.append(from_storage(k, dtype, k.load(source, offset(k, index, steps))))
            k.store(target, item, to_storage(node.dtype, evaluate(k, recipe, values)))

    size = product(node.shape)
    return flat(node, "chain", (recipe,), emit, [e for e, _ in axes], size, size * len(recipe.body))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = dict.fromkeys(OPS_OF_CHAINS, lower)
