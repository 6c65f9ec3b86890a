"""Ensembles as artifacts: right answers by every option, weights stored once, what commands show of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_families import random_model, reference, sample

import llmc
from llmc import kept_imports
from llmc.compiler.frontends import dispatch
from llmc.errors import LlmcError

pytestmark = pytest.mark.xdist_group("small")
AVX2 = "x86-avx2"
WAYS: dict[str, Any] = {"id2label": {0: "bad", 1: "so-so", 2: "good"}, "intermediate_size": 48}
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def folders(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """`small_model` and two of its size: of the first the embeddings and a layer are frozen in the second, and only
    its upper layer's weights are in the third, which sees other values."""
    home = tmp_path_factory.mktemp("members")
    made = [random_model("bert", "ForSequenceClassification", s, **WAYS) for s in (0, 1, 2)]
    base = made[0].state_dict()
    parts = ("bert.embeddings.", "bert.encoder.layer.0."), ("bert.encoder.layer.1.",)
    for model, kept in zip(made[1:], parts, strict=True):
        model.load_state_dict({k: v for k, v in base.items() if k.startswith(kept)}, strict=False)
    for model, name in zip(made, "abc", strict=True):
        model.save_pretrained(home / name)
        shutil.copyfile(small_model / "tokenizer.json", home / name / "tokenizer.json")
    return [home / name for name in "abc"]


@pytest.fixture(scope="module")
def mean(folders: list[Path], shared: Callable[..., Path]) -> Path:
    def make(path: Path) -> None:
        llmc.compile(folders, path, target=AVX2, max_batch=8)

    return shared("ensemble.llmc", make)


@pytest.fixture(scope="module")
def alone(folders: list[Path], shared: Callable[..., Path]) -> Path:
    return shared("member.llmc", lambda path: llmc.compile(folders[0], path, target=AVX2, max_batch=8))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def members_of(folders: list[Path], inputs: dict[str, Any]) -> list[Array]:
    """What PyTorch says of each."""
    from transformers import BertForSequenceClassification

    models = [BertForSequenceClassification.from_pretrained(folder).eval() for folder in folders]
    return [reference(model, inputs)["logits"].astype(np.float64) for model in models]


def asked(batch: int, seq: int, folders: list[Path]) -> dict[str, Any]:
    return sample(dispatch.load(folders[0]).graph, batch, seq)


@pytest.fixture(scope="module")
def inputs(folders: list[Path]) -> dict[str, Any]:
    """Five texts, four of them padded."""
    return asked(5, 12, folders)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_mean_of_all_members(
    mean: Path, folders: list[Path], inputs: dict[str, Any], threads: int
) -> None:
    wanted = np.mean([softmax(x) for x in members_of(folders, inputs)], axis=0)
    with llmc.load(mean, threads=threads) as model:
        found = np.array(model(**inputs)["logits"])
        np.testing.assert_allclose(found, np.log(wanted), rtol=1e-4, atol=1e-4)
        assert model.selftest().passed
        assert (model.task, model.labels) == ("text-classification", ("bad", "so-so", "good"))


def test_a_text_alone_and_in_a_padded_batch(mean: Path, inputs: dict[str, Any]) -> None:
    with llmc.load(mean, threads=2) as model, llmc.load(mean, threads=1) as other:
        whole = np.array(model(**inputs)["logits"])
        np.testing.assert_array_equal(whole, np.array(other(**inputs)["logits"]))
        for row in range(5):
            tokens = int(inputs["attention_mask"][row].sum())
            one = {name: value[row : row + 1, :tokens] for name, value in inputs.items()}
            np.testing.assert_array_equal(np.array(model(**one)["logits"])[0], whole[row])


def test_equal_weights_are_stored_once(mean: Path, alone: Path, folders: list[Path]) -> None:
    """Also those of a layer that sees other values in each member, whose products stay apart."""
    one, all_three = (llmc.runtime.read_manifest(path) for path in (alone, mean))
    states = [
        torch.nn.Module.state_dict(random_model("bert", "ForSequenceClassification", s, **WAYS))
        for s in (1, 2)
    ]
    own = 0
    for state, kept in zip(
        states, [("bert.emb", "bert.encoder.layer.0."), ("bert.encoder.layer.1.",)], strict=True
    ):
        own += sum(v.numel() for k, v in state.items() if not k.startswith(kept) and v.dtype == torch.float32)
    grown = all_three.sizes["weights_bytes"] - one.sizes["weights_bytes"]
    assert grown <= 4 * own * 1.25, "padding of small matrices to whole panels takes some"
    assert all_three.sizes["parameters"] < one.sizes["parameters"] + own + 100


