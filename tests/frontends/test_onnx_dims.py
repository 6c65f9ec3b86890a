"""Dynamic axes of ONNX files that always have one size, and cuts that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

NODE, INFO = helper.make_node, helper.make_tensor_value_info


def saved(path: Path, nodes: Any, inputs: Any, weights: dict[str, Any]) -> Path:
    """A file of a small graph whose output is `out`."""
    outputs = [INFO("out", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def squeezed(path: Path) -> Path:
    """out = x without its second axis where that is 1, else x: what PyTorch writes for `squeeze` of an open axis."""
    kinds = {"then": NODE("Squeeze", ["x", "one"], ["a"]), "else": NODE("Identity", ["x"], ["b"])}
    bodies = {
        name: helper.make_graph([node], name, [], [INFO(node.output[0], TensorProto.FLOAT, None)])
        for name, node in kinds.items()
    }
    nodes = [
        NODE("Shape", ["x"], ["s"], start=1, end=2),
        NODE("Equal", ["s", "one"], ["q"]),
        NODE("If", ["q"], ["out"], then_branch=bodies["then"], else_branch=bodies["else"]),
    ]
    return saved(path, nodes, [INFO("x", TensorProto.FLOAT, ["n", "t"])], {"one": np.array([1])})


def test_an_axis_that_always_has_one_size(tmp_path: Path) -> None:
    path = squeezed(tmp_path / "m.onnx")
    with pytest.raises(LlmcError, match="cannot be imported") as info:
        load(path)
    assert "--dim seq=SIZE" in str(info.value.hint)
    for name in ("seq", "t"):  # llmc's name of it, and the file's
        assert str(load(path, dims={name: 5}).graph.outputs["out"].type) == "f32[batch, 5]"
    assert str(load(path, dims={"t": 1}).graph.outputs["out"].type) == "f32[batch]"
    with pytest.raises(LlmcError, match="no dynamic axis 'width'") as info:
        load(path, dims={"width": 5})
    assert info.value.hint == "it has batch, n, seq, t"
    with pytest.raises(LlmcError, match="no size"):
        load(path, dims={"t": 0})


def test_a_cut_at_a_billion_is_no_cut(tmp_path: Path) -> None:
    ends = {"zero": np.array([0]), "far": np.array([10**9]), "first": np.array([0])}
    nodes = [NODE("Slice", ["x", "zero", "far", "first"], ["out"])]
    path = saved(tmp_path / "m.onnx", nodes, [INFO("x", TensorProto.FLOAT, ["n", 3])], ends)
    assert str(load(path).graph.outputs["out"].type) == "f32[batch, 3]"
    with pytest.raises(LlmcError, match="at most 1000000000"):
        load(path, max_batch=2 * 10**9)


def test_dims_are_for_onnx(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="--dim is for ONNX files"):
        load(tmp_path, dims={"t": 1})


def test_a_remainder_of_a_sum_of_sizes(tmp_path: Path) -> None:
    """(t + 1) % 2 was 0, as the quotient was taken for a whole one."""
    nodes = [
        NODE("Shape", ["x"], ["t"], start=1, end=2),
        NODE("Add", ["t", "one"], ["more"]),
        NODE("Mod", ["more", "two"], ["rest"]),
        NODE("Cast", ["rest"], ["out"], to=TensorProto.FLOAT),
    ]
    weights = {"one": np.array([1]), "two": np.array([2])}
    graph = load(saved(tmp_path / "m.onnx", nodes, [INFO("x", TensorProto.FLOAT, ["n", "t"])], weights)).graph
    for length in (1, 2, 5):
        found = run(graph, {"x": np.zeros((1, length), np.float32)})["out"]
        assert found.tolist() == [(length + 1) % 2]
