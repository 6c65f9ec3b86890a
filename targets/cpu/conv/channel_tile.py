"""What every convolution does with its register tile of output channels: start it, finish it, store it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, fma, splat
from llmc.targets.tir.math import ACTIVATIONS

CHANNELS = 6  # of a register tile


def multiply(e: Emitter, acc: Buffer, w: Buffer, first: Expr, tile: int, values: list[Expr]) -> None:
    """acc[i, v] += w[first + i] * values[v]"""
    vectors = len(values)
    for i in range(tile):
        factor = e.let(splat(e.load(w, first + i)))
        for v in range(vectors):
            e.set(acc, i * vectors + v, fma(factor, values[v], e.get(acc, i * vectors + v)))


def finish(
    e: Emitter,
    acc: Buffer,
    tile: int,
    vectors: int,
    extras: Mapping[str, list[Buffer]],
    at: Callable[[Expr], tuple[Expr, Expr, Expr]],
    target: Buffer,
    mask: Expr | None,
    epilogue: tuple[str, ...],
) -> None:
    """Epilogue and store of a tile; `at(i)` is (whether channel i exists, its number, index of its first pixel)."""
    held = e.registers(tile * vectors)
    for i in range(tile * vectors):
        e.set(held, i, e.get(acc, i))
    with e.loop(0, tile, "channel") as i:
        exists, channel, line = at(i)
        with e.when(exists):
            for v in range(vectors):
                value = e.let(e.get(held, i * vectors + v))
                pending = {name: iter(buffers) for name, buffers in extras.items()}
                for step in epilogue:
                    if step == "bias":
                        value = e.let(value + splat(e.load(next(pending["bias"]), channel)))
                    elif step == "residual":
                        value = e.let(
                            value + e.load(next(pending["residual"]), line + v * LANES, LANES, mask)
                        )
                    else:
                        value = ACTIVATIONS[step](e, value)
                e.store(target, line + v * LANES, value, mask)


def extras_of(e: Emitter, epilogue: tuple[str, ...]) -> Mapping[str, list[Buffer]]:
    """Pointers to the epilogue's operands, by step and in order."""
    found: dict[str, list[Buffer]] = {"bias": [], "residual": []}
    for step in epilogue:
        if step in found:
            found[step].append(e.pointer(step, "f32"))
    return found
