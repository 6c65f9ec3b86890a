"""Graphs of one product of integers, or of bfloat16, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.bf16 import rounded
from llmc.compiler.ops.rows import line_stride, pack_rows
from llmc.compiler.ops.split import split_weights
from llmc.compiler.ops.storage import pack_indices

Array = np.ndarray[Any, Any]
M = symbol("rows")


def product(
    n: int,
    k: int,
    seed: int,
    epilogue: tuple[str, ...] = (),
    zero: str = "",
    mask: Array | None = None,
) -> tuple[Graph, Node]:
    """qlinear of packed rows `[rows, ...]` with extreme weights among random ones; `zero` is a zero point's dtype.

    Args:
        mask: bool [n, k], False where a weight is 0.
    """
    rng = np.random.default_rng([n, k, seed])
    w = rng.integers(-127, 128, (n, k), np.int8)
    w[:, : min(k, 5)] = rng.choice(np.array([-127, 127], np.int8), (n, min(k, 5)))
    w = w if mask is None else np.where(mask, w, np.int8(0))
    rows = input_("rows", "u8", (M, line_stride(k)))
    zeros = [input_("zero", zero, ())] if zero else []
    extras = []
    for step in epilogue:
        if step == "bias":
            extras.append(constant(rng.normal(size=n).astype(np.float32)))
        elif step == "residual":
            extras.append(input_("residual", "f32", (M, n)))
    scale = constant(rng.uniform(1e-3, 1e-2, n).astype(np.float32))
    inputs = (rows, constant(w), scale, *zeros, *extras)
    node = make("qlinear", inputs, has_zero=bool(zero), epilogue=epilogue)
    inputs = (rows, *zeros, *(e for e in extras if e.op == "input"))
    return Graph(inputs, {"y": node}, {"rows": (0, 1000)}), node


def split_product(n: int, k: int, seed: int, epilogue: tuple[str, ...] = ()) -> tuple[Graph, Node]:
    """split_linear of rows `[rows, k]` of float32."""
    rng = np.random.default_rng([n, k, seed])
    weights = split_weights(rng.normal(size=(n, k)).astype(np.float32))
    return _of_floats("split_linear", "split_rows", k, weights, rng, epilogue)


def int16_product(n: int, k: int, seed: int, epilogue: tuple[str, ...] = ()) -> tuple[Graph, Node]:
    """int16_linear of rows `[rows, k]` of float32, with extreme weights among random ones."""
    rng = np.random.default_rng([n, k, seed])
    w = rng.integers(-128, 128, (n, k)).astype(np.int8)
    w[: n // 3] = rng.choice(np.array([-128, 127], np.int8), (n // 3, 1))
    weights = w, rng.uniform(1e-3, 1e-2, n).astype(np.float32)
    return _of_floats("int16_linear", "int16_rows", k, weights, rng, epilogue)


def _of_floats(
    op: str,
    rows: str,
    k: int,
    weights: tuple[Array, Array],
    rng: np.random.Generator,
    epilogue: tuple[str, ...],
) -> tuple[Graph, Node]:
    x, extras, n = input_("x", "f32", (M, k)), [], len(weights[1])
    for step in epilogue:
        if step == "bias":
            extras.append(constant(rng.normal(size=n).astype(np.float32)))
        elif step == "residual":
            extras.append(input_("residual", "f32", (M, n)))
    node = make(op, (make(rows, (x,)), *map(constant, weights), *extras), epilogue=epilogue)
    inputs = (x, *(e for e in extras if e.op == "input"))
    return Graph(inputs, {"y": node}, {"rows": (0, 1000)}), node


def extras_of(epilogue: tuple[str, ...], n: int, rng: np.random.Generator) -> list[Any]:
    """What the steps of an epilogue read."""
    made = {
        "bias": lambda: constant(rng.normal(size=n).astype(np.float32)),
        "residual": lambda: input_("residual", "f32", (M, n)),
    }
    return [made[step]() for step in epilogue if step in made]


def bf16_product(n: int, k: int, seed: int, epilogue: tuple[str, ...] = ()) -> Graph:
    """bf16_linear of rows `[rows, k]` of float32; some weights are too small to be kept."""
    rng = np.random.default_rng([n, k, seed])
    weights = rng.normal(size=(n, k)) * 10.0 ** rng.integers(-6, 3, (n, 1))
    weights[:, : k // 4 : 2] *= 1e-16
    stored = constant(rounded(weights.astype(np.float32)).view(np.uint8))
    x, extras = input_("x", "f32", (M, k)), extras_of(epilogue, n, rng)
    inputs = (make("bf16_rows", (x,)), stored, *extras)
    node = make("bf16_linear", inputs, columns=k, epilogue=epilogue)
    return Graph((x, *(e for e in extras if e.op == "input")), {"y": node}, {"rows": (0, 1000)})


def blocks_product(
    rows: str,
    n: int,
    k: int,
    bits: int,
    block: int,
    epilogue: tuple[str, ...] = (),
    dtype: Any = np.float32,
    zeros: bool = False,
) -> Graph:
    """int16_blockwise or int8_blockwise of rows `[rows, k]` of float32, with extreme levels among random ones, and
    zero points, if there are to be any.
    """
    rng = np.random.default_rng([n, k, bits, block])
    x, extras = input_("x", "f32", (M, k)), extras_of(epilogue, n, rng)
    levels = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    levels[: n // 3] = rng.choice(np.array([0, (1 << bits) - 1], np.uint8), (n // 3, 1))
    scales = rng.normal(scale=1e-2, size=(n, -(-k // block))).astype(dtype)
    around = rng.integers(0, 1 << bits, scales.shape).astype(np.uint8)
    around[: n // 6] = (1 << bits) - 1 - levels[: n // 6, :1]  # of levels at one end, the other one
    stored = (pack_indices(levels, bits), scales, *([pack_indices(around, bits)] if zeros else []))
    inputs = (make(f"{rows}_rows", (x,), block=block), *map(constant, stored))
    attributes = {"columns": k, "bits": bits, "block": block, "has_zeros": zeros, "epilogue": epilogue}
    node = make(f"{rows}_blockwise", (*inputs, *extras), **attributes)
    return Graph((x, *(e for e in extras if e.op == "input")), {"y": node}, {"rows": (0, 1000)})


def given(graph: Graph, k: int, m: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng([m, seed])
    q = rng.integers(-127, 128, (m, k), np.int8)
    q[: m // 2, : k // 2] = 127
    scale = rng.uniform(1e-3, 1.0, (m, 1)).astype(np.float32)
    values = {"rows": pack_rows(q, scale, line_stride(k))}
    for node in graph.inputs[1:]:
        values["residual"] = rng.normal(size=(m, node.shape[1])).astype(np.float32)
    return values


def extremes(graph: Graph, m: int, seed: int) -> dict[str, Array]:
    """Rows of which some are as large as they can be, all of one sign or of both."""
    rng = np.random.default_rng([m, seed])
    made = {}
    for node in graph.inputs:
        values = rng.normal(size=(m, node.shape[1])) * 10.0 ** rng.integers(-6, 6, (m, 1))
        values[: m // 4] = 3.0
        values[m // 4 : m // 3] = rng.choice([-3.0, 3.0], values[m // 4 : m // 3].shape)
        made[node.attributes["name"]] = values.astype(np.float32)
    return made
