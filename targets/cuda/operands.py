"""What the products share: packed weights, places of tiles, rows of the left operand, epilogues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Operand, Packed, Panels
from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.graph import Node, Weight
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import launch
from llmc.targets.cuda.tile import COLUMNS, DEPTH, ROWS
from llmc.targets.tir.emit import Buffer, Expr, div, f32, i64, mod
from llmc.targets.tir.math import ACTIVATIONS


def pack_steps(array: np.ndarray[Any, Any], depth: int, columns: int) -> np.ndarray[Any, Any]:
    """`w[n, k]` -> `[k][n]`, both padded with zeros to multiples of `depth` and `columns`."""
    n, k = array.shape
    return np.pad(array.T, ((0, -k % depth), (0, -n % columns)))


def packed_steps(weight: Weight, depth: int) -> Packed:
    """The weight of a product that stages `depth` steps of k at a time: one panel as wide as the padded columns."""
    n, k = weight.array.shape
    pack = partial(pack_steps, depth=depth, columns=COLUMNS)
    return Packed(weight, f"steps{depth}x{COLUMNS}", pack, Panels(n + -n % COLUMNS, k + -k % depth))


def weight_of(node: Node) -> Weight:
    """The constant weight of a product.

    Raises:
        LlmcError: it is computed at run time.
    """
    w = node.inputs[1]
    if w.op != "constant":
        raise LlmcError(
            f"{node.op}: the weight is computed at run time", hint="use matmul for two computed operands"
        )
    weight: Weight = w.attributes["value"]
    return weight


def product_call(
    node: Node,
    family: str,
    packed: Packed,
    dtypes: Sequence[str],
    emit: Callable[[GridEmitter], None],
    threads: int,
) -> Call:
    """The call of a product with a packed weight: a block of `threads` for each tile of ROWS x COLUMNS results.

    Args:
        dtypes: of the left operand, the weight and what else comes before the epilogue's operands, which are f32.
    """
    x, w, *rest = node.inputs
    n, depth = (int(d) for d in w.shape)
    rows, stored = product(node.shape[:-1]), (*dtypes, *("f32",) * (len(node.inputs) - len(dtypes)))
    blocks = dim(ceil_div(rows, ROWS) * -(-n // COLUMNS))
    key, flops = (n, depth, node.attributes["epilogue"]), 2 * rows * n * depth
    operands: tuple[Operand, ...] = (x, packed, *rest)
    return launch(
        node,
        family,
        key,
        emit,
        (rows,),
        blocks,
        threads=threads,
        operands=operands,
        dtypes=stored,
        flops=flops,
    )


def epilogue_inputs(epilogue: Sequence[str]) -> list[str]:
    """The steps of an epilogue that read an input."""
    return [step for step in epilogue if step in ("bias", "residual")]


def apply_epilogue(
    k: GridEmitter, epilogue: Sequence[str], extras: Sequence[Buffer], value: Expr, column: Expr, at: Expr
) -> Expr:
    """The result at element `at` of the output, in column `column`, from the product `value`."""
    pending = iter(extras)
    for step in epilogue:
        if step == "bias":
            value = k.let(value + k.load(next(pending), column))
        elif step == "residual":
            value = k.let(value + k.load(next(pending), at))
        else:
            value = ACTIVATIONS[step](k, value)
    return value


def tile_place(
    k: GridEmitter, across: Expr | int, rows: int = ROWS, columns: int = COLUMNS
) -> tuple[Expr, Expr]:
    """First row and column of this block's tile, with `across` tiles side by side."""
    return k.let(div(k.block, across) * rows), k.let(mod(k.block, across) * columns)


def row_quad(
    k: GridEmitter, x: Buffer, row: Expr, quad: Expr, depth: int, stage: int = DEPTH
) -> list[Expr] | Expr:
    """Elements 4 quad ... of a row of `depth` floats, read in stages of `stage`: zeros beyond its end."""
    if depth % stage == 0:
        return k.load(x, (row * (depth // 4) + quad) * 4, 4)
    held = k.registers(4)
    for i in range(4):
        at = k.let(quad * 4 + i)
        k.set(held, i, f32(0.0))
        with k.when(at < i64(depth)):
            k.set(held, i, k.load(x, row * depth + at))
    return [k.get(held, i) for i in range(4)]
