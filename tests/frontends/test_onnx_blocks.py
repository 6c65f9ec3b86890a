"""Ops of ONNX Runtime's own quantisers, against ONNX Runtime: weights by blocks, attention and pools by integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

F, RNG = np.float32, np.random.default_rng(11)
KINDS = {
    np.dtype(F): T.FLOAT,
    np.dtype(np.uint8): T.UINT8,
    np.dtype(np.int32): T.INT32,
    np.dtype(bool): T.BOOL,
}


def agrees(
    folder: Path, op: str, given: dict[str, Any], level: float, kind: int = T.FLOAT, **attributes: Any
) -> Any:
    """The graph of a node, whose answers are ONNX Runtime's within `level`; inputs called `x...` are the graph's."""
    live = {k: v for k, v in given.items() if k.startswith("x") and v is not None}
    names = ["" if v is None else k for k, v in given.items()]
    held = [
        numpy_helper.from_array(np.asarray(v), k) for k, v in given.items() if v is not None and k not in live
    ]
    inputs = [helper.make_tensor_value_info(k, KINDS[v.dtype], v.shape) for k, v in live.items()]
    nodes = [helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)]
    made = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", kind, None)], held)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString())
    graph = load(path).graph
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, live)
    found = run(graph, live)["y"]
    assert found.shape == wanted.shape
    assert np.abs(found.astype(F) - wanted.astype(F)).max() <= level
    return graph


def bytes_of(*shape: int) -> Any:
    return RNG.integers(0, 256, shape, np.uint8)


def scales(*shape: int) -> Any:
    return RNG.uniform(0.01, 0.02, shape).astype(F)


@pytest.mark.parametrize(("columns", "block"), [(64, 16), (64, 32), (80, 32), (24, 32)])
@pytest.mark.parametrize("zeros", ["none", "middle", "packed", "float"])
def test_weights_of_four_bits_by_blocks(tmp_path: Path, columns: int, block: int, zeros: str) -> None:
    """The weight stays packed, wherever its levels lie."""
    rows, blocks = 5, -(-columns // block)
    packed = {
        "none": None,
        "middle": np.full((rows, -(-blocks // 2)), 0x88, np.uint8),
        "packed": bytes_of(rows, -(-blocks // 2)),
        "float": RNG.uniform(0, 15, (rows, blocks)).astype(F),
    }[zeros]
    if zeros == "middle" and blocks % 2:
        packed[:, -1] = 8
    x = RNG.normal(size=(2, 3, columns)).astype(F)
    given = {"x": x, "w": bytes_of(rows, blocks, block // 2), "s": scales(rows, blocks), "z": packed}
    graph = agrees(tmp_path, "MatMulNBits", given, 2e-5, K=columns, N=rows, bits=4, block_size=block)
    assert any(n.op == "blockwise" for n in graph.nodes), "the weight stays packed"


def test_weights_of_eight_bits_by_blocks_and_a_bias(tmp_path: Path) -> None:
    x = RNG.normal(size=(4, 64)).astype(F)
    given = {"x": x, "w": bytes_of(6, 2, 32), "s": scales(6, 2), "z": None, "g": None, "b": scales(6)}
    graph = agrees(tmp_path, "MatMulNBits", given, 2e-4, K=64, N=6, bits=8, block_size=32, accuracy_level=1)
    assert [n.op for n in graph.nodes if n.op in ("blockwise", "linear", "add")] == [
        "blockwise",
        "linear",
        "add",
    ]


def test_an_order_of_groups_is_refused(tmp_path: Path) -> None:
    x = RNG.normal(size=(4, 32)).astype(F)
    given = {"x": x, "w": bytes_of(6, 1, 16), "s": scales(6, 1), "z": None, "g": np.ones(32, np.int32)}
    with pytest.raises(LlmcError, match="MatMulNBits") as info:
        agrees(tmp_path, "MatMulNBits", given, 1, K=32, N=6, bits=4, block_size=32)
    assert "columns that are grouped in another order (g_idx)" in str(info.value.found)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_integers(tmp_path: Path, masked: bool, causal: int) -> None:
    x = bytes_of(2, 5, 8)
    given = {
        "x": x, "w": RNG.integers(-100, 100, (8, 24)).astype(np.int8), "b": scales(24), "sx": F(0.02),
        "sw": F(0.01), "xm": np.array([[1] * 5, [1, 1, 1, 0, 0]], np.int32) if masked else None,
        "zx": np.uint8(120), "zw": np.int8(0),
    }  # fmt: skip
    agrees(tmp_path, "QAttention", given, 1e-5, num_heads=2, unidirectional=causal)


@pytest.mark.parametrize("padding", [0, 1])
def test_averages_of_levels(tmp_path: Path, padding: int) -> None:
    given = {"x": bytes_of(1, 3, 6, 6), "sx": F(0.02), "zx": np.uint8(7), "sy": F(0.019), "zy": np.uint8(20)}
    attributes = {
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
        "count_include_pad": padding,
    }
    agrees(tmp_path, "QLinearAveragePool", given, 1, T.UINT8, **attributes)


def test_choices_of_levels(tmp_path: Path) -> None:
    ends = {"sy": F(0.019), "zy": np.uint8(20)}
    given = {"xc": bytes_of(2, 6) > 99, "x": bytes_of(2, 6), "sx": F(0.02), "zx": np.uint8(7),
             "x2": bytes_of(2, 6), "s2": F(0.01), "z2": np.uint8(77), **ends}  # fmt: skip
    agrees(tmp_path, "QLinearWhere", given, 1, T.UINT8)
