"""Decoders of plain ops behind a past, as Optimum exports them: empty at first, masks as long as all keys."""

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

HEADS, WIDTH = 2, 4
RNG = np.random.default_rng(3)
node, value = helper.make_node, helper.make_tensor_value_info


def written(folder: Path, mask: str = "", more: list[Any] | None = None) -> Path:
    """Attention of keys that a past is joined with; `mask` names the mask's last axis."""
    inputs = [value(name, T.FLOAT, ["batch", HEADS, "new", WIDTH]) for name in "qkv"]
    inputs += [value(f"past.{name}", T.FLOAT, ["batch", HEADS, "past", WIDTH]) for name in "kv"]
    inputs += [value("mask", T.INT64, ["batch", mask])] if mask else []
    weights = {"low": np.float32(-1e4), "one": np.float32(1), "axes": np.array([1, 2])}
    nodes = [node("Concat", [f"past.{n}", n], [f"present.{n}"], axis=a) for n, a in (("k", 2), ("v", -2))]
    nodes += [node("Transpose", ["present.k"], ["turned"], perm=[0, 1, 3, 2])]
    nodes += [node("MatMul", ["q", "turned"], ["scores"])]
    if mask:
        nodes += [node("Unsqueeze", ["mask", "axes"], ["wide"]), node("Cast", ["wide"], ["kept"], to=T.FLOAT)]
        nodes += [node("Sub", ["one", "kept"], ["hidden"]), node("Mul", ["hidden", "low"], ["bias"])]
        nodes += [node("Add", ["scores", "bias"], ["masked"])]
    nodes += [node("Softmax", ["masked" if mask else "scores"], ["weights"], axis=-1)]
    nodes += [node("MatMul", ["weights", "present.v"], ["y"]), *(more or [])]
    results = ["y", "present.k", "present.v", *(name for extra in more or [] for name in extra.output)]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [value(name, T.FLOAT, None) for name in results],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def call(past: int, new: int, masked: bool) -> dict[str, Any]:
    given: dict[str, Any] = {
        name: RNG.normal(size=(2, HEADS, size, WIDTH)).astype(np.float32)
        for name, size in (("q", new), ("k", new), ("v", new), ("past.k", past), ("past.v", past))
    }
    if masked:
        given["mask"] = np.ones((2, past + new), np.int64)
        given["mask"][1, 0] = 0
    return given


@pytest.mark.parametrize("mask", ["", "total", "past + new", "past_sequence_length + 1"])
def test_beside_onnxruntime(mask: str, tmp_path: Path) -> None:
    path = written(tmp_path, mask)
    graph = load(path).graph
    assert graph.dims["past"].low == 0
    for past, new in ((0, 3), (4, 1), (4, 3)):
        given = call(past, new, bool(mask))
        wanted = onnxruntime.InferenceSession(path).run(None, given)
        for found, answer in zip(run(graph, given).values(), wanted, strict=True):
            np.testing.assert_allclose(found, answer, rtol=1e-5, atol=1e-5)


def test_a_mask_of_another_length_is_refused(tmp_path: Path) -> None:
    graph = load(written(tmp_path, "total")).graph
    assert "total" not in graph.dims
    with pytest.raises(LlmcError, match="mask"):
        run(graph, {**call(4, 3, False), "mask": np.ones((2, 8), np.int64)})


@pytest.mark.parametrize("op", ["Exp", "ReduceMax"])
def test_a_past_that_is_computed_with_is_not_empty(op: str, tmp_path: Path) -> None:
    graph = load(written(tmp_path, more=[node(op, ["past.k"], ["extra"])])).graph
    assert graph.dims["past"].low == 1


def test_a_batch_is_no_sum_of_axes(tmp_path: Path) -> None:
    """Other axes that are added do not tell how many samples there are."""
    with pytest.raises(LlmcError, match="do not broadcast"):
        load(written(tmp_path, "batch"))
