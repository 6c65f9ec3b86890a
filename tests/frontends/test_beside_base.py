"""LoRA adapters beside a base: the graph with one chosen is the graph of the two merged, with none the base's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import llmc
from llmc.cli import main
from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import dispatch
from llmc.compiler.frontends.adapters import WEIGHTS
from llmc.compiler.frontends.beside_base import with_adapters
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.lora import PREFIX
from llmc.compiler.frontends.quiet import quiet
from llmc.compiler.graph import Graph, Source
from llmc.compiler.graph_file import write_graph
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.together import Together
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError
from llmc.passes import PASSES

peft = pytest.importorskip("peft")
WORDS = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
WANTED = "wanted.npy"
IDS = [[1, 5, 9, 7, 3]]
LORAS: Mapping[str, Any] = {
    "plain": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "all": {
        "r": 6,
        "target_modules": "all-linear",
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"up_proj": 7},
    },
}


def tuned(base: Path, place: Path, options: Mapping[str, Any]) -> Path:
    """An adapter in `place`, with what PyTorch answers when the two are merged."""
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.save_pretrained(place)
        answer = model.merge_and_unload()(torch.tensor(IDS)).logits
    np.save(place / WANTED, answer.detach().numpy())
    return place


def saved(model: Any, place: Path) -> Path:
    with quiet():
        model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and a folder for each of LORAS."""
    place = tmp_path_factory.mktemp("adapters")
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **WORDS))
    saved(llama, place / "base")
    for name, options in LORAS.items():
        tuned(place / "base", place / name, options)
    return place


@pytest.fixture(scope="module")
def base(place: Path) -> Imported:
    return dispatch.load(place / "base")


@pytest.fixture(scope="module")
def both(place: Path, base: Imported) -> Imported:
    return with_adapters(base, {name: place / name for name in LORAS})


def logits(imported: Imported, number: int | None = None) -> np.ndarray:
    given: dict[str, Any] = {"input_ids": np.array(IDS), "logits_to_keep": np.arange(len(IDS[0]))}
    if number is not None:
        given["adapter"] = np.full((1, len(IDS[0])), number)
    return interpret.step(imported.module.functions["step"], given, {})[0]["logits"]


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max())


def test_one_that_is_chosen_is_the_merged_model(place: Path, base: Imported, both: Imported) -> None:
    verify_module(both.module)
    assert both.adapters == tuple(LORAS)
    plain = logits(base)
    assert np.array_equal(logits(both), plain)
    assert np.array_equal(logits(both, 0), plain)
    for number, name in enumerate(LORAS, 1):
        found = logits(both, number)
        assert close(found, np.load(place / name / WANTED))
        assert not close(found, plain)


def test_sessions_of_different_adapters_may_share_a_run(both: Imported) -> None:
    assert Together(both.module.functions["step"]).refusal == ""


def test_weights_of_the_other_shape(tmp_path: Path) -> None:
    """Conv1D of GPT-2 multiplies from the right."""
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=16, **WORDS)
    folder = saved(transformers.GPT2LMHeadModel(config), tmp_path / "base")
    options = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    adapter = tuned(folder, tmp_path / "adapter", options)
    found = with_adapters(dispatch.load(folder), {"one": adapter})
    assert close(logits(found, 1), np.load(adapter / WANTED))


@pytest.mark.parametrize("passes", ["quantize", "quantize{mode=fp16}", "blockwise", "prune{sparsity=0.5}"])
def test_adapters_stay_as_fine_as_they_are(both: Imported, passes: str) -> None:
    def of_adapters(graph: Any) -> dict[str, Any]:
        return {n.source.path: n for n in graph.nodes if n.source.path.endswith((".lora_A", ".lora_B"))}

    before = both.module.functions["step"]
    after, _ = Pipeline.parse(passes, PASSES).run(before)
    assert after is not before
    kept = of_adapters(after)
    for path, node in of_adapters(before).items():
        assert kept[path].op == node.op
        assert kept[path].inputs[-1] is node.inputs[-1]


