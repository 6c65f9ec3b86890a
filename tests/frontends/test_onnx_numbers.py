"""Numbers at run time that the declared shape of a result decides: an input of one number may be no other."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError, LlmcWarning

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def loaded(folder: Path, nodes: Any, results: dict[str, list[int]]) -> Any:
    """A graph of x `[3, 4]` and k `[1]`."""
    inputs = [
        helper.make_tensor_value_info("x", T.FLOAT, [3, 4]),
        helper.make_tensor_value_info("k", T.INT64, [1]),
    ]
    outputs = [helper.make_tensor_value_info(name, T.FLOAT, shape) for name, shape in results.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return load(folder / "m.onnx").graph


def top(name: str) -> Any:
    return helper.make_node("TopK", ["x", "k"], [name, f"{name}i"], name=name)


def test_another_number_than_the_declared_shape_says_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LlmcWarning)  # nothing is left to warn of
        graph = loaded(tmp_path, [top("y")], {"y": [3, 2]})

    assert run(graph, {"x": X, "k": np.int64([2])})["y"].shape == (3, 2)
    with pytest.raises(LlmcError, match="input 'k' holds 3"):
        run(graph, {"x": X, "k": np.int64([3])})


def test_shapes_that_contradict_each_other_are_told_of(tmp_path: Path) -> None:
    with pytest.warns(LlmcWarning, match="TopK y .*TopK z"):
        graph = loaded(tmp_path, [top("y"), top("z")], {"y": [3, 2], "z": [3, 1]})

    assert next(n for n in graph.inputs if n.attributes["name"] == "k").attributes["low"] is None
