"""PEFT adapters: merged as peft merges them, with the base that belongs to them, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from random_families import random_model
from safetensors.torch import load_file, save_file

from llmc.cli import main
from llmc.compiler.frontends import adapters, dispatch, merging, overlay, plain_folder
from llmc.compiler.frontends.quiet import quiet
from llmc.errors import LlmcError, LlmcWarning

peft = pytest.importorskip("peft")
BESIDE = pytest.warns(LlmcWarning, match="base model is taken from")
DECODER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Q = ["query", "value"]


def bases() -> dict[str, Callable[[], Any]]:
    gpt = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, **SMALL)
    llama = transformers.LlamaConfig(**DECODER, **SMALL)
    return {
        "bert": lambda: random_model("bert", "ForPreTraining", num_hidden_layers=1),
        "roberta": lambda: random_model("roberta", "ForMaskedLM", num_hidden_layers=1),
        "gpt2": lambda: transformers.GPT2LMHeadModel(gpt),
        "llama": lambda: transformers.LlamaForCausalLM(llama),
    }


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "task_type": "SEQ_CLS", "target_modules": Q, **options})


# what is trained: base, configuration, number of labels
CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "LoRA": ("bert", lora),
    "ranks, alphas, rslora": (
        "bert",
        lambda: lora(
            use_rslora=True,
            target_modules=[*Q, "dense"],
            rank_pattern={"query": 2},
            alpha_pattern={"value": 7},
        ),
    ),
    "DoRA, bias, embeddings": (
        "bert",
        lambda: lora(use_dora=True, bias="lora_only", target_modules=["query", "word_embeddings"]),
    ),
    "all biases": ("bert", lambda: lora(bias="all")),
    "PiSSA, which changes the base": ("bert", lambda: lora(init_lora_weights="pissa")),
    "no head, no task": ("bert", lambda: lora(task_type=None)),
    "IA3": ("bert", lambda: peft.IA3Config(task_type="SEQ_CLS", target_modules=Q, feedforward_modules=[])),
    "LoHa": ("bert", lambda: peft.LoHaConfig(task_type="SEQ_CLS", r=4, target_modules=Q)),
    "a head of two layers": ("roberta", lora),
    "weights stored the other way": (
        "gpt2",
        lambda: lora(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True),
    ),
    "more words": (
        "llama",
        lambda: lora(
            task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
        ),
    ),
    "some words": (
        "llama",
        lambda: lora(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[3, 5]),
    ),
}


def tuned(base: Path, config: Any, place: Path, labels: int = 3, words: int | None = None) -> Any:
    """An adapter with numbers that show, saved in `place`; the model that peft makes of both."""
    kind = getattr(transformers, merging.CLASSES.get(str(config.task_type), "AutoModel"))
    with quiet():
        options = {"num_labels": labels} if config.task_type == "SEQ_CLS" else {}
        model = kind.from_pretrained(base, **options)
        if words:
            model.resize_token_embeddings(words, mean_resizing=False)
        model = peft.get_peft_model(model, config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(place)
    return model


def made(name: str, place: Path) -> Path:
    with quiet():
        bases()[name]().save_pretrained(place / name)
    return place / name


@pytest.mark.parametrize("case", CASES)
def test_merged_as_peft_merges(case: str, tmp_path: Path) -> None:
    """Every weight of the folder that is imported, and the class."""
    base, config = CASES[case]
    folder = made(base, tmp_path)
    model = tuned(folder, config(), tmp_path / "adapter", words=110 if case == "more words" else None)
    wanted = model.merge_and_unload().state_dict()
    with BESIDE, plain_folder.plain(plain_folder.origin(tmp_path / "adapter")) as found:
        weights = load_file(found.path / "model.safetensors")
        merged = json.loads((found.path / "config.json").read_text())
    assert merged["architectures"] == [type(model.get_base_model()).__name__]
    tied = {"lm_head.weight", "cls.predictions.decoder.weight"} - set(weights)
    assert set(wanted) - set(weights) <= tied
    for name, value in weights.items():
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A BERT and an adapter that makes a classifier of three labels of it."""
    base = made("bert", tmp_path)
    tuned(base, lora(), tmp_path / "adapter")
    return base, tmp_path / "adapter"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_from_adapter_to_answers(pair: tuple[Path, Path], difference: Any) -> None:
    base, adapter = pair
    transformers.BertTokenizer({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}).save_pretrained(
        adapter
    )
    (adapter / "config.json").write_text('{"id2label": {"0": "bad", "1": "so", "2": "good"}}')
    with quiet():
        kind = transformers.AutoModelForSequenceClassification
        model = peft.PeftModel.from_pretrained(kind.from_pretrained(base, num_labels=3), adapter)
    before = {file: file.read_bytes() for file in base.iterdir()}

    imported = dispatch.load(adapter, base=base)

    assert (imported.name, imported.task) == ("adapter", "text-classification")
    assert imported.labels == ("bad", "so", "good")
    assert imported.tokenizer is not None
    assert imported.tokenizer.file.parent == adapter
    assert '"a":4' in imported.tokenizer.text.replace(" ", "")
    assert difference(model.merge_and_unload().eval(), imported.graph, [(2, 6)]) < 1e-5
    assert {file: file.read_bytes() for file in base.iterdir()} == before