def changed(place: Path, tmp_path: Path, **settings: Any) -> Path:
    """The adapter `plain` with other settings."""
    folder = Path(shutil.copytree(place / "plain", tmp_path / "changed"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    return folder


def refused(base: Imported, folder: Path, message: str, name: str = "one") -> None:
    with pytest.raises(LlmcError) as caught:
        with_adapters(base, {name: folder})
    assert message in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "the adapter's setting 'use_dora' cannot be kept beside a base"),
        ({"bias": "all"}, "the adapter's setting 'bias' cannot"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' cannot"),
        ({"of_tomorrow": 3}, "the adapter's setting 'of_tomorrow' cannot"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the weights of the base"),
        ({"peft_type": "IA3"}, "an adapter of the type IA3 cannot stand beside its base"),
        ({"peft_type": "PROMPT_TUNING"}, "an adapter of the type PROMPT_TUNING cannot be merged"),
        ({"r": 3}, "the two matrices of a module do not fit"),
        ({"lora_alpha": None}, "lora_alpha is no number"),
        ({"rank_pattern": {"(": 4}}, "is no regular expression"),
        ({"r": 0}, "a rank of the adapter is none of its weights'"),
        ({"rank_pattern": {"q_proj": 0}}, "a rank of the adapter is none of its weights'"),
        ({"rank_pattern": {"q_proj": None}}, "a rank of the adapter is none of its weights'"),
        ({"r": 0, "rank_pattern": {"nothing": 4}}, "the two matrices of a module do not fit"),
        ({"lora_alpha": float("inf")}, "lora_alpha is no number that an adapter was trained with"),
        ({"lora_alpha": float("nan")}, "lora_alpha is no number that an adapter was trained with"),
        ({"lora_alpha": 10**400}, "lora_alpha is no number that an adapter was trained with"),
        ({"lora_alpha": 1e300}, "lora_alpha is no number that an adapter was trained with"),
        ({"lora_alpha": True}, "lora_alpha is no number that an adapter was trained with"),
        ({"alpha_pattern": {"q_proj": 1e300}}, "lora_alpha is no number that an adapter was trained with"),
    ],
)
def test_settings_that_are_more_than_two_matrices(
    place: Path, base: Imported, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    refused(base, changed(place, tmp_path, **settings), message)


def rewritten(place: Path, tmp_path: Path, change: Any) -> Path:
    """The adapter `plain` with other weights."""
    folder = changed(place, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


_Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{_Q}.lora_B.weight"), "the two matrices of a module do not fit"),
        (lambda w: w.update({f"{_Q}.bias": np.zeros(64, np.float32)}), "which is no matrix of LoRA's"),
        (lambda w: w.update({f"{_Q}.lora_A.weight": np.zeros((4, 64), np.int32)}), "which is no matrix"),
        (
            lambda w: w.update(
                {f"{_Q.removeprefix('base_model.model.')}.lora_A.weight": w[f"{_Q}.lora_A.weight"] + 1}
            ),
            "the adapter holds lora_A of a module twice",
        ),
        (
            lambda w: w.update({f"{_Q}.lora_B.default.weight": w[f"{_Q}.lora_B.weight"] + 1}),
            "the adapter holds lora_B of a module twice",
        ),
        (
            lambda w: w.update(
                {
                    f"{_Q}.lora_A.weight": np.zeros((0, 64), np.float32),
                    f"{_Q}.lora_B.weight": np.zeros((64, 0), np.float32),
                }
            ),
            "the two matrices of a module do not fit",
        ),
        (lambda w: w[f"{_Q}.lora_A.weight"].fill(np.inf), "the adapter holds values that are not finite"),
        (
            lambda w: w.update({f"{_Q}.lora_A.weight": np.zeros((4, 65), np.float32)}),
            "does not fit its base at model.layers.0.self_attn.q_proj",
        ),
        (
            lambda w: w.update({k.replace("q_proj", "q_prod"): w.pop(k) for k in list(w) if "q_proj" in k}),
            "the nearest is model.layers.0.self_attn.q_proj",
        ),
        (
            lambda w: (
                w.update({k.replace(_Q, "base_model.model.lm_head"): w.pop(k) for k in list(w) if _Q in k})
                or w.update({"base_model.model.lm_head.lora_B.weight": np.zeros((60, 4), np.float32)})
            ),
            "the adapter's part of lm_head cannot be chosen by session: its rows are kept",
        ),
    ],
)
def test_weights_that_do_not_fit(
    place: Path, base: Imported, tmp_path: Path, change: Any, message: str
) -> None:
    refused(base, rewritten(place, tmp_path, change), message)


def test_what_is_no_adapter(place: Path, base: Imported, tmp_path: Path) -> None:
    refused(base, place / "base", "there is no adapter")
    refused(base, tmp_path / "nowhere", "there is no adapter")
    refused(base, place / "plain", "'a b' is no name of an adapter", name="a b")
    folder = changed(place, tmp_path, r=1)
    save_file({}, folder / "adapter_model.safetensors")
    refused(base, folder, "the adapter has no weights")
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    refused(base, folder, "is read from adapter_model.safetensors")


def test_a_model_without_sessions(place: Path, base: Imported) -> None:
    graph = replace(base.graph, states=(), updates={})
    alone = replace(base, graph=graph, functions={})
    with pytest.raises(LlmcError, match="an adapter is chosen by session"):
        with_adapters(alone, {"one": place / "plain"})


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, given that it ends as it should."""

    def run(*arguments: object, code: int = 0) -> str:
        ended = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert ended == code, printed
        return printed.out if code == 0 else printed.err

    return run


def thin(place: Path, seed: int) -> tuple[Path, np.ndarray]:
    """An adapter of one product, by hand, and what it adds to the product's weight."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 16), (16, 3)))
    place.mkdir()
    save_file({f"{PREFIX}proj.lora_A.weight": a, f"{PREFIX}proj.lora_B.weight": b}, place / WEIGHTS[0])
    (place / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    return place, 2 * b @ a


def small(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """A graph's text: tokens to rows of a table, a product, which a state keeps; table and weight."""
    seq, past, rng = symbol("seq"), symbol("past"), np.random.default_rng(0)
    table, weight = (rng.standard_normal((n, 16)).astype(np.float32) for n in (32, 16))
    tokens = input_("input_ids", "i64", (1, seq), low=0, high=31)
    state = state_("seen", "f32", (1, past, 16), grows=1)
    rows = make("embedding", (constant(table), tokens))
    y = make("linear", (rows, constant(weight)), Source("proj"))
    updates = {"seen": make("concat", (state, y), axis=1)}
    write_graph(file, Graph((tokens,), {"y": y}, {"seq": (1, 20), "past": (0, 20)}, (state,), updates))
    return table, weight


def test_from_the_command_to_sessions(tmp_path: Path, command: Any) -> None:
    table, weight = small(tmp_path / "small.txt")
    (one, first), (two, second) = (thin(tmp_path / name, seed) for seed, name in enumerate("ab", 1))
    options = ("--target", "x86-avx2", f"--adapter=one={one}", f"--adapter=two={two}")
    command("-q", "compile", tmp_path / "small.txt", "-o", tmp_path / "m.llmc", *options)
    assert json.loads(command("inspect", tmp_path / "m.llmc", "--json"))["adapters"] == ["one", "two"]
    added = {None: np.zeros_like(weight), "one": first, "two": second}
    with llmc.load(tmp_path / "m.llmc", threads=1) as model:
        sessions = [model.session(adapter=name) for name in added]
        found = model.run_sessions([(session, {"input_ids": IDS}) for session in sessions])
    for outputs, more in zip(found, added.values(), strict=True):
        np.testing.assert_allclose(outputs["y"], table[IDS] @ (weight + more).T, rtol=1e-5, atol=1e-5)


def test_mistakes_of_the_command(place: Path, tmp_path: Path, command: Any) -> None:
    start = ("compile", place / "base", "-o", tmp_path / "m.llmc")
    one = f"--adapter=one={place / 'plain'}"
    assert "--adapter one= is given twice" in command(*start, one, one, code=2)
    merged = f"--adapter={place / 'plain'}"
    assert "give the others a name: --adapter NAME=DIR" in command(*start, merged, merged, code=2)
    assert "there is no adapter" in command(*start, f"--adapter=one={tmp_path}", code=1)
    assert not list(tmp_path.iterdir())
