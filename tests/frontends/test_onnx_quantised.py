"""Quantised ONNX files on integer kernels: what is found, against onnx's reference, within one level."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.pipeline import Pipeline, Report
from llmc.passes import LEVEL_PARTS, PASSES
from llmc.passes.layout.channels_last import channels_last_steps
from llmc.quantisation import own_steps

F, RNG = np.float32, np.random.default_rng(3)
W = RNG.integers(-127, 128, (20, 24), np.int8)
KERNEL = RNG.integers(-127, 128, (20, 3, 3, 3), np.int8)
BY_OUTPUT = RNG.uniform(0.005, 0.02, 20).astype(F)
IMAGE = ["n", 3, 7, 6]


def written(
    folder: Path, nodes: list[Any], shape: list[Any], weights: dict[str, Any], kind: int = T.FLOAT
) -> Path:
    """A file of nodes from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def optimised(graph: Graph, integers: bool = True) -> tuple[Graph, Report]:
    """As a compile for CPUs has it, and for others: the graph, and what the last passes tell."""
    first, own = own_steps(graph, integers)
    steps = Pipeline.parse(",".join(LEVEL_PARTS[3].values()), PASSES)
    graph, report = Pipeline((*first.steps, *steps.steps)).run(graph)
    if integers:
        graph, _ = channels_last_steps(graph).run(graph)
        graph, report = own.run(graph)
    return graph, report


def checked(
    path: Path, shape: tuple[int, ...], level: float, expected: Any = None
) -> tuple[Counter[str], str]:
    """Every form of the graph gives the answers of onnx's reference within `level`; the ops, and what is told."""
    x = (RNG.normal(size=shape) * 2).astype(F)
    wanted = ReferenceEvaluator(path.read_bytes()).run(None, {"x": x})[0] if expected is None else expected(x)
    graph = load(path).graph
    after, report = optimised(graph)
    for form in (graph, after, optimised(graph, False)[0]):
        found = run(form, {"x": x})["y"]
        assert found.shape == wanted.shape
        assert np.abs(found.astype(F) - wanted.astype(F)).max() <= level * 1.001
    told = "; ".join(str(e) for r in report.runs for e in r.effects if e.what == "products of levels")
    return Counter(n.op for n in after.nodes), told


def quantise(name: str, to: str, scale: str, zero: str) -> list[Any]:
    """QuantizeLinear and DequantizeLinear."""
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{to}q"]),
        helper.make_node("DequantizeLinear", [f"{to}q", scale, zero], [to]),
    ]


ACTIVATIONS = {"u8": np.uint8(121), "i8": np.int8(-7), "symmetric": np.int8(0)}


@pytest.mark.parametrize("zero", ACTIVATIONS.values(), ids=list(ACTIVATIONS))
@pytest.mark.parametrize("by_column", [False, True])
def test_product_between_levels(tmp_path: Path, zero: Any, by_column: bool) -> None:
    """Q, DQ, MatMul of dequantised weights, bias, relu, Q, DQ."""
    scales = BY_OUTPUT if by_column else F(0.01)
    nodes = [
        *quantise("x", "a", "sx", "zx"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        *quantise("e", "y", "sy", "zy"),
    ]
    zeros = np.zeros(20, np.int8) if by_column else np.int8(0)
    weights = {"w": W.T, "sw": scales, "zw": zeros, "sx": F(0.05), "zx": zero, "sy": F(0.04), "zy": zero,
               "bias": RNG.normal(size=20).astype(F)}  # fmt: skip
    ops, told = checked(written(tmp_path, nodes, ["n", 5, 24], weights), (2, 5, 24), 0.04)
    assert (ops["quantize_rows"], ops["qlinear"], ops["linear"]) == (1, 1, 0)
    assert told == "1 of 1 products of levels"


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(tmp_path: Path, transposed: int) -> None:
    """The bias is int32 in units of the product's scales; the weight is unsigned around 128."""
    nodes = [
        *quantise("x", "a", "sx", "zx"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["b"]),
        helper.make_node("DequantizeLinear", ["c", "sc"], ["bias"]),
        helper.make_node("Gemm", ["a", "b", "bias"], ["y"], transB=transposed),
    ]
    w = (W.astype(np.int16) + 128).astype(np.uint8)
    weights = {"w": w if transposed else w.T, "sw": F(0.01), "zw": np.uint8(128), "sx": F(0.05),
               "zx": np.uint8(100), "c": RNG.integers(-5000, 5000, 20, np.int32), "sc": F(0.0005)}  # fmt: skip
    ops, _ = checked(written(tmp_path, nodes, ["n", 24], weights), (3, 24), 1e-4)
    assert (ops["qlinear"], ops["matmul"]) == (1, 0)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"pads": [1, 1, 1, 1]},
    "strides": {"pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
}