def weights_of(given: plain_folder.Origin) -> dict[str, Any]:
    with plain_folder.plain(given) as found:
        weights: dict[str, Any] = load_file(found.path / "model.safetensors")
        return weights


def test_all_ways_to_name_the_pair(pair: tuple[Path, Path]) -> None:
    base, adapter = pair
    wanted = weights_of(plain_folder.Origin(adapter, base=base))
    file = adapter / adapters.WEIGHTS[0]
    torch.save(load_file(file), adapter / adapters.WEIGHTS[1])
    file.unlink()
    found = weights_of(plain_folder.Origin(base, adapter=adapter))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for part in (adapters.CONFIG, adapters.WEIGHTS[1]):
        (base / part).write_bytes((adapter / part).read_bytes())
    found = weights_of(plain_folder.Origin(base, adapter=base))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    edit(adapter / adapters.CONFIG, base_model_name_or_path=f"someone/{base.name}")
    with BESIDE:
        assert set(weights_of(plain_folder.Origin(adapter))) == set(wanted)
    edit(adapter / adapters.CONFIG, base_model_name_or_path="../bert")
    with BESIDE:
        assert set(weights_of(plain_folder.Origin(adapter))) == set(wanted)


def test_the_tokenizer_of_a_base_is_none_of_an_adapter_that_has_its_own(pair: tuple[Path, Path]) -> None:
    base, adapter = pair
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(LlmcError, match=r"tokenizer\.json is not a tokenizer"):
        weights_of(plain_folder.Origin(adapter, base=base))
    (adapter / "tokenizer.json").write_text('{"model": {}}')
    assert weights_of(plain_folder.Origin(adapter, base=base))


def test_a_look_merges_nothing(pair: tuple[Path, Path], monkeypatch: Any) -> None:
    base, adapter = pair
    monkeypatch.setattr(merging, "merged", None)
    summary, parts = plain_folder.look(plain_folder.Origin(adapter, base))
    assert summary.task.name == "text-classification"
    assert summary.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert parts == {"base": str(base), "adapter": f"{adapter} (LORA)"}
    assert summary.path == adapter


def rename(adapter: Path, change: Callable[[str], str | None]) -> None:
    file = adapter / adapters.WEIGHTS[0]
    renamed = {change(name): value for name, value in load_file(file).items()}
    save_file({name: value for name, value in renamed.items() if name}, file)


