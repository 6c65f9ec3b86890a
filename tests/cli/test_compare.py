"""`llmc compare`: the demo's model beside itself through passes, two graphs, and what cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stateful_graphs import encoder_decoder, weights
from writers import write_model

from llmc.cli import main
from llmc.compiler.frontends import dispatch, graph_text
from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.graph_file import write_graph
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make
from llmc.demo import model_folder

pytestmark = pytest.mark.xdist_group("compare")
HOSTILE = "\x1b[2J<b>\u202e"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's graph as imported, in two files, and two sentences."""
    folder = tmp_path_factory.mktemp("graphs")
    assert main(["opt", str(model_folder()), "-O0", "-o", str(folder / "demo.txt")]) == 0
    (folder / "data.txt").write_text("a fine film\n\nthe plot is a mess\n")
    return folder / "demo.txt"


@pytest.fixture
def data(written: Path) -> Path:
    return written.with_name("data.txt")


def facts_of(cli: Any, *arguments: Any, code: int = 0) -> Any:
    done = cli("compare", *arguments, "--json")
    assert done.code == code, done.err
    return json.loads(done.out)


def changed(model: Path, to: Path, change: Callable[[Node], Node]) -> Path:
    imported = dispatch.load(model)
    graph_text.write(to, replace(imported, graph=imported.graph.replace(change)))
    return to


def scaled(name: str, factor: float) -> Callable[[Node], Node]:
    """Weights whose names end so, times a number."""

    def change(node: Node) -> Node:
        if node.op != "constant" or not str(node.attributes["value"].name).endswith(name):
            return node
        weight = node.attributes["value"]
        return make("constant", (), node.source, value=Weight(weight.array * np.float32(factor), weight.name))

    return change


def test_int8_of_the_demo(cli: Any, written: Path, data: Path) -> None:
    run = (written, "--quant", "int8", "--target", "x86-avx2", "--data", data)
    facts = facts_of(cli, *run)["functions"]["forward"]
    assert (facts["samples"], facts["first"], facts["not_comparable"]) == (2, None, {})
    layers = {layer["layer"]: layer for layer in facts["layers"]}
    assert next(iter(layers)) == "bert.embeddings.LayerNorm"
    assert list(layers)[-1] == "classifier"
    assert layers["bert.encoder.layer.1.output.dense"]["op"] == "linear, qlinear"
    assert all(15 < layer["db"] < 60 for layer in layers.values())
    assert facts["outputs"]["logits"]["db"] == layers["classifier"]["db"]
    strict = facts_of(cli, *run, "--bound", "100", code=1)["functions"]["forward"]
    assert strict["first"]["layer"] == "bert.embeddings.LayerNorm", "the first in order, not the worst"


def test_one_layer_alone_is_found(cli: Any, written: Path, data: Path, tmp_path: Path) -> None:
    other = changed(written, tmp_path / "b.txt", scaled("layer.1.intermediate.dense.weight", 1.25))
    told = cli("compare", written, other, "--data", data, "--bound", "60")
    assert told.code == 1, told.err
    assert "first below 60 dB: linear of bert.encoder.layer.1.intermediate.dense" in told.out
    assert re.search(r"layer\.0\.output\.LayerNorm +layer_norm +equal +█{24} ", told.out)
    assert cli("compare", written, other, "--data", data, "--bound", "-100").code == 0


def test_two_files_one_of_them_fused_quantised_and_packed(
    cli: Any, written: Path, data: Path, tmp_path: Path
) -> None:
    text = "tie,simplify,fold,cse,fuse,fold,qkv,fold,cse,ragged,quantize,qfuse,cse,qattention"
    assert cli("opt", written, "--passes", text, "-o", tmp_path / "q.txt").code == 0
    for samples in (data, "random"):
        facts = facts_of(cli, written, tmp_path / "q.txt", "--data", samples)["functions"]["forward"]
        layers = {layer["layer"]: layer for layer in facts["layers"]}
        for i in range(2):
            place = f"bert.encoder.layer.{i}"
            assert layers[f"{place}.attention.self"]["op"] == "reshape, ragged_mha"
            assert layers[f"{place}.intermediate.intermediate_act_fn"]["op"] == "gelu, qlinear"
            assert layers[f"{place}.output"]["op"] == "add, qlinear"
        assert all(20 < layer["db"] < 60 for layer in layers.values())
        assert facts["not_comparable"]["bert.encoder.layer.0.output.dense"].startswith("other values there")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (("--prune", "heads:0.25"), "bert.encoder.layer.0.attention.self"),
        (("--prune", "neurons:0.25"), "bert.encoder.layer.0.intermediate.dense"),
        (("--factorize", "64"), ""),
        (("--passes", "fuse"), "bert.pooler.dense"),
        (("-O3",), "bert.encoder.layer.0.attention.self.query"),
    ],
    ids=str,
)
def test_other_passes(cli: Any, written: Path, data: Path, options: tuple[str, ...], left: str) -> None:
    facts = facts_of(cli, written, *options, "--data", data, "--bound", "-100")["functions"]["forward"]
    assert len(facts["layers"]) >= 9
    assert left in {"": "", **facts["not_comparable"]}
    if "prune" in options[0]:
        assert facts["not_comparable"][left].startswith("shapes differ: f32[batch, seq, ")


