"""A graph's text is a model for every command; `llmc diff` shows two of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from stateful_graphs import encoder_decoder

import llmc
from llmc.cli import main
from llmc.compiler.frontends import dispatch, graph_text
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.sentence import Dense, Sentence
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph
from llmc.compiler.graph_diff import Compared
from llmc.compiler.graph_file import read_graph, write_graph
from llmc.compiler.module import Module
from llmc.compiler.ops import input_, make
from llmc.demo import model_folder
from llmc.errors import LlmcError

pytestmark = pytest.mark.xdist_group("graph-files")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's graph as imported, in two files."""
    folder = tmp_path_factory.mktemp("graphs")
    assert main(["opt", str(model_folder()), "-O0", "-o", str(folder / "demo.txt")]) == 0
    return folder / "demo.txt"


@pytest.fixture
def text(written: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    for file in written.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / written.name


def test_what_the_import_knows_is_kept(written: Path) -> None:
    assert sorted(p.name for p in written.parent.iterdir()) == ["demo.npz", "demo.txt"]
    found, folder = dispatch.load(written), dispatch.load(model_folder())
    assert str(found.graph) == str(folder.graph)
    for name in ("name", "task", "labels", "model_type", "architecture", "scores", "preprocess", "sentence"):
        assert getattr(found, name) == getattr(folder, name), name
    assert found.tokenizer is not None
    assert folder.tokenizer is not None
    assert found.tokenizer.text == folder.tokenizer.text
    for name in graph_text._SETTINGS:
        assert getattr(found.tokenizer, name) == getattr(folder.tokenizer, name), name


def test_everything_that_may_be_known_comes_back(written: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(tmp_path, 7, 3, "<p>", "{}", "left", "left", ("input_ids",), {"q": "query: "}, "q")
    sentence = Sentence("", ("mean", "max"), ("normalize",), (Dense(Path(), True, "Tanh"),), width=5)
    module = encoder_decoder()
    graph = module.functions["encode"]
    known = Imported(
        graph, "n", "t", "bert", "Bert", ("a",), tokenizer, sentence, {"mean": [1]}, module.functions, "none"
    )
    graph_text.write(tmp_path / "m.txt", known)
    found = dispatch.load(tmp_path / "m.txt")
    assert list(found.functions) == ["encode", "step"]
    for name in ("name", "task", "model_type", "architecture", "labels", "sentence", "preprocess", "scores"):
        assert getattr(found, name) == getattr(known, name), name
    for name in (*graph_text._SETTINGS, "text"):
        assert getattr(found.tokenizer, name) == getattr(tokenizer, name), name


@pytest.mark.slow
def test_the_artifact_is_that_of_the_model(written: Path, demo_folder: Path, tmp_path: Path) -> None:
    options = {"target": "x86-avx2", "level": 1, "max_seq": 64}
    llmc.compile(written, tmp_path / "a.llmc", keep=tmp_path / "kept", **options)
    llmc.compile(demo_folder, tmp_path / "b.llmc", **options)
    for file in (tmp_path / "a.llmc").iterdir():
        assert file.read_bytes() == (tmp_path / "b.llmc" / file.name).read_bytes(), file.name
    assert dispatch.load(tmp_path / "kept" / "imported.txt").labels == ("negative", "positive")
    assert read_graph(tmp_path / "kept" / "optimised.txt").facts["labels"]


def test_opt_reads_no_torch_and_writes_again(written: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from llmc.cli import main; "
        f"code = main(['opt', {str(written)!r}, '-o', {str(tmp_path / 'after.txt')!r}]); "
        "print(code, sorted({'torch', 'transformers', 'tvm', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n", done.stderr
    assert read_graph(tmp_path / "after.txt").facts == read_graph(written).facts


def test_inspect(cli: Any, written: Path) -> None:
    facts = json.loads(cli("inspect", written, "--json").out)
    assert (facts["task"], facts["labels"]) == ("text-classification", ["negative", "positive"])
    assert facts["written_by"] == "BertForSequenceClassification"
    assert facts["dims"]["batch"] == [1, 1024]
    assert "logits" in cli("inspect", written).out


def test_explain(cli: Any, written: Path, tmp_path: Path) -> None:
    done = cli("explain", written, "bert.pooler.dense", "--target", "x86-avx2")
    assert done.code == 0, done.err
    assert "made of" in done.out
    write_graph(tmp_path / "m.txt", encoder_decoder())
    assert "explain tells of models of one function" in cli("explain", tmp_path / "m.txt").err


def test_several_functions(cli: Any, tmp_path: Path) -> None:
    module = encoder_decoder()
    write_graph(tmp_path / "m.txt", module)
    done = cli(
        "opt", tmp_path / "m.txt", "--passes", "cse,simplify", "--time-passes", "-o", tmp_path / "n.txt"
    )
    assert done.code == 0, done.err
    assert "function step" in done.err
    again = read_graph(tmp_path / "n.txt").module
    assert list(again.functions) == ["encode", "step"]
    assert set(again.states) == set(module.states)
    facts = json.loads(cli("inspect", tmp_path / "n.txt", "--json").out)
    assert list(facts["functions"]) == ["encode", "step"]
    assert list(facts["states"]) == list(again.states)
    assert "inputs of step" in cli("inspect", tmp_path / "n.txt").out
    shown = json.loads(cli("opt", tmp_path / "m.txt", "--passes", "cse", "--json").out)
    assert list(shown["passes"]) == ["encode", "step"]


def test_bounds_and_task(written: Path) -> None:
    assert dispatch.load(written, max_seq=16, max_batch=2).graph.dims == {"batch": (1, 2), "seq": (1, 16)}
    assert dispatch.load(written, task="text-classification").task == "text-classification"
    for options, words in (
        ({"max_seq": 100_000}, "max_seq 100000 is not within the graph's bounds"),
        ({"max_batch": 0}, "max_batch 0 is not within"),
        ({"task": "fill-mask"}, "was imported for text-classification"),
        ({"task": "nonsense"}, "was imported for text-classification"),
    ):
        with pytest.raises(LlmcError, match=words):
            dispatch.load(written, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [1]},
        {"task": 3},
        {"tokenizer": {}},
        {"tokenizer": None},
        {"sentence": {"pooling": 1}},
        {"scores": []},
        {"scores": "tanh"},
        {"tokenizer": {"padding_side": "up"}},
        {"tokenizer": {"truncation_side": "none"}},
        {"tokenizer": {"max_length": 0}},
        {"tokenizer": {"pad_id": -1}},
    ],
    ids=str,
)
def test_a_changed_description_is_a_sentence(text: Path, change: dict[str, Any]) -> None:
    found = read_graph(text)
    settings = change.get("tokenizer")
    if settings:
        change = {"tokenizer": {**found.facts["tokenizer"], **settings}}
    facts = {**found.facts, **change}
    write_graph(text, found.module, {**found.texts, "model.json": json.dumps(facts)})
    with pytest.raises(LlmcError, match=r"model\.json is not as llmc writes it"):
        dispatch.load(text)


def test_graphs_that_passes_make_are_kept_with_weights(
    cli: Any, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli(
        "opt",
        written,
        "--passes",
        "cse,fuse",
        "--print-after",
        "fuse",
        "--keep",
        tmp_path,
        "-o",
        tmp_path / "o.txt",
    )
    assert (done.code, "# after" in done.err) == (0, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00_fuse.npz", "00_fuse.txt", "o.npz", "o.txt"]
    assert (tmp_path / "00_fuse.txt").read_text() == (tmp_path / "o.txt").read_text()
    monkeypatch.setenv("LLMC_DUMP", str(tmp_path / "dump"))
    monkeypatch.setenv("LLMC_DUMP_WEIGHTS", "1")
    assert cli("opt", written, "--passes", "cse").code == 0
    assert (
        str(read_graph(tmp_path / "dump" / "00_input.txt").module.functions["forward"]) == written.read_text()
    )
    assert cli("opt", written, "--passes", "cse", "--keep", tmp_path, "--print-after", "fold").code == 1


def test_places_are_checked_before_the_import(cli: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros(2))
    done = cli("opt", tmp_path / "absent", "-o", tmp_path / "data.txt")
    assert "would take the place of a file that llmc did not write" in done.err


# --- ONNX


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """y = x a + b, the weights by name."""
    rng = np.random.default_rng(0)
    weights = {"fc.weight": (4, 6), "fc.bias": (6,), "out.weight": (9, 6)}
    tensors = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["h"]),
        helper.make_node("Add", ["h", "fc.bias"], ["s"]),
        helper.make_node("Gemm", ["s", "out.weight"], ["y"], transB=1),
    ]
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 4), ("y", 9))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    file = tmp_path / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def test_weights_of_an_onnx_file(cli: Any, plain: Path, tmp_path: Path) -> None:
    assert cli("opt", plain, "-O0", "-o", tmp_path / "p.txt").code == 0
    (tmp_path / "p.npz").unlink()
    missing = cli("opt", tmp_path / "p.txt")
    assert missing.code == 1
    assert "--weights" in missing.err
    done = cli("opt", tmp_path / "p.txt", "-O0", "--weights", plain)
    assert (done.code, done.out) == (0, (tmp_path / "p.txt").read_text())
    by_hand = """dims batch=1..4
%0 = input() {name="x", dtype="f32", shape=(batch, 6)}
%w0 = constant() {value=weight("out.weight")}
%1 = linear(%0, %w0)
return {"y": %1}
"""
    (tmp_path / "hand.txt").write_text(by_hand)
    assert cli("opt", tmp_path / "hand.txt", "--weights", plain).code == 0
    (tmp_path / "hand.txt").write_text(by_hand.replace("out.weight", "out.wait"))
    assert "did you mean out.weight?" in cli("opt", tmp_path / "hand.txt", "--weights", plain).err


