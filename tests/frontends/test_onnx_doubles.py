"""ONNX files of doubles: computed in doubles where every op has kernels for them, else in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from llmc.compiler.frontends import onnx as frontend
from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.compiler.parse import parse_graph
from llmc.compiler.text import print_graph
from llmc.compiler.to_onnx.file import write
from llmc.errors import LlmcError

NODE, INFO = helper.make_node, helper.make_tensor_value_info
WIDE = np.array([[6.9e-310, 1e223, -0.0], [2.5e-316, 1 + 2**-40, -1e308]])
W = np.array([1e199, 1 / 3, 5e-324])


def model(*nodes: Any, given: int = T.DOUBLE, made: int = T.DOUBLE) -> Any:
    weights = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(np.array([3, -1]), "shape")]
    inputs, outputs = [INFO("x", given, ["n", 3])], [INFO("out", made, None)]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def saved(folder: Path, made: Any) -> Path:
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


EVERY = (
    NODE("Constant", [], ["third"], value=numpy_helper.from_array(np.array(1 / 3))),
    NODE("Add", ["x", "w"], ["a"]),
    NODE("Sub", ["a", "third"], ["s"]),
    NODE("Neg", ["s"], ["m"]),
    NODE("Sum", ["m", "x", "third"], ["t"]),
    NODE("Mul", ["t", "third"], ["p"]),
    NODE("Div", ["p", "w"], ["d"]),
    NODE("Transpose", ["d"], ["turned"], perm=[1, 0]),
    NODE("Reshape", ["turned", "shape"], ["out"]),
)


@pytest.mark.filterwarnings("ignore:overflow")
def test_doubles_stay_doubles(tmp_path: Path) -> None:
    made = model(*EVERY)
    graph = load(saved(tmp_path, made)).graph

    got = run(graph, {"x": WIDE})["out"]

    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, ReferenceEvaluator(made).run(None, {"x": WIDE})[0])


def test_they_are_written_and_read_as_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path, model(*EVERY))
    graph = load(path).graph
    again = parse_graph(print_graph(graph), frontend.weights(path))
    write(tmp_path / "again.onnx", graph, {})
    for other in (again, load(tmp_path / "again.onnx").graph):
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(run(other, {"x": WIDE})["out"], run(graph, {"x": WIDE})["out"])


@pytest.mark.parametrize(
    "made",
    [
        model(NODE("Exp", ["x"], ["e"]), NODE("Add", ["e", "x"], ["out"])),
        model(NODE("Cast", ["x"], ["out"], to=T.FLOAT), made=T.FLOAT),
        model(NODE("Cast", ["x"], ["c"], to=T.DOUBLE), NODE("Add", ["c", "c"], ["out"]), given=T.FLOAT),
    ],
)
def test_files_with_other_ops_or_types_are_float32(made: Any, tmp_path: Path) -> None:
    graph = load(saved(tmp_path, made)).graph
    assert {node.dtype for node in graph.nodes} == {"f32"}


def test_a_weight_that_float32_cannot_hold_is_refused_there(tmp_path: Path) -> None:
    made = model(NODE("Exp", ["x"], ["e"]), NODE("Mul", ["e", "w"], ["out"]))
    with pytest.raises(LlmcError, match="beyond float32"):
        load(saved(tmp_path, made))