def test_a_pass_of_a_user(cli: Any, written: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "from llmc.compiler.ops import make\n"
        "from llmc.compiler.pipeline import LOSSY\n"
        "from llmc.compiler.rewrite import RewritePass\n"
        "def twice(node):\n"
        '    """tanh(x) -> sigmoid(x)"""\n'
        '    if node.op == "tanh":\n'
        '        return make("sigmoid", node.inputs, node.source)\n'
        "class Noisy(RewritePass):\n"
        "    keeps = LOSSY\n"
        "    rules = (twice,)\n"
    )
    run = (written, "--add-pass", f"{tmp_path / 'noisy.py'}:Noisy", "--data", data)
    facts = facts_of(cli, *run, code=1)["functions"]["forward"]
    assert facts["first"]["layer"] == "bert.pooler.dense"


def test_the_same_model_from_an_onnx_file(cli: Any, written: Path, data: Path, tmp_path: Path) -> None:
    """Its attention is many nodes, and the tokenizer is the other model's."""
    assert cli("opt", written, "-O0", "-o", tmp_path / "a.onnx").code == 0
    facts = facts_of(cli, tmp_path / "a.onnx", written, "--data", data, "--bound", "120")
    layers = {layer["layer"] for layer in facts["functions"]["forward"]["layers"]}
    assert {"bert.encoder.layer.0.attention.self", "bert.encoder.layer.1.output.dense"} <= layers


def test_a_model_with_states_runs_a_prompt(cli: Any, tmp_path: Path) -> None:
    model = write_model(tmp_path / "writer")
    (tmp_path / "data.txt").write_text("the red house sees a bird\n")
    for samples in (tmp_path / "data.txt", "random"):
        facts = facts_of(cli, model, "--quant", "int8", "--target", "x86-avx2", "--data", samples)
        found = facts["functions"]["step"]
        assert {"logits", "state keys", "state values"} == set(found["outputs"])
        assert all(25 < output["db"] < 70 for output in found["outputs"].values())
    done = cli("diff", model, model, "--data", tmp_path / "data.txt")
    assert done.code == 0, done.err


def test_several_functions(cli: Any, tmp_path: Path) -> None:
    write_graph(tmp_path / "a.txt", encoder_decoder())
    write_graph(tmp_path / "b.txt", Module({"encode": encoder_decoder().functions["encode"]}))
    told = cli("compare", tmp_path / "a.txt", "--passes", "fuse", "--data", "random")
    assert told.code == 0, told.err
    assert "function encode" in told.out
    assert "function step" in told.out
    told = cli("compare", tmp_path / "a.txt", tmp_path / "b.txt", "--data", "random")
    assert (told.code, "function step: only in A" in told.out) == (1, True)
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=(1, 3, 32)).astype(np.float32) for n in ("text", "x")}
    np.savez(tmp_path / "d.npz", **arrays)
    facts = facts_of(cli, tmp_path / "a.txt", "--passes", "fuse", "--data", tmp_path / "d.npz")
    assert [f["samples"] for f in facts["functions"].values()] == [1, 1]
    np.savez(tmp_path / "text.npz", text=arrays["text"])
    told = cli("compare", tmp_path / "a.txt", "--passes", "fuse", "--data", tmp_path / "text.npz")
    assert told.code == 0, told.err
    assert "not run: the data lacks an input of it" in told.out
    np.savez(tmp_path / "none.npz", z=arrays["text"])
    told = cli("compare", tmp_path / "a.txt", "--passes", "fuse", "--data", tmp_path / "none.npz")
    assert (told.code, "there is no input 'z'" in told.err) == (2, True)


def one_layer(weight: Any, path: str = "layer", outputs: str = "y") -> Graph:
    x = input_("x", "f32", (1, 2))
    y = make("linear", (x, constant(np.float32(weight), "w")), Source(path))
    return Graph((x,), {outputs: y}, {})


