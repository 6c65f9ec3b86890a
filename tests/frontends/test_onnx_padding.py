"""Padding of ONNX files by as much as the sizes of a call say, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.compiler.samples import samples

NODE, INFO, F = helper.make_node, helper.make_tensor_value_info, np.float32
RNG = np.random.default_rng(9)


def agrees(
    folder: Path,
    nodes: list[Any],
    shape: list[Any],
    weights: dict[str, Any],
    calls: list[tuple[int, ...]],
    opset: int = 18,
) -> Any:
    """The graph, whose answers are ONNX Runtime's for arrays `x` of these shapes."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    inputs, outputs = [INFO("x", TensorProto.FLOAT, shape)], [INFO("y", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    graph = load(path).graph
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for call in calls:
        x = RNG.normal(size=call).astype(F)
        (wanted,) = session.run(None, {"x": x})
        found = run(graph, {"x": x})["y"]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    return graph


def up_to_a_multiple(mode: str, factor: int) -> list[Any]:
    """`F.pad(x, (0, -n % factor))` of the last axis, as exporters write it."""
    return [
        NODE("Shape", ["x"], ["n"], start=1),
        NODE("Add", ["n", "less"], ["more"]),
        NODE("Div", ["more", "factor"], ["count"]),
        NODE("Mul", ["count", "factor"], ["whole"]),
        NODE("Sub", ["whole", "n"], ["pad"]),
        NODE("Concat", ["zeros", "pad"], ["pads"], axis=0),
        NODE("Pad", ["x", "pads"], ["wide"], mode=mode),
        NODE("Reshape", ["wide", "shape"], ["y"]),
    ]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_up_to_a_multiple(tmp_path: Path, mode: str) -> None:
    weights = {"less": np.array([3]), "factor": np.array([4]), "zeros": np.zeros(3, np.int64),
               "shape": np.array([0, -1, 4])}  # fmt: skip
    calls = [(2, n) for n in (5, 6, 7, 8)]
    graph = agrees(tmp_path, up_to_a_multiple(mode, 4), ["b", "n"], weights, calls)
    assert str(graph.outputs["y"].type) == "f32[batch, floor(seq/4 + 3/4), 4]"
    assert any(n.op == "embedding" for n in graph.nodes) == (mode != "constant")


def test_at_least_so_long(tmp_path: Path) -> None:
    """Short rows are padded to 8, and all of them to a multiple of it: sizes that are maxima cancel."""
    nodes = [
        NODE("Shape", ["x"], ["n"], start=1),
        NODE("Sub", ["eight", "n"], ["lack"]),
        NODE("Max", ["lack", "zero"], ["pad"]),
        NODE("Concat", ["zeros", "pad"], ["pads"], axis=0),
        NODE("Pad", ["x", "pads"], ["long"]),
        NODE("Max", ["n", "eight"], ["length"]),
        NODE("Add", ["length", "seven"], ["more"]),
        NODE("Div", ["more", "eight"], ["count"]),
        NODE("Mul", ["count", "eight"], ["whole"]),
        NODE("Sub", ["whole", "length"], ["rest"]),
        NODE("Concat", ["zeros", "rest"], ["pads2"], axis=0),
        NODE("Pad", ["long", "pads2"], ["wide"]),
        NODE("Reshape", ["wide", "shape"], ["y"]),
    ]
    weights = {"eight": np.array([8]), "seven": np.array([7]), "zero": np.array([0]),
               "zeros": np.zeros(3, np.int64), "shape": np.array([0, -1, 8])}  # fmt: skip
    agrees(tmp_path, nodes, ["b", "n"], weights, [(1, n) for n in (1, 7, 8, 9, 16, 17)])


KERNEL = RNG.normal(size=(2, 3, 3, 3)).astype(F)
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "convolution": ("Conv", {"kernel_shape": [3, 3]}),
    "maximum": ("MaxPool", {"kernel_shape": [2, 3]}),
    "average": ("AveragePool", {"kernel_shape": [3, 2]}),
    "average with padding": ("AveragePool", {"kernel_shape": [3, 2], "count_include_pad": 1}),
}


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("op", "attributes"), SAME.values(), ids=list(SAME))
def test_same_padding_of_open_sizes(tmp_path: Path, op: str, attributes: dict[str, Any], pad: str) -> None:
    """As many windows as strides fit, with a part of one: what converters from TensorFlow leave in the file."""
    conv = op == "Conv"
    nodes = [NODE(op, ["x", "w"] if conv else ["x"], ["y"], strides=[2, 2], auto_pad=pad, **attributes)]
    calls = [(1, 3, 7, 9), (2, 3, 8, 10), (1, 3, 1, 2)]
    graph = agrees(tmp_path, nodes, ["b", 3, "h", "w"], {"w": KERNEL} if conv else {}, calls)
    assert str(graph.outputs["y"].type).endswith("floor(h/2 + 1/2), floor(w/2 + 1/2)]")


def test_bounds_of_a_slice_of_a_shape_are_attributes_in_old_files(tmp_path: Path) -> None:
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Slice", ["s"], ["n"], starts=[0], ends=[1], axes=[0]),
        NODE("Slice", ["s"], ["m"], starts=[-1], ends=[9]),
        NODE("Concat", ["m", "n"], ["shape"], axis=0),
        NODE("Reshape", ["x", "shape"], ["y"]),
    ]
    agrees(tmp_path, nodes, ["b", "n"], {}, [(2, 3), (5, 1)], opset=9)


def test_a_weight_that_constants_give_is_constant(tmp_path: Path) -> None:
    """However large it gets: a filter of two rows of numbers, as resamplers write it."""
    nodes = [
        NODE("Mul", ["rows", "columns"], ["table"]),
        NODE("Sin", ["table"], ["filter"]),
        NODE("Unsqueeze", ["filter", "one"], ["w"]),
        NODE("Conv", ["x", "w"], ["y"]),
    ]
    weights = {"rows": np.arange(300, dtype=F).reshape(300, 1), "columns": np.linspace(0, 1, 250, dtype=F),
               "one": np.array([1])}  # fmt: skip
    graph = agrees(tmp_path, nodes, ["b", 1, "n"], weights, [(1, 1, 260)])
    (conv,) = [n for n in graph.nodes if n.op == "conv2d"]
    assert conv.inputs[1].op == "constant"


def test_samples_of_floats_that_are_indices(tmp_path: Path) -> None:
    """What TensorFlow's embeddings take."""
    nodes = [NODE("Cast", ["x"], ["i"], to=TensorProto.INT32), NODE("Gather", ["table", "i"], ["y"])]
    weights = {"table": RNG.normal(size=(7, 3)).astype(F)}
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    inputs, outputs = [INFO("x", TensorProto.FLOAT, ["b", "n"])], [INFO("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    (tmp_path / "m.onnx").write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )
    read = load(tmp_path / "m.onnx").graph
    for sample in samples(read):
        for call in sample.calls:
            assert (call["x"] == call["x"].round()).all()
            assert 0 <= call["x"].min() <= call["x"].max() < 7
            run(read, call)
