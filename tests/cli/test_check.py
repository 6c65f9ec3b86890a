"""`llmc check`: what will compile, told from config.json alone."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import transformers
from onnx import TensorProto

from llmc.compiler.frontends import outline as outlines
from llmc.compiler.frontends.outline import few_layers, outline, weight_bytes

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


def config(folder: Path, **settings: Any) -> Path:
    """A folder with the config.json of a LLaMA and nothing else."""
    made = transformers.LlamaConfig(**{**SMALL, "vocab_size": 100, "num_hidden_layers": 40, **settings})
    made.architectures = ["LlamaForCausalLM"]
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config(tmp_path_factory.mktemp("llama"))


def test_all_is_told_of_a_config_alone(llama: Path, cli: Any) -> None:
    done = cli("check", llama, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(llama))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert (found["task"], found["layers"]) == ("text-generation", [40, 2])
    assert found["inputs"] == {"input_ids": "i64[batch, seq]", "attention_mask": "i64[batch, seq]"}
    assert found["weights"]["none"] == 4 * found["parameters"]
    assert found["weights"]["int8"] < found["weights"]["fp16"] < found["weights"]["none"]
    lacks = {quant for by in found["compiles"].values() for quant, compiles in by.items() if not compiles}
    assert lacks == {"int8-static"}, "which does not calibrate functions that have states"
    assert list(found["compiles"]) == ["x86", "arm", "cuda"]


def test_tables_take_fewer_bits_too(tmp_path: Path) -> None:
    """More than half of a small encoder is its table of words."""
    made = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, vocab_size=2000
    )
    made.architectures = ["BertForSequenceClassification"]
    made.save_pretrained(tmp_path)
    found = outline(tmp_path)
    sizes = weight_bytes(found)
    assert 2000 * 32 < found.products < found.parameters
    assert sizes["int8"] < 0.4 * sizes["none"]


def test_states_and_int8_static(llama: Path, cli: Any) -> None:
    done = cli("check", llama, "--target", "x86", "--quant", "int8-static")
    assert done.code == 1
    assert "no: it does not calibrate functions that have states" in done.out
    done = cli("check", llama, "--target", "x86", "--quant", "int8-static", "--task", "language-modeling")
    assert done.code == 0, done.out


def test_a_target_and_a_precision(llama: Path, cli: Any) -> None:
    done = cli("check", llama, "--target", "cuda", "--quant", "int8")
    assert done.code == 0, done.err
    assert "40 layers looked at" in done.out
    assert "cuda     int8        yes" in done.out
    assert "fp16" not in done.out


def test_groups_and_zero_points(llama: Path, cli: Any) -> None:
    """What `compile` takes and refuses of them is foretold, and what they weigh."""
    sizes = {}
    for options in ("", "--group 16", "--group 128", "--group 0", "--group 16 --zero-points"):
        done = cli("check", llama, "--target", "x86", "--json", *options.split())
        sizes[options] = json.loads(done.out)["weights"]
    assert sizes["--group 0"]["w4"] < sizes["--group 128"]["w4"] < sizes[""]["w4"] < sizes["--group 16"]["w4"]
    assert (
        sizes["--group 0"]["w8"] < sizes["--group 128"]["w8"] == sizes[""]["w8"] < sizes["--group 16"]["w8"]
    )
    for mode in ("w8", "w4", "w4a8"):
        assert sizes["--group 16"][mode] < sizes["--group 16 --zero-points"][mode]
    assert len({size["int8"] for size in sizes.values()}) == 1
    done = cli("check", llama, "--zero-points", "--group", "0")
    assert "yes" in done.out
    assert "w8" not in done.out, "whole rows of 8 bits have none"
    assert "cuda     w4          no: the target has no kernels for groups with zero points" in done.out
    assert cli("check", llama, "--target", "cuda", "--zero-points").code == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--quant int8 --group 32", "groups are of weights in 8 and 4 bits"),
        ("--quant int8-static --zero-points", "zero points are of weights in 8 and 4 bits"),
        ("--quant w8 --group 0 --zero-points", "whole rows of 8 bits have no zero points"),
        ("--group 40", "there are no products with such groups"),
    ],
)
def test_groups_that_compile_refuses(llama: Path, cli: Any, options: str, words: str) -> None:
    done = cli("check", llama, *options.split())
    assert (done.code, words in done.err) == (2, True)


def test_what_no_target_has_is_listed(llama: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.targets.backends import find_backend

    kind = type(find_backend("cuda"))
    whole = kind.lowerings
    monkeypatch.setattr(
        kind, "lowerings", lambda self: {k: v for k, v in whole(self).items() if k != "linear"}
    )
    done = cli("check", llama)
    assert done.code == 0, "x86 and arm remain"
    assert "no kernel on cuda: model.layers.0.self_attn.q_proj" in done.out
    assert cli("check", llama, "--target", "cuda").code == 1


def test_ops_that_cannot_be_imported_are_listed(
    llama: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmc.compiler.frontends import aten

    monkeypatch.delitem(aten.TABLE, "silu.default")
    monkeypatch.delitem(aten.TABLE, "rsqrt.default", raising=False)
    done = cli("check", llama)
    assert done.code == 1
    assert "cannot be imported: aten.silu.default x2 at model.layers.*.mlp" in done.out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "nothing"}, "'nothing' is not supported"),
        ({"hidden_size": 10**9}, "hidden_size is larger than any weight"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is larger than"),
        ({"encoder_layers": 10**9}, "encoder_layers is larger than 1000"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is larger than 1000"),
        ({"backbone_config": {"depths": [2, 10**9]}}, "depths is larger than 1000"),
        ({"num_local_experts": 10**6}, "num_local_experts is larger than 16384"),
        ({"num_channels": 10**9}, "num_channels is larger than 4096"),
        ({"num_attention_heads": 7}, "The hidden size (32) is not a multiple"),
    ],
    ids=str,
)
def test_what_is_no_model_is_a_sentence(
    settings: dict[str, Any], words: str, tmp_path: Path, cli: Any
) -> None:
    config(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    done = cli("check", tmp_path)
    assert (done.code, words in done.err) == (2, True), done.err


def test_a_file_is_checked_as_a_whole(cli: Any, tmp_path: Path) -> None:
    assert cli("check", tmp_path / "absent.onnx").code == 2


def blocks(folder: Path) -> Path:
    """A product of 1024 weights in 4 bits, with an axis that is open and an input of one number."""
    named = ("x", TensorProto.FLOAT, ["rows", 64]), ("times", TensorProto.FLOAT, [])
    parts = ["x", "levels", "scales"]
    nodes = [
        onnx.helper.make_node(
            "MatMulNBits", parts, ["z"], domain="com.microsoft", N=16, K=64, bits=4, block_size=32
        ),
        onnx.helper.make_node("Mul", ["z", "times"], ["y"]),
    ]
    arrays = {"levels": np.zeros((16, 2, 16), np.uint8), "scales": np.full(32, 0.1, np.float32)}
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info(*each) for each in named],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "m.onnx")
    return folder / "m.onnx"


def test_a_file_is_told_as_a_compile_reads_it(tmp_path: Path, cli: Any) -> None:
    """Weights in few bits become plain where a target has no kernels for them; axes and inputs may be fixed."""
    file = blocks(tmp_path)
    found = json.loads(cli("check", file, "--json").out)
    assert (found["parameters"], found["inputs"]["x"]) == (1024, "f32[batch, 64]")
    assert found["weights"]["none"] < 1024
    assert found["targets"] == {"x86": [], "arm": [], "cuda": []}
    fixed = json.loads(cli("check", file, "--json", "--dim", "rows=3", "--fix", "times=2").out)
    assert fixed["inputs"] == {"x": "f32[3, 64]"}
    done = cli("check", tmp_path, "--dim", "rows=3")
    assert (done.code, "--dim is for ONNX files" in done.err) == (2, True)


def test_every_kind_of_layer_is_looked_at() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    made = transformers.Gemma3TextConfig(num_hidden_layers=12, layer_types=kinds * 2)
    few = few_layers(made)
    assert (few.num_hidden_layers, set(few.layer_types)) == (2, set(kinds))
    assert made.num_hidden_layers == 12


def test_no_weight_is_read(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are zeros in no memory: an array of them has one number."""
    found = outline(llama)
    assert found.graph is not None
    weights = [n.attributes["value"].array for n in found.graph.nodes if n.op == "constant"]
    large = [w for w in weights if w.size > 1000]
    assert large
    assert all(w.strides == (0,) * w.ndim for w in large)
    assert weight_bytes(found)["none"] == 4 * found.parameters
    assert outlines.FEW == 2