def test_what_is_not_finite_is_named(cli: Any, tmp_path: Path) -> None:
    write_graph(tmp_path / "a.txt", one_layer([[1, 2]]))
    write_graph(tmp_path / "b.txt", one_layer([[1, np.nan]]))
    told = cli("compare", tmp_path / "a.txt", tmp_path / "b.txt", "--data", "random", "--samples", "1")
    assert told.code == 1, told.err
    assert "NaN in B (1)" in told.out
    facts = facts_of(cli, tmp_path / "a.txt", tmp_path / "b.txt", "--data", "random", code=1)
    first = facts["functions"]["forward"]["first"]
    assert (first["layer"], first["db"], first["equal"], first["largest_difference"]) == (
        "layer",
        None,
        False,
        None,
    )
    assert list(first["not_finite"]) == ["NaN in B"]
    assert cli("compare", tmp_path / "b.txt", tmp_path / "b.txt", "--data", "random").code == 0


def test_an_output_that_one_lacks_is_below_any_bound(cli: Any, tmp_path: Path) -> None:
    write_graph(tmp_path / "a.txt", one_layer([[1, 2]]))
    write_graph(tmp_path / "b.txt", one_layer([[1, 2]], outputs="z"))
    told = cli("compare", tmp_path / "a.txt", tmp_path / "b.txt", "--data", "random")
    assert told.code == 1
    assert re.search(r"output y +only in A", told.out)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_names_are_escaped(cli: Any, tmp_path: Path) -> None:
    place = tmp_path / "<i>a"
    place.mkdir()
    write_graph(place / "a.txt", one_layer([[1, 2]], HOSTILE))
    write_graph(place / "b.txt", one_layer([[1, 2.1]], HOSTILE))
    page = tmp_path / "page.html"
    told = cli("compare", place / "a.txt", place / "b.txt", "--data", "random", "--html", page)
    assert told.code == 0, told.err
    shown = r"\x1b[2J<b>\u202e"
    assert shown in told.out
    assert "\x1b" not in told.out
    read = _Text()
    read.feed(page.read_text("utf-8"))
    assert shown in read.words
    assert not {"i", "b", "script", "link", "img"} & set(read.tags)
    assert not read.links, "one file, which needs no other"
    assert "tr" in read.tags


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no B": (("--data", "random"), "Give B, or options"),
    "a target is no other model": (("--target", "x86", "--data", "random"), "Give B, or options"),
    "both": (("a.txt", "--quant", "int8", "--data", "random"), "leave them out, or B"),
    "no data": (("a.txt",), "Missing option '--data'"),
    "missing data": (("a.txt", "--data", "no.txt"), "no such calibration file"),
    "empty": (("a.txt", "--data", "empty.txt"), "comparison: there are no samples"),
    "a byte order mark alone": (("a.txt", "--data", "bom.txt"), "comparison: there are no samples"),
    "other fields": (("a.txt", "--data", "other.jsonl"), 'there is no field "text"'),
    "another array": (("a.txt", "--data", "other.npz"), "there is no input 'z'"),
    "texts without a tokenizer": (("a.txt", "--data", "auto"), "the model has no tokenizer"),
    "an artifact": (("fake", "--data", "random"), "an artifact holds no graph to compare"),
    "nothing there": (("b.txt", "--data", "random"), "no such model file"),
    "other inputs": (("c.txt", "--data", "random"), "the graphs take different inputs"),
    "nothing to quantise": (("--quant", "int8", "--data", "random"), "--quant int8 changes nothing"),
    "no such pass": (("--passes", "fuze", "--data", "random"), "fuse"),
    "a bound that is none": (("a.txt", "--data", "random", "--bound", "nan"), "--bound is a number"),
    "no samples": (("a.txt", "--data", "random", "--samples", "0"), "--samples"),
    "no place for the page": (("a.txt", "--data", "random", "--html", "no/p.html"), "no folder for the page"),
    "a page that cannot be": (("a.txt", "--data", "random", "--html", "x" * 300), "cannot write the page"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_2(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_graph(Path("a.txt"), one_layer([[1, 2]]))
    x = input_("other", "f32", (1, 2))
    write_graph(Path("c.txt"), Graph((x,), {"y": make("linear", (x, weights(0, 3, 2)))}, {}))
    Path("fake").mkdir()
    Path("fake/manifest.json").write_text("{}")
    Path("empty.txt").write_text("")
    Path("bom.txt").write_bytes(b"\xef\xbb\xbf")
    Path("other.jsonl").write_text('{"z": 1}\n')
    np.savez("other.npz", z=np.zeros((1, 2)))
    arguments, words = MISTAKES[mistake]
    told = cli("compare", "a.txt", *arguments)
    assert (told.code, words in told.err) == (2, True), told.err


def test_a_page_is_written_whole(cli: Any, written: Path, data: Path, tmp_path: Path) -> None:
    shutil.copy(written, tmp_path)
    run = ("compare", written, "--quant", "int8", "--target", "x86-avx2", "--data", data)
    assert cli(*run, "--html", tmp_path / "p.html").code == 0
    read = _Text()
    read.feed((tmp_path / "p.html").read_text("utf-8"))
    assert "bert.encoder.layer.1.output.dense" in read.words
    assert "output logits" in read.words
