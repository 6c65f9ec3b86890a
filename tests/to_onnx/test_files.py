"""ONNX files: how weights lie in them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from written_onnx import again, referenced, want_same, written

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import onnx as frontend
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.to_onnx import file
from llmc.errors import LlmcError
from llmc.passes import PASSES

BATCH, SEQ = symbol("batch"), symbol("seq")
DIMS = {"batch": (1, 2000), "seq": (1, 900)}


def weight(*shape: int, name: str = "w") -> Node:
    return constant(np.random.default_rng(len(name)).normal(size=shape).astype(np.float32), name)


def small() -> tuple[Graph, dict[str, Any]]:
    """Two products with 64 KiB of weights, one of them of the table as well."""
    table, w = weight(64, 64, name="table"), weight(256, 64, name="first.weight")
    ids = input_("ids", "i64", (BATCH, SEQ), low=0, high=63)
    x = make("embedding", (table, ids))
    outputs = {"y": make("linear", (x, w)), "logits": make("linear", (x, table))}
    graph = Graph((ids,), outputs, DIMS)
    return graph, {"ids": np.array([[1, 5, 63]])}


def test_tied_weights_lie_there_once(tmp_path: Path) -> None:
    graph, inputs = small()
    model = written(graph, tmp_path / "m.onnx")
    large = {t.name: tuple(t.dims) for t in model.graph.initializer if len(t.dims) == 2}
    assert large == {"table": (64, 64), "first.weight": (64, 256)}
    want_same(referenced(tmp_path / "m.onnx", inputs), interpret.run(graph, inputs))


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    graph, _ = small()
    file.write(tmp_path / "m.onnx", graph, {"llmc.source": "tiny"})
    model = onnx.load(str(tmp_path / "m.onnx"))
    assert (model.producer_name, model.opset_import[0].version, model.ir_version) == ("llmc", 20, 9)
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts == {"llmc.source": "tiny", "llmc.dims": "batch=1..2000, seq=1..900"}
    assert again(tmp_path / "m.onnx").dims == graph.dims
    fewer = frontend.load(tmp_path / "m.onnx", max_batch=8, max_seq=16, dims={}).graph
    assert fewer.dims == {"batch": (1, 8), "seq": (1, 16)}
    one = frontend.load(tmp_path / "m.onnx", dims={"batch": 1}).graph
    assert str(one.outputs["y"].type) == "f32[1, seq, 256]"


def test_bounds_that_make_no_sense_are_not_taken(tmp_path: Path) -> None:
    graph, _ = small()
    written(graph, tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"))
    for text in ("batch=9..2, seq=1..99999999999", "nonsense", ""):
        model.metadata_props[0].value = text
        onnx.save(model, str(tmp_path / "m.onnx"))
        assert again(tmp_path / "m.onnx").dims == {"batch": (1, 1024), "seq": (1, 512)}, text


def test_weights_apart(tmp_path: Path) -> None:
    graph, inputs = small()
    model = written(graph, tmp_path / "m.onnx", external=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    apart = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert {t.name for t in apart} == {"table", "first.weight"}
    assert (tmp_path / "m.onnx").stat().st_size < 4000
    want_same(referenced(tmp_path / "m.onnx", inputs), interpret.run(graph, inputs))
    want_same(interpret.run(again(tmp_path / "m.onnx"), inputs), interpret.run(graph, inputs))


def test_many_weights_are_apart_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = small()
    monkeypatch.setattr(file, "MOST_BYTES", file._ROOM + (1 << 16))
    written(graph, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size >= 5 << 14
    want_same(referenced(tmp_path / "m.onnx", inputs), interpret.run(graph, inputs))


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = small()
    written(graph, tmp_path / "m.onnx", external=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "_apart", full)
    with pytest.raises(LlmcError, match="cannot write the model: No space left on device"):
        file.write(tmp_path / "m.onnx", graph, {}, external=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_place_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").mkdir()
    with pytest.raises(LlmcError, match="is no file"):
        file.write(tmp_path / "m.onnx", small()[0], {})
    with pytest.raises(LlmcError, match="cannot write the model: No such file or directory"):
        file.write(tmp_path / "nowhere" / "m.onnx", small()[0], {})


@pytest.mark.parametrize(
    ("passes", "kind", "opset"),
    [
        ("quantize,qfuse", TensorProto.INT8, 20),
        ('quantize{mode="fp16"},qfuse', TensorProto.FLOAT16, 20),
        ("blockwise{table_block=64}", TensorProto.INT8, 20),
        ("blockwise{bits=4,block=32}", TensorProto.INT4, 21),
    ],
)
def test_small_numbers_stay_small(passes: str, kind: int, opset: int, tmp_path: Path) -> None:
    graph, _ = Pipeline.parse(passes, PASSES).run(small()[0])
    model = written(graph, tmp_path / "m.onnx")
    (found,) = (t for t in model.graph.initializer if sorted(t.dims) == [64, 256])
    assert (found.data_type, found.name.rpartition(".")[0]) == (kind, "first.weight")
    assert model.opset_import[0].version == opset
    assert ("DequantizeLinear" in {n.op_type for n in model.graph.node}) == passes.startswith("blockwise")


def test_a_known_scale_is_quantize_linear(tmp_path: Path) -> None:
    """And what lies below -127 stays there."""
    x, scale = input_("x", "f32", (BATCH, 64)), constant(np.float32(0.02))
    rows = make("quantize_rows", (x, scale), has_scale=True)
    q = constant(np.arange(-64, 64, dtype=np.int8).repeat(32).reshape(64, 64), "q")
    y = make("qlinear", (rows, q, weight(64, name="s")), epilogue=())
    graph = Graph((x,), {"y": y}, {"batch": (1, 8)})
    model = written(graph, tmp_path / "m.onnx")
    ops = [n.op_type for n in model.graph.node]
    assert ops.count("QuantizeLinear") == 1
    assert ops.count("DequantizeLinear") == 2
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32) * 2}
    want_same(referenced(tmp_path / "m.onnx", inputs), interpret.run(graph, inputs), rtol=1e-4, atol=1e-4)


def test_what_has_no_form_is_told_at_once(tmp_path: Path) -> None:
    x = input_("x", "f32", (BATCH, 64))
    rows = [
        make("quantize_rows", (make("tanh", (x,)),)),
        make("quantize_rows", (x,)),
        make("split_rows", (x,)),
    ]
    graph = Graph((x,), {f"y{i}": node for i, node in enumerate(rows)}, {"batch": (1, 8)})
    with pytest.raises(
        LlmcError, match="2 ops of the graph cannot be said in ONNX: quantize_rows, split_rows"
    ) as e:
        file.write(tmp_path / "m.onnx", graph, {})
    assert "quantize_rows x2" in str(e.value)
    assert not list(tmp_path.iterdir())


def test_names_that_would_be_one(tmp_path: Path) -> None:
    x = input_("x", "f32", (BATCH,))
    with pytest.raises(LlmcError, match="two of inputs, outputs and states would be called 'x'"):
        file.write(tmp_path / "m.onnx", Graph((x,), {"x": make("tanh", (x,))}, {"batch": (1, 8)}), {})


def test_an_output_that_is_an_input_or_two(tmp_path: Path) -> None:
    x, w = input_("x", "f32", (BATCH,)), weight(3)
    y = make("tanh", (x,))
    graph = Graph((x,), {"a": x, "b": y, "c": y, "w": w}, {"batch": (1, 8)})
    written(graph, tmp_path / "m.onnx")
    inputs = {"x": np.float32([1, 2])}
    want_same(referenced(tmp_path / "m.onnx", inputs), interpret.run(graph, inputs))


def test_axes_called_seq_and_batch_in_this_order(tmp_path: Path) -> None:
    """Of a file that llmc did not write: both were called batch."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["seq", "batch", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "g", info[:1], info[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    assert str(again(tmp_path / "m.onnx").inputs[0].type) == "f32[seq, batch, 4]"
