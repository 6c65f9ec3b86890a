"""`Attention` and `MultiHeadAttention` behind a past, with masks as long as all keys, beside ONNX Runtime."""

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

HEADS, WIDTH, BATCH = 2, 4, 3
HIDDEN = HEADS * WIDTH
RNG = np.random.default_rng(3)


def value(name: str, dims: list[Any], kind: int = T.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def written(folder: Path, op: str, mask: list[Any], added: bool = False, **how: Any) -> Path:
    if op == "Attention":
        fed = ["x", "w", "b", "mask", "past"]
        inputs = [value("x", ["batch", "new", HIDDEN]), value("past", [2, "batch", HEADS, "past", WIDTH])]
        weights, results = {"w": floats(HIDDEN, 3 * HIDDEN), "b": floats(3 * HIDDEN)}, ["y", "present"]
    else:
        fed = ["q", "k", "v", "", "mask", "added" if added else "", "past.k", "past.v"]
        inputs = [value(name, ["batch", "new", HIDDEN]) for name in "qkv"]
        inputs += [value(f"past.{name}", ["batch", HEADS, "past", WIDTH]) for name in "kv"]
        inputs += [value("added", [1, HEADS, "new", "total"])] if added else []
        weights, results = {}, ["y", "present.k", "present.v"]
    node = helper.make_node(op, fed, results, domain="com.microsoft", num_heads=HEADS, **how)
    graph = helper.make_graph(
        [node],
        "g",
        [*inputs, value("mask", mask, T.INT32)],
        [helper.make_tensor_value_info(name, T.FLOAT, None) for name in results],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def call(path: Path, past: int, new: int) -> dict[str, Any]:
    """Random inputs; of each row some keys are hidden, of the first all of those that the first query sees."""
    sizes = {"batch": BATCH, "past": past, "new": new, "total": past + new}
    given = {}
    for info in onnxruntime.InferenceSession(path).get_inputs():
        shape = [sizes.get(d, d) for d in info.shape]
        if info.name != "mask":
            given[info.name] = floats(*shape)
            continue
        given["mask"] = (RNG.random(shape) < 0.6).astype(np.int32)
        given["mask"][0, ..., : past + 1] = 0
        given["mask"][..., -1] = 1
    return given


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", [["batch", "total"], ["batch", "new", "total"]], ids=["keys", "queries"])
@pytest.mark.parametrize("op", ["Attention", "MultiHeadAttention"])
def test_beside_onnxruntime(op: str, mask: list[Any], causal: int, tmp_path: Path) -> None:
    path = written(tmp_path, op, mask, added=True, unidirectional=causal)
    session, graph = onnxruntime.InferenceSession(path), load(path).graph
    assert str(graph.inputs[-1].shape[-1]) == "new + past"
    for past, new in ((0, 4), (3, 2), (5, 1)):
        given = call(path, past, new)
        wanted = session.run(None, given)
        for found, answer in zip(run(graph, given).values(), wanted, strict=True):
            # Scores from which 10000 is subtracted have 1e-3 left in float32, as ONNX Runtime computes.
            np.testing.assert_allclose(found, answer, rtol=1e-3, atol=1e-3)


def test_another_length_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "MultiHeadAttention", ["batch", "total"])
    graph, given = load(path).graph, call(path, 3, 2)
    with pytest.raises(LlmcError, match="mask"):
        run(graph, {**given, "mask": np.ones((BATCH, 6), np.int32)})
