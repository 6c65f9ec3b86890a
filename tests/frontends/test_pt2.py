"""Programs that torch.export saved: the same model as the folder's, and nothing of the file is run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import quiet, to_pt2

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES

O3 = Pipeline.parse(LEVELS[3], PASSES)
SHAPES = [(1, 1), (3, 17), (2, 64)]


@pytest.fixture(scope="module")
def bert(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    model = make_model("bert", "Model")
    return to_pt2(model, tmp_path_factory.mktemp("pt2") / "bert.pt2"), model


def test_bert(bert: Any, difference: Any) -> None:
    file, model = bert

    imported = load(file)

    assert (imported.name, imported.task) == ("bert", "generic")
    assert tuple(imported.graph.outputs) == ("last_hidden_state", "pooler_output")
    assert dict(imported.graph.dims) == {"batch": (1, 64), "seq": (1, 64)}
    assert difference(model, imported.graph, SHAPES) < 1e-5
    after, _ = O3.run(imported.graph)
    assert difference(model, after, SHAPES) < 2e-5
    assert sum(n.op == "mha" for n in after.nodes) == 2
    assert load(file, max_batch=3, max_seq=9).graph.dims == {"batch": (1, 3), "seq": (1, 9)}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra", "albert"])
def test_families(family: str, make_model: Any, difference: Any, tmp_path: Path) -> None:
    model = make_model(family, "Model")
    graph = load(to_pt2(model, tmp_path / "m.pt2")).graph
    assert difference(model, graph, SHAPES) < 1e-5


def changed(source: Path, to: Path, member: str, change: Callable[[Any], Any]) -> Path:
    """The archive with one JSON member changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith(member):
                value = json.loads(data)
                change(value)
                data = json.dumps(value).encode()
            new.writestr(info.filename, data)
    return to


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def first_size(model: Any, text: str) -> None:
    values = model["graph_module"]["graph"]["tensor_values"]["input_ids"]["sizes"]
    values[0]["as_expr"]["expr_str"] = text


@pytest.mark.parametrize(
    "text",
    [
        "__import__('pathlib').Path({mark!r}).touch()",
        "Symbol('s1').__class__",
        "[Path for Path in (1,)]",
        "open('x')",
        "Symbol('a b')",
        "(lambda: 1)()",
    ],
)
def test_sizes_are_not_evaluated(text: str, bert: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = text.replace("{mark!r}", repr(str(mark)))
    file = changed(bert[0], tmp_path / "m.pt2", "models/model.json", lambda m: first_size(m, text))
    with pytest.raises(LlmcError, match="holds code or pickles"):
        load(file)
    assert not mark.exists()


def test_pickles_are_not_opened(bert: Any, tmp_path: Path) -> None:
    """Neither a weight marked as pickled nor the sample inputs, which torch would unpickle."""
    mark = tmp_path / "mark"

    def pickled(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    file = changed(bert[0], tmp_path / "m.pt2", "model_weights_config.json", pickled)
    with pytest.raises(LlmcError, match="holds code or pickles"):
        load(file)
    with zipfile.ZipFile(bert[0]) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            evil = info.filename.endswith("sample_inputs/model.pt")
            new.writestr(info.filename, pickle.dumps(Payload(mark)) if evil else old.read(info))
    load(file)
    assert not mark.exists()


def call(model: Any, target: str) -> None:
    model["graph_module"]["graph"]["nodes"][0]["target"] = target


@pytest.mark.parametrize(
    "target", ["torch.load", "_operator.methodcaller", "os.system", "torch.ops.my.evil.default"]
)
def test_calls_are_aten(target: str, bert: Any, tmp_path: Path) -> None:
    file = changed(bert[0], tmp_path / "m.pt2", "models/model.json", lambda m: call(m, target))
    refusal = (
        "calls an op that llmc does not have" if target.startswith("torch.ops.") else "holds code or pickles"
    )
    with pytest.raises(LlmcError, match=refusal) as caught:
        load(file)
    assert target in (caught.value.found or "")


def test_libraries_are_refused(bert: Any, tmp_path: Path) -> None:
    file = changed(bert[0], tmp_path / "m.pt2", "none", lambda m: None)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("bert/data/aotinductor/model/m.so", b"\x7fELF")
    with pytest.raises(LlmcError, match="holds code or pickles"):
        load(file)


def enlarge(config: Any) -> None:
    next(iter(config["config"].values()))["tensor_meta"]["sizes"][0]["as_int"] = 10**6


def forget(model: Any) -> None:
    del model["graph_module"]["graph"]["nodes"]


@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("model_weights_config.json", enlarge),
        ("models/model.json", forget),
        ("models/model.json", lambda m: m["schema_version"].update(major=99)),
        ("models/model.json", lambda m: m["graph_module"]["graph"]["nodes"].pop(3)),
    ],
)
def test_damage_inside(member: str, change: Any, bert: Any, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match=r"not a program of torch\.export, or it is damaged"):
        load(changed(bert[0], tmp_path / "m.pt2", member, change))


def test_other_files(bert: Any, tmp_path: Path) -> None:
    data = bert[0].read_bytes()
    for text in (b"", data[: len(data) // 2], b"PK\x03\x04"):
        (tmp_path / "m.pt2").write_bytes(text)
        with pytest.raises(LlmcError, match=r"not a program of torch\.export, or it is damaged"):
            load(tmp_path / "m.pt2")
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pt2")
    with pytest.raises(LlmcError, match=r"not a program of torch\.export, or it is damaged"):
        load(tmp_path / "m.pt2")


def test_unsupported_ops_are_listed(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv(x) + torch.erfinv(x)

    with quiet():
        torch.export.save(torch.export.export(Model(), (torch.eye(3),)), tmp_path / "m.pt2")
    with pytest.raises(
        LlmcError, match=r"2 ops of the model cannot be imported: aten\.linalg_inv.* aten\.erfinv"
    ):
        load(tmp_path / "m.pt2")


OPEN = {
    "norm": (lambda x: torch.nn.functional.rms_norm(x, x.shape[-1:]), "over an axis whose size is open"),
    "attention": (
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
        "heads are of an open width",
    ),
}


@pytest.mark.parametrize("case", OPEN)
def test_a_last_axis_of_open_size_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    change, told = OPEN[case]

    class Changed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return change(x)

    shapes = {"x": {3: torch.export.Dim("w", min=3, max=12)}}
    program = torch.export.export(Changed(), (torch.ones(2, 4, 3, 5),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(LlmcError, match=f"(?s)cannot be imported.*{told}"):
        load(tmp_path / "m.pt2")
