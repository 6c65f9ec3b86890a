"""ONNX files as files: shape arithmetic, external data, bounds, what lies beside them, and every kind of damage."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported import to_onnx
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES

O3 = Pipeline.parse(LEVELS[3], PASSES)
NODE, INFO = helper.make_node, helper.make_tensor_value_info


def saved(
    path: Path, nodes: Any, inputs: Any, weights: dict[str, Any], opset: int = 17, outputs: Any = ("out",)
) -> Path:
    """A file of a small graph."""
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [INFO(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(made, path)
    return path


X = INFO("x", TensorProto.FLOAT, ["n", "m", 6])


def count(graph: Any) -> Counter[str]:
    return Counter(n.op for n in graph.nodes if n.op not in ("input", "constant"))


# --- shape arithmetic


def test_shape_arithmetic_leaves_no_nodes(tmp_path: Path) -> None:
    """What exporters write for `x.view(n, m, 2, -1)`, `expand(-1, ...)` and `x[:, : m // 2 + 1 - 1]`."""
    nodes = [
        NODE("Shape", ["x"], ["shape"]),
        NODE("Gather", ["shape", "one"], ["m"], axis=0),
        NODE("Mul", ["m", "two"], ["m2"]),
        NODE("Div", ["m2", "two"], ["half"]),
        NODE("Unsqueeze", ["half", "zeros"], ["mm"]),
        NODE("Slice", ["shape", "zeros", "ones"], ["n"]),
        NODE("Concat", ["n", "mm", "twos", "minus"], ["wanted"], axis=0),
        NODE("Reshape", ["x", "wanted"], ["y"]),
        NODE("ConstantOfShape", ["four"], ["ones4"], value=numpy_helper.from_array(np.array([1]))),
        NODE("Equal", ["wanted", "minus"], ["which"]),
        NODE("Where", ["which", "ones4", "wanted"], ["final"]),
        NODE("Expand", ["y", "final"], ["out"]),
    ]
    weights = {"one": 1, "two": 2, "zeros": [0], "ones": [1], "twos": [2], "minus": [-1], "four": [4]}
    file = saved(tmp_path / "m.onnx", nodes, [X], {k: np.array(v, np.int64) for k, v in weights.items()})

    graph = load(file).graph

    assert count(graph) == {"reshape": 1}
    assert str(graph.outputs["out"].type) == "f32[batch, m, 2, 3]"


def test_sizes_used_as_data(tmp_path: Path) -> None:
    nodes = [
        NODE("Shape", ["x"], ["shape"]),
        NODE("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        NODE("ReduceSum", ["sizes"], ["out"], keepdims=0),
    ]
    graph = load(saved(tmp_path / "m.onnx", nodes, [X], {})).graph
    assert run(graph, {"x": np.zeros((4, 3, 6), np.float32)})["out"] == 13


def test_undecided_comparison_is_computed(tmp_path: Path) -> None:
    """Whether m is 1 is not known before the model runs."""
    nodes = [
        NODE("Shape", ["x"], ["shape"], start=1, end=2),
        NODE("Equal", ["shape", "one"], ["flag"]),
        NODE("Where", ["flag", "x", "zero"], ["out"]),
    ]
    weights = {"one": np.array([1]), "zero": np.float32(0)}
    graph = load(saved(tmp_path / "m.onnx", nodes, [X], weights)).graph
    for m in (1, 2):
        x = np.ones((2, m, 6), np.float32)
        assert run(graph, {"x": x})["out"].sum() == (12 if m == 1 else 0)


# --- patterns


def norm_nodes(x: str, out: str, p: str) -> list[Any]:
    return [
        NODE("ReduceMean", [x], [p + "mean"], axes=[-1]),
        NODE("Sub", [x, p + "mean"], [p + "c"]),
        NODE("Pow", [p + "c", "two"], [p + "sq"]),
        NODE("ReduceMean", [p + "sq"], [p + "var"], axes=[-1]),
        NODE("Add", [p + "var", "eps"], [p + "ve"]),
        NODE("Sqrt", [p + "ve"], [p + "sd"]),
        NODE("Div", [p + "c", p + "sd"], [p + "n"]),
        NODE("Mul", [p + "n", "w"], [p + "nw"]),
        NODE("Add", [p + "nw", "b"], [out]),
    ]


def test_block_written_out_is_fused(tmp_path: Path) -> None:
    """Norm, product with bias and GELU in elementary ops become a norm and one linear."""
    nodes = [
        *norm_nodes("x", "y", "a"),
        NODE("MatMul", ["y", "weight"], ["z"]),
        NODE("Add", ["bias", "z"], ["zb"]),
        NODE("Div", ["zb", "root"], ["zr"]),
        NODE("Erf", ["zr"], ["ze"]),
        NODE("Add", ["ze", "one"], ["z1"]),
        NODE("Mul", ["zb", "z1"], ["zz"]),
        NODE("Mul", ["zz", "half"], ["out"]),
    ]
    rng = np.random.default_rng(0)
    numbers = {"two": 2, "eps": 1e-5, "root": np.sqrt(2), "one": 1, "half": 0.5}
    weights: dict[str, Any] = {k: np.float32(v) for k, v in numbers.items()}
    for name, shape in (("w", 6), ("b", 6), ("weight", (6, 5)), ("bias", 5)):
        weights[name] = rng.normal(size=shape).astype(np.float32)
    graph = load(saved(tmp_path / "m.onnx", nodes, [X], weights)).graph

    after, _ = O3.run(graph)

    assert count(after) == {"layer_norm": 1, "linear": 1}
    assert after.outputs["out"].attributes["epilogue"] == ("bias", "gelu")
    x = rng.normal(size=(2, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(run(after, {"x": x})["out"], run(graph, {"x": x})["out"], atol=1e-5)


# --- bounds and names


def positions(path: Path, extra: int) -> Path:
    """A table of 20 positions that is read from row `extra` on."""
    nodes = [
        NODE("Shape", ["input_ids"], ["s"], start=1, end=2),
        NODE("Squeeze", ["s", "zeros"], ["seq"]),
        NODE("Add", ["seq", "extra"], ["end"]),
        NODE("Range", ["extra", "end", "one"], ["index"]),
        NODE("Gather", ["table", "index"], ["rows"]),
        NODE("Gather", ["words", "input_ids"], ["tokens"]),
        NODE("Add", ["rows", "tokens"], ["out"]),
    ]
    table = np.arange(40, dtype=np.float32).reshape(20, 2)
    weights = {"zeros": np.array([0]), "extra": np.array(extra), "one": np.array(1)}
    ids = INFO("input_ids", TensorProto.INT64, ["b", "s"])
    return saved(path, nodes, [ids], {**weights, "table": table, "words": np.concatenate([table, table])})


@pytest.mark.parametrize("extra", [0, 2])
def test_tables_bound_the_sequence(extra: int, tmp_path: Path) -> None:
    file = positions(tmp_path / "m.onnx", extra)
    graph = load(file, max_batch=3).graph
    assert dict(graph.dims) == {"batch": (1, 3), "seq": (1, 20 - extra)}
    assert graph.inputs[0].attributes["high"] == 39
    assert load(file, max_seq=7).graph.dims["seq"] == (1, 7)
    with pytest.raises(LlmcError, match=f"max_seq 21 is more than the model's {20 - extra} positions"):
        load(file, max_seq=21)


def test_what_lies_beside(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    (tmp_path / "onnx").mkdir()
    file = positions(tmp_path / "onnx" / "m.onnx", 0)
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    config = {"max_position_embeddings": 18, "id2label": {"0": "bad", "1": "good"}, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))

    generic = load(file)
    assert (generic.task, generic.labels) == ("generic", ())
    assert generic.tokenizer is not None
    assert generic.tokenizer.file == tmp_path / "tokenizer.json"
    assert generic.graph.dims["seq"] == (1, 18)

    named = load(file, task="text-classification")
    assert (named.task, named.labels) == ("text-classification", ("bad", "good"))
    assert tuple(named.graph.outputs) == ("logits",)


def test_outputs_must_suit_the_task(tmp_path: Path) -> None:
    nodes = [NODE("Relu", ["x"], ["a"]), NODE("Neg", ["x"], ["b"])]
    file = saved(tmp_path / "m.onnx", nodes, [X], {}, outputs=("a", "b"))
    with pytest.raises(LlmcError, match="needs the output 'logits'") as caught:
        load(file, task="text-classification")
    assert caught.value.found == "the outputs a, b"
    with pytest.raises(LlmcError, match="no task 'text-clasification'"):
        load(file, task="text-clasification")


# --- external data


def external(tmp_path: Path) -> tuple[Path, Any]:
    """A model with its one weight in another file."""
    weight = np.arange(6, dtype=np.float32)
    path = saved(tmp_path / "m.onnx", [NODE("Mul", ["x", "w"], ["out"])], [X], {"w": weight})
    made = onnx.load(path)
    onnx.save(made, path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path, onnx.load(path, load_external_data=False)


def test_external_data(tmp_path: Path) -> None:
    path, _ = external(tmp_path)
    graph = load(path).graph
    (weight,) = (n.attributes["value"].array for n in graph.nodes if n.op == "constant")
    np.testing.assert_array_equal(weight, np.arange(6, dtype=np.float32))
    assert isinstance(weight.base, np.memmap) or isinstance(weight, np.memmap) or weight.base is not None


def test_external_data_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """models--NAME/snapshots/REVISION/onnx holds links into models--NAME/blobs; other links lead outside."""
    home, blobs = (
        tmp_path / "models--a--b" / "snapshots" / "0123" / "onnx",
        tmp_path / "models--a--b" / "blobs",
    )
    for folder in (home, blobs):
        folder.mkdir(parents=True)
    path, _ = external(home)
    for number, file in enumerate((path, home / "m.data")):
        file.rename(blobs / f"{number}")
        file.symlink_to(Path("../../../blobs") / f"{number}")
    (weight,) = (n.attributes["value"].array for n in load(path).graph.nodes if n.op == "constant")
    np.testing.assert_array_equal(weight, np.arange(6, dtype=np.float32))

    (blobs / "1").rename(tmp_path / "m.data")
    (home / "m.data").unlink()
    (home / "m.data").symlink_to(tmp_path / "m.data")
    with pytest.raises(LlmcError, match="outside the model's folder"):
        load(path)


def entry(made: Any, key: str, value: str) -> None:
    entries = made.graph.initializer[0].external_data
    found = [e for e in entries if e.key == key] or [entries.add(key=key)]
    found[0].value = value


@pytest.mark.parametrize("place", ["../m.data", "/etc/passwd", "sub/../../m.data", "", "link"])
def test_external_data_stays_in_the_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "m.data").write_bytes(bytes(24))
    path, made = external(tmp_path / "home")
    (tmp_path / "home" / "link").symlink_to(tmp_path / "m.data")
    entry(made, "location", place)
    path.write_bytes(made.SerializeToString())
    with pytest.raises(LlmcError, match="outside the model's folder"):
        load(path)


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    path, made = external(tmp_path)
    for key, value in (("offset", "8"), ("offset", "-4"), ("length", "99999"), ("length", "many")):
        damaged = onnx.ModelProto()
        damaged.CopyFrom(made)
        entry(damaged, key, value)
        path.write_bytes(damaged.SerializeToString())
        with pytest.raises(LlmcError, match="does not fit its file"):
            load(path)
    path.write_bytes(made.SerializeToString())
    (tmp_path / "m.data").unlink()
    with pytest.raises(LlmcError, match=r"the file 'm.data' with the weights is missing"):
        load(path)


# --- refusals


def test_every_unsupported_op_is_listed_at_once(tmp_path: Path) -> None:
    nodes = [
        NODE("NonMaxSuppression", ["x", "x"], ["h"], name="/encoder/nms"),
        NODE("Relu", ["h"], ["z"]),
        NODE("PagedAttention", ["z"], ["a"], name="fused", domain="com.microsoft"),
        NODE("NonZero", ["h"], ["nz"], name="nz1"),
        NODE("NonZero", ["a"], ["nz2"], name="nz2"),
        NODE("Add", ["nz", "nz2"], ["out"]),
    ]
    file = saved(tmp_path / "m.onnx", nodes, [X], {})

    with pytest.raises(LlmcError) as caught:
        load(file)

    start, _, names = caught.value.problem.partition(": ")
    assert start == "3 ops of the model cannot be imported"
    assert set(names.split(", ")) == {"com.microsoft.PagedAttention", "NonMaxSuppression", "NonZero"}
    found = caught.value.found or ""
    assert "NonMaxSuppression x1 at /encoder/nms: no such op in llmc" in found
    assert "com.microsoft.PagedAttention x1 at fused" in found
    assert "NonZero x2 at nz1 and 1 other places: no such op in llmc; its shape depends on values" in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda data: data[: len(data) // 2],
            "not an ONNX model, or it is damaged|holds no ONNX graph|does not fit",
        ),
        (lambda data: b"", "holds no ONNX graph"),
        (lambda data: b"PK\x03\x04 not a protobuf at all", "not an ONNX model|holds no ONNX graph"),
    ],
)
def test_damaged_files(change: Any, words: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "m.onnx", [NODE("Mul", ["x", "w"], ["out"])], [X], {"w": np.ones(6, np.float32)})
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(LlmcError, match=words):
        load(file)


@pytest.mark.parametrize("opset", [0, 99])
def test_opsets_that_are_not_known(opset: int, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match=f"opset {opset} is not supported"):
        load(saved(tmp_path / "m.onnx", [NODE("Relu", ["x"], ["out"])], [X], {}, opset))


def test_dtypes_that_are_not_known(tmp_path: Path) -> None:
    nodes = [NODE("Relu", ["x"], ["out"])]
    with pytest.raises(LlmcError, match="input 'x' has a type") as caught:
        load(saved(tmp_path / "m.onnx", nodes, [INFO("x", TensorProto.COMPLEX64, [2])], {}))
    assert caught.value.found == "COMPLEX64"
    nodes = [NODE("Mul", ["x", "w"], ["out"])]
    with pytest.raises(LlmcError, match="weight 'w' has dtype COMPLEX64"):
        load(saved(tmp_path / "m.onnx", nodes, [X], {"w": np.ones(6, np.complex64)}))


def test_nodes_that_make_no_sense(tmp_path: Path) -> None:
    for nodes in (
        [NODE("MatMul", ["x"], ["out"])],
        [NODE("Cast", ["x"], ["out"])],
        [NODE("Concat", ["x", "x"], ["out"])],
    ):
        with pytest.raises(LlmcError, match="cannot be imported"):
            load(saved(tmp_path / "m.onnx", nodes, [X], {}))


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="no such model file"):
        load(tmp_path / "none.onnx")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(LlmcError, match=r"model.bin is no kind of model llmc reads") as caught:
        load(tmp_path / "model.bin")
    assert ".onnx, .pt2, .gguf or .txt" in (caught.value.hint or "")


# --- opsets and dtypes of real exports


@pytest.mark.parametrize("opset", [pytest.param(n, marks=pytest.mark.slow) for n in (11, 13, 14, 18, 21)])
def test_opsets(opset: int, make_model: Any, difference: Any, tmp_path: Path) -> None:
    model = make_model("bert", "Model", attn_implementation="eager" if opset < 14 else "sdpa")
    exporter = "dynamo" if opset > 20 else "script"
    graph = load(to_onnx(model, tmp_path / "m.onnx", exporter, opset)).graph
    after, _ = O3.run(graph)
    assert difference(model, after, [(1, 1), (2, 9)]) < 1e-5
    assert (count(after)["mha"], count(after)["gelu"], count(after)["linear"]) == (2, 0, 8)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float16)
    nodes = [NODE("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), NODE("Mul", ["h", "w"], ["out"])]
    graph = load(saved(tmp_path / "m.onnx", nodes, [X], {"w": weight})).graph
    assert {n.dtype for n in graph.nodes} == {"f32"}
    x = np.full((1, 1, 6), 0.1, np.float32)
    np.testing.assert_array_equal(run(graph, {"x": x})["out"], x * weight.astype(np.float32))