def test_what_is_computed_alike_is_computed_once(mean: Path, alone: Path, inputs: dict[str, Any]) -> None:
    def attentions(path: Path) -> int:
        with llmc.load(path, threads=1) as model:
            steps = model.benchmark(duration=0.01, profile=True, batch=1, seq=8).steps
        return sum("attention" in s.kernel or "mha" in s.kernel for s in steps)

    assert attentions(alone) == 2
    assert attentions(mean) == 5, "a and b have one first layer"


def test_places_and_the_manifest_name_members(mean: Path, cli: Callable[..., Any]) -> None:
    with llmc.load(mean, threads=1) as model:
        steps = model.benchmark(duration=0.01, profile=True, batch=1, seq=8).steps
        raw = model.manifest.raw
    whose = {s.source.partition(".")[0] for s in steps if s.source}
    assert whose <= {"a", "b", "c", "ensemble", *model.inputs}
    assert {"a", "b", "c", "ensemble"} <= whose
    architecture = "BertForSequenceClassification"
    members = [{"name": name, "architecture": architecture} for name in "abc"]
    assert raw["ensemble"] == {"method": "mean", "members": members}
    assert raw["name"] == "a-ensemble"
    shown = cli("inspect", mean)
    assert shown.code == 0
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["ensemble", "mean", "of", "3", "members"] in lines
    assert ["b", architecture] in lines