def twice(adapter: Path, part: str) -> None:
    """Once more without the prefix of all names, with other numbers."""
    file = adapter / adapters.WEIGHTS[0]
    weights = load_file(file)
    more = {n.removeprefix(merging.PREFIX): w + 1 for n, w in weights.items() if part in n}
    save_file(weights | more, file)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no base": (
        lambda p: edit(p / adapters.CONFIG, base_model_name_or_path="nobody/nothing"),
        "PEFT adapter without its base model",
    ),
    "prompts": (
        lambda p: edit(p / adapters.CONFIG, peft_type="PROMPT_TUNING"),
        "PROMPT_TUNING cannot be merged",
    ),
    "an unknown kind": (
        lambda p: edit(p / adapters.CONFIG, peft_type="NEWEST"),
        "knows no adapter of the type",
    ),
    "no kind": (lambda p: edit(p / adapters.CONFIG, peft_type=None), "has no peft_type"),
    "an unknown setting": (lambda p: edit(p / adapters.CONFIG, twist=0.5), "does not know the setting twist"),
    "a rank of 10^9": (lambda p: edit(p / adapters.CONFIG, r=10**9), "a rank of the adapter"),
    "a rank of 0": (lambda p: edit(p / adapters.CONFIG, r=0), "a rank of the adapter"),
    "an infinite factor": (
        lambda p: edit(p / adapters.CONFIG, lora_alpha=math.inf),
        "lora_alpha is no number",
    ),
    "a factor that is no number": (
        lambda p: edit(p / adapters.CONFIG, lora_alpha="16"),
        "lora_alpha is no number",
    ),
    "a matrix twice": (
        lambda p: twice(p, "query.lora_A"),
        "query.lora_A",
    ),
    "other sizes": (lambda p: edit(p / adapters.CONFIG, r=3), "peft cannot merge"),
    "a layer more": (
        lambda p: rename(p, lambda n: n.replace("layer.0", "layer.1")),
        "it has weights that nothing uses",
    ),
    "a weight less": (
        lambda p: rename(p, lambda n: None if "query.lora_A" in n else n),
        "it has no weights for base_model",
    ),
    "no head": (lambda p: rename(p, lambda n: None if "classifier.weight" in n else n), "no weights for"),
    "no weights": (lambda p: (p / adapters.WEIGHTS[0]).unlink(), "the adapter has no weights"),
    "cut weights": (lambda p: (p / adapters.WEIGHTS[0]).write_bytes(b"\x04"), "corrupt or truncated"),
    "no JSON": (lambda p: (p / adapters.CONFIG).write_text("{"), "not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, pair: tuple[Path, Path]) -> None:
    damage, words = REFUSED[case]
    damage(pair[1])
    with pytest.raises(LlmcError, match=words) as caught:
        weights_of(plain_folder.Origin(pair[1], base=None if case == "no base" else pair[0]))
    assert str(pair[1]) in str(caught.value)
    assert "llmc-" not in str(caught.value)


def test_an_untrained_layer_of_the_base(tmp_path: Path) -> None:
    """The pooler of a masked language model is drawn at random when it becomes a classifier, and nobody saves it."""
    random_model("bert", "ForMaskedLM", num_hidden_layers=1).save_pretrained(tmp_path / "base")
    tuned(tmp_path / "base", lora(), tmp_path / "adapter")
    with pytest.raises(LlmcError, match=r"neither the adapter nor its base has weights for bert\.pooler"):
        weights_of(plain_folder.Origin(tmp_path / "adapter", tmp_path / "base"))


def test_layers_that_peft_leaves(pair: tuple[Path, Path]) -> None:
    base, adapter = pair
    tuned(base, peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]), adapter)
    with pytest.raises(LlmcError, match="peft cannot merge all of an adapter of the type LN_TUNING"):
        weights_of(plain_folder.Origin(adapter, base))


def test_answers_that_merged_weights_do_not_give(pair: tuple[Path, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", lambda self, *_, **__: None)
    with pytest.raises(LlmcError, match="do not answer as base and adapter do"):
        weights_of(plain_folder.Origin(pair[1], pair[0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "nowhere"}, "no model folder 'nowhere'"),
        ({"adapter": "adapter"}, "MODEL is an adapter itself"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, str], words: str, pair: tuple[Path, Path]) -> None:
    given = {k: pair[1].parent / v if v != "nowhere" else v for k, v in options.items()}
    with pytest.raises(LlmcError, match=words):
        dispatch.load(pair[1], **given)
    for flag, words in (("base", "MODEL is none"), ("adapter", "--adapter names no adapter")):
        with pytest.raises(LlmcError, match=words):
            dispatch.load(pair[0], **{flag: pair[0]})


def test_peft_is_asked_for(pair: tuple[Path, Path], monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(LlmcError, match="this needs the package peft") as caught:
        weights_of(plain_folder.Origin(pair[1], pair[0]))
    assert caught.value.hint == "pip install 'llmc[adapters]'"


def test_links_are_never_written_through(tmp_path: Path) -> None:
    theirs, mine, new = (tmp_path / name for name in ("theirs", "mine", "new"))
    for folder in (theirs, mine, new):
        folder.mkdir()
    (theirs / "config.json").write_text("theirs")
    (theirs / "other.json").write_text("theirs")
    overlay.link(theirs, mine)
    (new / "config.json").write_text("new")
    overlay.move(new, mine)
    overlay.write_json(mine / "other.json", {})
    assert [p.read_text() for p in (mine / "config.json", mine / "other.json")] == ["new", "{}"]
    assert {p.read_text() for p in theirs.iterdir()} == {"theirs"}


@pytest.mark.parametrize("command", ["compile", "opt", "explain"])
def test_commands_take_both_options(
    command: str, pair: tuple[Path, Path], monkeypatch: Any, capsys: Any
) -> None:
    base, adapter = pair
    asked: dict[str, Any] = {}

    def load(path: Path, **options: Any) -> Any:
        asked.update(options, path=path)
        raise LlmcError("asked")

    monkeypatch.setattr("llmc.compiler.frontends.dispatch.load", load)
    for options in (["--base", base], ["--adapter", base]):
        assert main([command, str(adapter), *map(str, options)]) == 1
        assert asked["path"] == adapter
        assert asked[options[0].lstrip("-")] == base
    assert main(["inspect", str(adapter), "--base", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"] == str(base)
