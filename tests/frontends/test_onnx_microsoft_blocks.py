"""`MatMulNBits` and `GatherBlockQuantized` against their formulas; what stays stored as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

RNG = np.random.default_rng(11)


def packed(levels: Any, bits: int) -> Any:
    """`[..., n]` -> bytes; of 4 bits the even one in the low half."""
    if bits == 8:
        return levels.astype(np.uint8)
    padded = np.pad(levels, [(0, 0)] * (levels.ndim - 1) + [(0, levels.shape[-1] % 2)])
    return (padded[..., ::2] | padded[..., 1::2] << 4).astype(np.uint8)


def graph_of(
    folder: Path, op: str, inputs: list[str], weights: list[Any], live: Any, **attributes: Any
) -> Graph:
    node = helper.make_node(op, inputs, ["y"], domain="com.microsoft", **attributes)
    result = helper.make_tensor_value_info("y", T.FLOAT, None)
    made = helper.make_graph([node], "g", [live], [result], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    (folder / "m.onnx").write_bytes(helper.make_model(made, opset_imports=opsets).SerializeToString())
    return load(folder / "m.onnx").graph


# --- products


def product(
    folder: Path, shape: tuple[int, int, int, int], zeros: str, **more: Any
) -> tuple[Graph, Any, Any]:
    """The graph, its weight as floats, a bias."""
    n, k, bits, block = shape
    blocks, half = -(-k // block), 1 << (bits - 1)
    levels = RNG.integers(0, 2 * half, (n, blocks, block))
    scales, bias = (
        RNG.uniform(0.01, 0.1, (n, blocks)).astype(np.float32),
        RNG.normal(size=n).astype(np.float32),
    )
    given = {"w": packed(levels, bits), "s": scales.reshape(-1), "b": bias, **more.pop("weights", {})}
    middle: Any = np.full((n, blocks), half)
    if zeros == "levels":
        middle = RNG.integers(0, 2 * half, (n, blocks))
        given["z"] = packed(middle, bits).reshape(-1)
    elif zeros == "floats":
        middle = RNG.uniform(0, 2 * half, (n, blocks)).astype(np.float32)
        given["z"] = middle.reshape(-1)
    names = ["x", "w", "s", "z" if zeros else "", "g" if "g" in given else "", "b"]
    live = helper.make_tensor_value_info("x", T.FLOAT, ["batch", 3, k])
    weights = [numpy_helper.from_array(v, name) for name, v in given.items()]
    options = {"N": n, "K": k, "bits": bits, "block_size": block, **more}
    graph = graph_of(folder, "MatMulNBits", names, weights, live, **options)
    floats = (levels - middle[..., None]) * scales[..., None].astype(float)
    return graph, floats.reshape(n, -1)[:, :k], bias


SHAPES = [(80, 1024, 4, 32), (16, 64, 4, 16), (7, 100, 4, 32), (6, 33, 4, 64), (10, 96, 8, 32)]


@pytest.mark.parametrize("zeros", ["", "levels", "floats"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int, int, int], zeros: str, tmp_path: Path) -> None:
    graph, weight, bias = product(tmp_path, shape, zeros, accuracy_level=4)
    x = RNG.normal(size=(2, 3, shape[1])).astype(np.float32)
    wanted = x @ weight.T + bias
    found = run(graph, {"x": x})["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())
    products = [n for n in graph.nodes if n.op == "linear"]
    assert len(products) == (2 if zeros == "floats" else 1)  # zero points that are levels are stored as such


def test_a_large_weight_stays_as_it_is_stored(tmp_path: Path) -> None:
    graph, _, _ = product(tmp_path, SHAPES[0], "")
    (weight,) = (n for n in graph.nodes if n.op == "blockwise")
    assert (weight.attributes["bits"], weight.attributes["block"]) == (4, 32)
    assert weight.inputs[0].attributes["value"].array.nbytes == 80 * 1024 // 2
    assert [n.op for n in graph.nodes if n.op in ("linear", "sum")] == ["linear"]


def test_scales_of_halves_are_kept_in_halves(tmp_path: Path) -> None:
    halves = RNG.uniform(0.01, 0.1, 80 * 32).astype(np.float16).astype(np.float32)
    graph, _, _ = product(tmp_path, SHAPES[0], "", weights={"s": halves})
    (weight,) = (n for n in graph.nodes if n.op == "blockwise")
    assert weight.inputs[1].dtype == "f16"


@pytest.mark.parametrize("weights", [{"s": np.ones(3, np.float32)}, {"w": np.zeros((16, 4, 7), np.uint8)}])
def test_parts_that_do_not_fit(weights: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="that are not"):
        product(tmp_path, SHAPES[1], "", weights=weights)


def test_groups_in_order_and_in_another(tmp_path: Path) -> None:
    order = np.arange(64, dtype=np.int32) // 16
    product(tmp_path, SHAPES[1], "", weights={"g": order})
    with pytest.raises(LlmcError, match="another order"):
        product(tmp_path, SHAPES[1], "", weights={"g": order[::-1].copy()})


# --- look-ups


@pytest.mark.parametrize("kind", ["bytes", "uint4", "int4"])
@pytest.mark.parametrize("zeros", [False, True])
def test_rows(kind: str, zeros: bool, tmp_path: Path) -> None:
    """Bytes mean 0 by half their range, 4-bit numbers by 0, unless zero points are given."""
    rows, columns, block = 30, 96, 32
    low = -8 if kind == "int4" else 0
    numbers, points = (RNG.integers(low, low + 16, (rows, c)) for c in (columns, columns // block))
    scales = RNG.uniform(0.01, 0.1, (rows, columns // block)).astype(np.float32)
    given = {"w": numbers} | ({"z": points} if zeros else {})
    weights = [_tensor(name, array, kind) for name, array in given.items()]
    weights.append(numpy_helper.from_array(scales, "s"))
    live = helper.make_tensor_value_info("i", T.INT64, ["batch", "count"])
    options = {"gather_axis": 0, "quantize_axis": 1, "block_size": block} | (
        {"bits": 4} if kind == "bytes" else {}
    )
    graph = graph_of(
        tmp_path, "GatherBlockQuantized", ["w", "i", "s", *(["z"] if zeros else [])], weights, live, **options
    )
    middle = points if zeros else np.full_like(points, 8 if kind == "bytes" else 0)
    table = (numbers.reshape(rows, -1, block) - middle[..., None]) * scales[..., None].astype(float)
    index = RNG.integers(-rows, rows, (2, 5))  # below zero they count from the end
    wanted = table.reshape(rows, columns)[index]
    np.testing.assert_allclose(run(graph, {"i": index})["y"], wanted, rtol=0, atol=2e-6)


def _tensor(name: str, array: Any, kind: str) -> Any:
    if kind == "bytes":
        return numpy_helper.from_array(packed(array, 4), name)
    flat = packed(array.reshape(-1) & 15, 4)
    return helper.make_tensor(
        name, T.UINT4 if kind == "uint4" else T.INT4, array.shape, flat.tobytes(), raw=True
    )


def test_columns_are_no_rows(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.zeros((4, 16), np.uint8), "w"),
        numpy_helper.from_array(np.ones((4, 1), np.float32), "s"),
    ]
    live = helper.make_tensor_value_info("i", T.INT64, [2])
    with pytest.raises(LlmcError, match="no look-up of rows"):
        graph_of(
            tmp_path,
            "GatherBlockQuantized",
            ["w", "i", "s"],
            weights,
            live,
            gather_axis=1,
            bits=4,
            block_size=32,
        )