@pytest.mark.parametrize(
    "options",
    [
        {"quant": "int8"},
        {"quant": "fp16"},
        {"quant": "w8"},
        {"prune": ["heads:0.5", "neurons:0.5"]},
        {"level": 0},
    ],
    ids=lambda options: "".join(options),
)
def test_passes_do_to_the_ensemble_what_they_do_to_members(
    folders: list[Path], inputs: dict[str, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    def answer(model: Any) -> Array:
        llmc.compile(model, tmp_path / "m.llmc", target=AVX2, max_batch=8, **options)
        with llmc.load(tmp_path / "m.llmc", threads=1) as made:
            return softmax(np.array(made(**inputs)["logits"]))

    members = [answer(folder) for folder in folders]
    np.testing.assert_allclose(answer(folders), np.mean(members, axis=0), atol=1e-4)


def test_another_architecture_with_answers_by_token(tmp_path: Path) -> None:
    """Padding is left out of both, and zeros stand there."""
    models = [random_model(family, "ForTokenClassification") for family in ("bert", "distilbert")]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / f"{number}")
    llmc.compile([tmp_path / "0", tmp_path / "1"], tmp_path / "m.llmc", target=AVX2, max_batch=8)
    with llmc.load(tmp_path / "m.llmc", threads=2) as made:
        assert "ragged" in made.manifest.pipeline
        ids = np.random.default_rng(0).integers(2, 100, (4, 9))
        mask = (np.arange(9) < np.array([[9], [5], [1], [7]])).astype(np.int64)
        given = {"input_ids": ids, "attention_mask": mask}
        found = np.array(made(**given, token_type_ids=np.zeros_like(ids))["logits"])
        np.testing.assert_array_equal(found, np.array(made(**given)["logits"]), err_msg="the default")
        names = {step.source for step in made.benchmark(duration=0.01, profile=True, batch=4, seq=9).steps}
    wanted = np.log(
        np.mean([softmax(reference(m, given)["logits"].astype(np.float64)) for m in models], axis=0)
    )
    np.testing.assert_allclose(found, np.where(mask[..., None] == 1, wanted, 0), atol=1e-4)
    assert {"0.bert", "1.distilbert"} <= {".".join(name.split(".")[:2]) for name in names}


def test_differences_of_low_rank(folders: list[Path], inputs: dict[str, Any], tmp_path: Path) -> None:
    """What LoRA trains, merged: rank 2 in every product of the encoder, whose inner width is wide enough here."""
    members = []
    for seed in range(3):
        model = random_model("bert", "ForSequenceClassification", 0, **{**WAYS, "intermediate_size": 160})
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if seed and ".encoder." in name and name.endswith("dense.weight"):
                    u, v = (torch.randn(n, 2, generator=generator) * 0.1 for n in weight.shape)
                    weight += u @ v.T
        model.save_pretrained(tmp_path / f"{seed}")
        members.append(tmp_path / f"{seed}")
    wanted = np.mean([softmax(x) for x in members_of(members, inputs)], axis=0)
    sizes = {}
    for name, more in {
        "whole": {},
        "thin": {"add_passes": "differ{error=1e-4}@compress"},
        "int8": {"add_passes": "differ{error=1e-4}@compress", "quant": "int8"},
    }.items():
        report = llmc.compile(members, tmp_path / "m.llmc", target=AVX2, max_batch=8, **more)
        with llmc.load(tmp_path / "m.llmc", threads=2) as model:
            found = softmax(np.array(model(**inputs)["logits"]))
            sizes[name] = model.manifest.sizes["weights_bytes"]
        assert np.abs(found - wanted).max() < (0.2 if name == "int8" else 1e-2), name
        changed = {effect["pass"].partition("{")[0]: effect["changed"] for effect in report.effects}
        assert changed.get("differ", 0) == (0 if name == "whole" else 8), "two products of two layers, twice"
    assert sizes["thin"] < 0.7 * sizes["whole"], "two columns are stored as a whole panel"


def test_votes_weights_and_stacks(folders: list[Path], inputs: dict[str, Any], tmp_path: Path) -> None:
    parts = members_of(folders, inputs)
    weights, head = tmp_path / "weights.json", tmp_path / "head.npz"
    weights.write_text(json.dumps({"a": 2, "b": 1, "c": 1}))
    matrix = np.random.default_rng(0).normal(size=(3, 9))
    np.savez(head, weight=matrix, inputs="probabilities")
    votes = np.sum([np.eye(3)[p.argmax(-1)] for p in parts], axis=0) / 3
    wanted = {
        "vote": votes,
        str(weights): np.einsum("m,mbc->bc", [0.5, 0.25, 0.25], np.array([softmax(p) for p in parts])),
        f"stack:{head}": softmax(np.concatenate([softmax(p) for p in parts], -1) @ matrix.T),
    }
    for text, probabilities in wanted.items():
        llmc.compile(folders, tmp_path / "m.llmc", ensemble=text, target=AVX2, max_batch=8)
        with llmc.load(tmp_path / "m.llmc", threads=2) as model:
            found = softmax(np.array(model(**inputs)["logits"]))
            assert model.selftest().passed
            said = model.manifest.raw["ensemble"]
        shares = [0.5, 0.25, 0.25] if text == str(weights) else [None] * 3
        assert [m.get("weight") for m in said["members"]] == shares
        np.testing.assert_allclose(found, probabilities, atol=1e-3 if text == "vote" else 1e-4, err_msg=text)


def test_the_command_line(
    folders: list[Path], mean: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--target", AVX2, "--max-batch", 8)
    done = cli("compile", folders[0], "--member", folders[1], "--member", folders[2], *more)
    assert done.code == 0, done.err
    made = tmp_path / "a-ensemble.llmc"
    for name in ("weights.bin", "module.so", "manifest.json"):
        assert (made / name).read_bytes() == (mean / name).read_bytes(), "as from Python"
    said = cli("run", made, "--text", "a b c", "--text", "h", "--json")
    assert said.code == 0, said.err
    (tmp_path / "data.csv").write_text("text,label\na b c,bad\nd e,good\nh g f,so-so\n")
    for baseline in (folders[0], made):
        judged = cli("eval", made, "--data", "data.csv", "--baseline", baseline, "--json")
        assert judged.code == 0, judged.err
        assert json.loads(judged.out)["rows"] == 3


def test_wrong_usage(folders: list[Path], tmp_path: Path, cli: Callable[..., Any]) -> None:
    assert cli("compile", folders[0], "--ensemble", "mean", "-o", tmp_path / "m.llmc").code == 2
    for more, told in (
        (("--member", folders[0]), "a member is given twice"),
        (("--member", folders[1], "--ensemble", "men"), "no ensemble 'men'"),
        (("--member", folders[1], "--ensemble", tmp_path / "none.json"), "no such file"),
        (("--member", folders[1], "--adapter", folders[2]), "an ensemble is several"),
        (("--member", folders[1], "--adapter", f"x={folders[2]}"), "an ensemble is several"),
    ):
        done = cli("compile", folders[0], *more, "-o", tmp_path / "m.llmc")
        assert done.code == 1
        assert told in done.err
    assert not list(tmp_path.iterdir())
    for given in ([folders[0]], folders[0]):
        with pytest.raises(LlmcError, match="2 to 64 members"):
            llmc.compile(given, tmp_path / "m.llmc", ensemble="mean")


def test_every_member_is_imported_once(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    seen: list[Path] = []
    load = dispatch.load

    def noted(path: Path, **options: Any) -> Any:
        seen.append(path)
        return load(path, **options)

    monkeypatch.setattr(dispatch, "load", noted)
    for pair in (folders[:2], folders[1:]):
        for folder in pair:
            kept_imports.load(folder, task="auto", ignore_unused=False, max_batch=8)
        llmc.compile(pair, tmp_path / "m.llmc", target=AVX2, max_batch=8)
    assert sorted(seen) == sorted(folders)


def test_a_kept_graph_is_the_ensemble(folders: list[Path], mean: Path, tmp_path: Path) -> None:
    llmc.compile(folders, tmp_path / "m.llmc", target=AVX2, max_batch=8, keep=tmp_path / "kept")
    llmc.compile(tmp_path / "kept" / "imported.txt", tmp_path / "again.llmc", target=AVX2)
    for name in ("weights.bin", "module.so", "manifest.json"):
        assert (tmp_path / "again.llmc" / name).read_bytes() == (mean / name).read_bytes()