def test_weights_that_are_none(
    cli: Any, plain: Path, fake_artifact: Path, written: Path, tmp_path: Path
) -> None:
    for model, weights, words in (
        (plain, plain, "--weights is for a graph's text"),
        (written, fake_artifact, "this is an artifact"),
        (written, tmp_path / "absent", "was not found"),
    ):
        done = cli("opt", model, "--weights", weights)
        assert (done.code, words in done.err) == (1, True), done.err


# --- diff


def test_the_same(cli: Any, written: Path) -> None:
    done = cli("diff", written, written, "--data", "random")
    assert done.code == 0, done.err
    assert "0 changed, 0 only in A, 0 only in B" in done.out
    assert "outputs are within the tolerance" in done.out
    assert done.out.endswith("the same\n")


def test_another_attribute_is_found(cli: Any, written: Path, text: Path) -> None:
    text.write_text(text.read_text().replace("eps=1e-12", "eps=0.5", 1))
    done = cli("diff", written, text, "--data", "random", "--json")
    assert done.code == 1
    facts = json.loads(done.out)["functions"]["forward"]
    (row,) = facts["rows"]
    assert (row["mark"], row["changes"]) == ("~", ["eps 1e-12 -> 0.5"])
    assert facts["nodes"] == {"equal": facts["nodes"]["equal"], "changed": 1, "only_a": 0, "only_b": 0}
    assert facts["numbers"]["first"]["b"].startswith("layer_norm of bert.embeddings.LayerNorm")
    assert facts["numbers"]["outputs"]["logits"]["difference"] > 0
    shown = cli("diff", written, text).out
    assert "eps 1e-12 -> 0.5" in shown
    assert " equal" in shown