def test_a_head_that_picks_rows_by_a_mask(cli: Any, tmp_path: Path) -> None:
    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    made = transformers.BartConfig(d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50, **sizes)
    made.architectures = ["BartForSequenceClassification"]
    made.save_pretrained(tmp_path)
    done = cli("check", tmp_path)
    assert done.code == 0, done.out


def test_what_cannot_be_told_without_weights_is_no_refusal(
    llama: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmc.errors import LlmcError

    def fail(*_: Any) -> Any:
        raise LlmcError("torch.export cannot trace the model: fake tensors have no values")

    monkeypatch.setattr(outlines, "export", fail)
    done = cli("check", llama)
    assert (done.code, "unknown" in done.out) == (2, True)
    assert "cannot be told without the weights, compile to see: torch.export cannot trace" in done.out


def test_kernels_are_chosen_without_tvm(llama: Path) -> None:
    """Importing TVM takes as long as importing torch, and a graph's kernels can be chosen before one is written."""
    code = "import sys; from llmc.cli import main; code = main(); assert 'tvm' not in sys.modules; sys.exit(code)"
    asked = [sys.executable, "-c", code, "check", str(llama), "--json"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiles = json.loads(done.stdout)["compiles"].values()
    assert all(yes for by in compiles for quant, yes in by.items() if quant != "int8-static")


def test_the_collector_is_as_before(llama: Path, cli: Any) -> None:
    assert gc.isenabled()
    assert cli("check", llama, "--target", "arm").code == 0
    assert gc.isenabled()


def test_a_precision_that_finds_nothing_is_no(cli: Any, tmp_path: Path) -> None:
    """A product of 8 outputs is none for int8; 4 bits take it."""
    weight = onnx.numpy_helper.from_array(np.ones((64, 8), np.float32), "w")
    values = [
        onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", k]) for n, k in (("x", 64), ("y", 8))
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "m.onnx"
    )
    done = cli("check", tmp_path / "m.onnx", "--target", "x86", "--quant", "int8")
    assert (done.code, "no: it has nothing to quantise so" in done.out) == (1, True)
    found = json.loads(cli("check", tmp_path / "m.onnx", "--target", "x86", "--json").out)
    assert {mode for mode, yes in found["compiles"]["x86"].items() if not yes} == set(found["idle"]["x86"])
    assert {"int8", "int8-static"} <= set(found["idle"]["x86"])
    done = cli("compile", tmp_path / "m.onnx", "--quant", "int8", "-o", tmp_path / "m.llmc")
    assert "changes nothing in this model" in done.err


def levels(op: str) -> onnx.ModelProto:
    """A file as ONNX Runtime's dynamic quantisation writes them: 16 outputs, 432 levels each."""
    whole = np.random.default_rng(5).integers(-127, 128, (16, 48, 3, 3)).astype(np.int8)
    shape, w = (["b", 48, 5, 5], whole) if op == "ConvInteger" else (["b", 432], whole.reshape(16, -1).T)
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node(op, ["q", "w", "z", "zw"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["s", "sw"], ["t"]),
        node("Mul", ["f", "t"], ["y"]),
    ]
    weights = {"w": w, "zw": np.int8(0), "sw": np.float32(0.01)}
    made = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()]
    ends = [[info("x", TensorProto.FLOAT, shape)], [info("y", TensorProto.FLOAT, None)]]
    graph = onnx.helper.make_graph(nodes, "g", *ends, made)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("op", ["MatMulInteger", "ConvInteger"])
def test_a_file_that_came_quantised(cli: Any, tmp_path: Path, op: str) -> None:
    """Its levels count, and no precision quantises them again: check says so, and compile."""
    onnx.save(levels(op), tmp_path / "m.onnx")
    found = json.loads(cli("check", tmp_path / "m.onnx", "--target", "x86", "--json").out)
    assert 16 * 432 < found["parameters"] < 16 * 432 + 10  # scales, and the numbers of rounding
    assert 16 * 432 < found["weights"]["none"] < 16 * 432 + 40
    assert found["quantised"]
    assert [mode for mode, yes in found["compiles"]["x86"].items() if yes] == ["none"]
    for mode in ("int8", "bf16", "w8"):
        done = cli("check", tmp_path / "m.onnx", "--target", "x86", "--quant", mode)
        assert (done.code, "no: it is quantised already" in done.out) == (1, True)
        done = cli("compile", tmp_path / "m.onnx", "--quant", mode, "-o", tmp_path / "m.llmc")
        assert (done.code, f"is quantised already, and --quant {mode} changes nothing" in done.err) == (
            1,
            True,
        )
        assert "1 of 1 products of levels that the file has" in done.err
        assert "that the pass knows" not in done.err
