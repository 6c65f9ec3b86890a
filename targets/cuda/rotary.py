"""`rotary` on the GPU: one thread a number of the result; the arithmetic is the CPU kernel's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import flat
from llmc.targets.tir.emit import i64
from llmc.targets.tir.grid import offset, strides
from llmc.targets.tir.rotary import rotary_of, turn
from llmc.targets.tir.sums import negative


def lower(node: Node) -> Call:
    """A thread has a pair of halves, or one number that stays."""
    recipe, extents = rotary_of(node)
    half, size = recipe.width // 2, recipe.size

    def emit(k: GridEmitter) -> None:
        x, cos, sin, y = (k.pointer(name, "f32") for name in ("x", "cos", "sin", "y"))
        sizes = [k.scalar(f"extent{i}") for i in range(len(extents))]
        steps = [strides(k, sizes, [has[i] for has in recipe.axes]) for i in range(2)]
        with k.each(k.let(k.total(sizes) * (size - half))) as item:
            row, at = k.decode(item, [i64(1), i64(size - half)])
            index = k.decode(row, sizes)
            first = k.let(row * size + at)
            with k.when(at >= i64(half)):
                k.store(y, first + half, k.load(x, first + half))
            with k.when(at < i64(half)):
                step, to = (1, 2) if recipe.interleaved else (half, 1)
                begins = (row * size, *(offset(k, index, each) * recipe.width for each in steps))
                places = [k.let(begin + at * to) for begin in begins]
                pairs = [
                    [
                        k.load(buffer, place + beside)
                        for buffer, place in zip((x, cos, sin), places, strict=True)
                    ]
                    for beside in (0, step)
                ]
                (a, *first), (b, *second) = pairs
                k.store(y, places[0], turn(k, a, negative(b), *first))
                k.store(y, places[0] + step, turn(k, b, a, *second))

    threads = product(extents) * (size - half)
    return flat(node, "rotary", (recipe,), emit, extents, threads, product(extents) * 3 * recipe.width)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"rotary": lower}