def test_another_weight_is_found(cli: Any, written: Path, text: Path) -> None:
    from dataclasses import replace

    from llmc.compiler.graph import Weight
    from llmc.compiler.ops import make

    imported = dispatch.load(text)

    def change(node: Any) -> Any:
        if node.op != "constant" or not node.attributes["value"].name.endswith("classifier.bias"):
            return node
        weight = node.attributes["value"]
        return make("constant", (), node.source, value=Weight(weight.array + 0.25, weight.name))

    graph_text.write(text, replace(imported, graph=imported.graph.replace(change)))
    facts = json.loads(cli("diff", written, text, "--json", "--data", "random").out)["functions"]["forward"]
    assert list(facts["weights"]["different"].values()) == [pytest.approx(0.25)]
    assert facts["numbers"]["outputs"]["logits"]["difference"] == pytest.approx(0.25, rel=1e-5)
    assert "largest difference 0.25" in cli("diff", written, text).out


def test_what_makes_answers_of_outputs_is_compared(cli: Any, written: Path, text: Path) -> None:
    """Equal graphs with other labels, or another tokenizer, answer otherwise."""
    found = read_graph(text)
    labels = {"labels": ["good", "bad"], "name": "another"}
    write_graph(text, found.module, {**found.texts, "model.json": json.dumps({**found.facts, **labels})})
    done = cli("diff", written, text)
    assert (done.code, "labels: [" in done.out, "name" in done.out.splitlines()[0]) == (1, True, False), (
        done.out
    )
    assert json.loads(cli("diff", written, text, "--json").out)["beside"][0].startswith("labels: ")
    assert cli("diff", written, text, "--data", "random", "--tolerance", "1e-4").code == 0, "outputs alone"

    tokens = json.loads(found.texts["tokenizer.json"])
    tokens["normalizer"] = {"type": "Lowercase"}
    write_graph(text, found.module, {**found.texts, "tokenizer.json": json.dumps(tokens)})
    assert "tokenizer.json: sha256 " in cli("diff", written, text).out