@pytest.mark.parametrize("attributes", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_convolution_between_levels(tmp_path: Path, attributes: dict[str, Any]) -> None:
    """Around the image lies the zero point; a depthwise one behind it stays float, and is told."""
    nodes = [
        *quantise("x", "a", "sx", "zx"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["b"], axis=0),
        helper.make_node("Conv", ["a", "b", "bias"], ["c"], **attributes),
        helper.make_node("Relu", ["c"], ["d"]),
        *quantise("d", "e", "sy", "zy"),
        helper.make_node("DequantizeLinear", ["v", "sw", "zw"], ["u"], axis=0),
        helper.make_node("Conv", ["e", "u"], ["y"], group=20),
    ]
    weights = {"w": KERNEL, "sw": BY_OUTPUT, "zw": np.zeros(20, np.int8), "sx": F(0.05), "zx": np.uint8(131),
               "sy": F(0.02), "zy": np.uint8(3), "bias": RNG.normal(size=20).astype(F),
               "v": RNG.integers(-9, 9, (20, 1, 2, 2), np.int8)}  # fmt: skip
    ops, told = checked(written(tmp_path, nodes, IMAGE, weights), (2, *IMAGE[1:]), 4 * 9 * 0.02 * 0.02)
    assert (ops["qconv2d"], ops["conv2d"]) == (1, 1)
    assert told == "1 of 2 products of levels; left: 1 convolutions by channel gain nothing by integers"


def test_operators(tmp_path: Path) -> None:
    """QLinearConv with a bias, flattened, QLinearMatMul."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["a"]),
        helper.make_node("QLinearConv", ["a", "sx", "zx", "w", "sw", "zw", "sc", "zc", "bias"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("QLinearMatMul", ["d", "sc", "zc", "v", "sv", "zv", "sy", "zy"], ["y"]),
    ]
    weights = {"w": KERNEL, "sw": BY_OUTPUT, "zw": np.zeros(20, np.int8), "sx": F(0.05), "zx": np.uint8(131),
               "sc": F(0.1), "zc": np.uint8(120), "bias": RNG.integers(-900, 900, 20, np.int32),
               "v": RNG.integers(-127, 128, (400, 17), np.int8), "sv": F(0.01), "zv": np.int8(0), "sy": F(0.2),
               "zy": np.uint8(128)}  # fmt: skip
    path = written(tmp_path, nodes, IMAGE, weights, T.UINT8)
    ops, told = checked(path, (2, *IMAGE[1:]), 1)
    assert (ops["qconv2d"], ops["qlinear"], ops["conv2d"], ops["matmul"]) == (1, 1, 0, 0)
    assert told == "2 of 2 products of levels"


def dynamic(weights: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime's dynamic quantisation writes."""
    weights |= {"w": W.T, "sw": F(0.01), "zw": np.int8(0), "bias": RNG.normal(size=20).astype(F)}
    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "zw"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=T.FLOAT),
        helper.make_node("Mul", ["s", "sw"], ["t"]),
        helper.make_node("Mul", ["f", "t"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["y"]),
    ]


def test_dynamic_quantisation(tmp_path: Path) -> None:
    """The scales of the sums become those of the product, which takes the bias in."""
    weights: dict[str, Any] = {}
    path = written(tmp_path, dynamic(weights), ["n", 5, 24], weights)
    ops, told = checked(path, (2, 5, 24), 1e-5)
    assert (ops["quantize_rows"], ops["qlinear"], ops["matmul"], ops["mul"]) == (1, 1, 0, 0)
    assert told == "1 of 1 products of levels"


def test_dynamic_convolution(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z", "zw"], ["i"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["i"], ["f"], to=T.FLOAT),
        helper.make_node("Mul", ["s", "sw"], ["t"]),
        helper.make_node("Mul", ["f", "t"], ["y"]),
    ]
    path = written(tmp_path, nodes, IMAGE, {"w": KERNEL, "sw": F(0.01), "zw": np.int8(0)})
    ops, _ = checked(path, (1, *IMAGE[1:]), 1e-5)
    assert (ops["qconv2d"], ops["conv2d"]) == (1, 0)


def test_sums_that_are_read_as_integers(tmp_path: Path) -> None:
    """Then they stay exact arithmetic, whatever else reads them."""
    weights: dict[str, Any] = {}
    nodes = [*dynamic(weights)[:2], helper.make_node("Mul", ["i", "two"], ["y"])]
    path = written(tmp_path, nodes, ["n", 5, 24], {**weights, "two": np.int32(2)}, T.INT32)
    ops, _ = checked(path, (2, 5, 24), 0)
    assert ops["qlinear"] == 0


def test_weights_whose_levels_do_not_fit(tmp_path: Path) -> None:
    """255 levels above their zero point: the product stays float and is told."""
    nodes = [
        *quantise("x", "a", "sx", "zx"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    w = RNG.integers(0, 256, (24, 20)).astype(np.uint8)
    weights = {"w": w, "sw": F(0.01), "zw": np.uint8(3), "sx": F(0.05), "zx": np.uint8(9)}
    ops, told = checked(written(tmp_path, nodes, ["n", 24], weights), (4, 24), 1e-3)
    assert (ops["linear"], ops["qlinear"], ops["dequantize"]) == (1, 0, 1)  # that of x
    assert "do not fit 8 bits" in told


def test_qgemm_of_floats_is_the_scaled_sum(tmp_path: Path) -> None:
    """ONNX Runtime's: alpha * a_scale * b_scale * (sum + c), of a factor that is transposed."""
    c, scale, zero = np.arange(20, dtype=np.int32) * 50, F(0.03), np.uint8(120)
    weights = {"s": scale, "z": zero, "w": W, "ws": BY_OUTPUT, "wz": np.zeros(20, np.int8), "c": c}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(
            "QGemm",
            ["q", "s", "z", "w", "ws", "wz", "c"],
            ["y"],
            "",
            domain="com.microsoft",
            transB=1,
            alpha=0.5,
        ),
    ]

    def expected(x: Any) -> Any:
        levels = np.clip(np.rint(x / scale) + int(zero), 0, 255).astype(np.int64) - int(zero)
        return (0.5 * scale * BY_OUTPUT * (levels @ W.T.astype(np.int64) + c)).astype(F)

    checked(written(tmp_path, nodes, ["n", 24], weights), (5, 24), 1e-4, expected)