def test_outputs_of_one_graph_alone_are_no_agreement(cli: Any, tmp_path: Path) -> None:
    x = input_("x", "f32", (2,))
    y, z = make("exp", (x,)), make("neg", (x,))
    write_graph(tmp_path / "a.txt", Graph((x,), {"y": y, "z": z}, {}))
    write_graph(tmp_path / "b.txt", Graph((x,), {"y": y}, {}))
    write_graph(tmp_path / "c.txt", Graph((x,), {"z": z, "y": y}, {}))
    run = ("--data", "random", "--tolerance", "1e-4")
    assert cli("diff", tmp_path / "a.txt", tmp_path / "b.txt", *run).code == 1
    assert cli("diff", tmp_path / "b.txt", tmp_path / "a.txt", *run).code == 1
    assert "outputs in another order: y, z -> z, y" in cli("diff", tmp_path / "a.txt", tmp_path / "c.txt").out
    assert not Compared(1e-4).same, "nothing was compared"


def test_passes_change_nodes_but_not_numbers(cli: Any, written: Path, tmp_path: Path) -> None:
    assert cli("opt", written, "-o", tmp_path / "o3.txt").code == 0
    (tmp_path / "data.txt").write_text("a fine film\nbad\n")
    run = ("diff", written, tmp_path / "o3.txt", "--data", tmp_path / "data.txt")
    done = cli(*run, "--tolerance", "1e-4")
    assert done.code == 0, done.out
    assert "2 samples" in done.out
    assert "outputs are within the tolerance" in done.out
    assert " mha " in done.out
    assert cli(*run).code == 1


def test_functions_and_states(cli: Any, tmp_path: Path) -> None:
    write_graph(tmp_path / "a.txt", encoder_decoder())
    write_graph(tmp_path / "b.txt", Module({"encode": encoder_decoder().functions["encode"]}))
    done = cli("diff", tmp_path / "a.txt", tmp_path / "b.txt", "--data", "random")
    assert (done.code, done.out.splitlines()[0]) == (1, "function step: only in A")
    assert "state cross_keys" in done.out


def test_of_other_frontends(cli: Any, plain: Path, tmp_path: Path) -> None:
    assert cli("opt", plain, "-O0", "-o", tmp_path / "p.txt").code == 0
    assert cli("diff", plain, tmp_path / "p.txt").code == 0


def test_what_cannot_be_compared_is_2(
    cli: Any, written: Path, plain: Path, fake_artifact: Path, tmp_path: Path
) -> None:
    for arguments, words in (
        ((written, fake_artifact), "an artifact holds no graph to compare"),
        ((written, tmp_path / "absent.txt"), "no such model file"),
        ((written, plain, "--data", "random"), "the graphs take different inputs"),
        ((written, written, "--data", tmp_path / "absent.npz"), "no such calibration file"),
        ((written, written, "--tolerance", "1"), "--tolerance judges what --data shows"),
        ((written,), "Missing argument"),
    ):
        done = cli("diff", *arguments)
        assert (done.code, words in done.err) == (2, True), done.err
