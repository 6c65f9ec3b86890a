"""Broken, foreign and incomplete folders: each one clear error, found early; and `inspect`."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmc.compiler.frontends import sizes
from llmc.compiler.frontends.folder import inspect, labels, require_tokenizer
from llmc.compiler.frontends.huggingface import load
from llmc.compiler.frontends.safetensors_file import Tensor, read_header
from llmc.compiler.frontends.tasks import task_of
from llmc.errors import LlmcError, LlmcWarning


@pytest.fixture
def folder(saved: Any) -> Path:
    """A small BERT classifier."""
    path: Path = saved("bert", "ForSequenceClassification", id2label={0: "bad", 1: "good"})[0]
    return path


def edit(path: Path, **changes: Any) -> None:
    """Change entries of config.json; None removes one."""
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def write_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def cut(path: Path, size: int) -> None:
    os.truncate(path / "model.safetensors", size)


def first_tensor(header: dict[str, Any]) -> Any:
    return next(v for k, v in header.items() if k != "__metadata__")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda p: (p / "config.json").write_text("[]"), "not a JSON object"),
    "config not text": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "no weights"),
    "no model type": (lambda p: edit(p, model_type=None), "no model_type"),
    "unknown model type": (lambda p: edit(p, model_type="berd"), "'berd' is not supported"),
    "another model type": (
        lambda p: edit(p, model_type="bloom"),
        "BertForSequenceClassification is not of the model type 'bloom'",
    ),
    "unknown architecture": (
        lambda p: edit(p, architectures=["BertForFun"]),
        "'BertForFun' is not supported",
    ),
    "quantised": (lambda p: edit(p, quantization_config={"bits": 4}), "already quantised"),
    "positions": (lambda p: edit(p, max_position_embeddings="many"), "max_position_embeddings is not"),
    "truncated data": (
        lambda p: cut(p, (p / "model.safetensors").stat().st_size - 1),
        "corrupt or truncated",
    ),
    "truncated header": (lambda p: cut(p, 100), "corrupt or truncated"),
    "truncated length": (lambda p: cut(p, 3), "corrupt or truncated"),
    "empty weights": (lambda p: cut(p, 0), "corrupt or truncated"),
    "header not JSON": (
        lambda p: (p / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"abcd"),
        "corrupt",
    ),
    "overlap": (lambda p: write_header(p, lambda h: first_tensor(h).update(data_offsets=[4, 8])), "corrupt"),
    "dtype": (lambda p: write_header(p, lambda h: first_tensor(h).update(dtype="F33")), "malformed entry"),
    "shape": (lambda p: write_header(p, lambda h: first_tensor(h).update(shape=[-1])), "malformed entry"),
    "tokenizer": (lambda p: (p / "tokenizer.json").write_text("{}"), "not a tokenizer"),
    "fewer layers": (lambda p: edit(p, num_hidden_layers=1), "weights that the model of config.json lacks"),
    "more layers": (lambda p: edit(p, num_hidden_layers=3), "no weights for bert.encoder.layer.2"),
    "other width": (
        lambda p: edit(p, intermediate_size=65),
        "weights do not fit config.json: bert.encoder.layer.0",
    ),
    "heads": (lambda p: edit(p, num_attention_heads=5), "transformers cannot load"),
    "activation": (lambda p: edit(p, hidden_act="gelo"), "transformers cannot load"),
    "file": (lambda p: None, "no model folder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders(case: str, folder: Path) -> None:
    damage, problem = BROKEN[case]
    damage(folder)

    with pytest.raises(LlmcError, match=problem) as caught:
        load(folder / "config.json" if case == "file" else folder)

    assert caught.value.hint or caught.value.at
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_near_names_are_offered(folder: Path) -> None:
    edit(folder, model_type="distillbert")
    with pytest.raises(LlmcError, match="did you mean distilbert"):
        load(folder)
    edit(folder, model_type="bert")
    with pytest.raises(LlmcError, match="did you mean text-classification"):
        load(folder, task="text-classificaton")


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("token-classification", None),  # the same weights by name and shape: only the user can know
        ("question-answering", "no weights for qa_outputs"),
        ("fill-mask", "no weights for cls.predictions"),
        ("replaced-token-detection", "have no head"),
    ],
)
def test_a_head_without_weights_is_never_exported(task: str, problem: str | None, folder: Path) -> None:
    if problem is None:
        assert load(folder, task=task).architecture == "BertForTokenClassification"
        return
    with pytest.raises(LlmcError, match=problem):
        load(folder, task=task)


def test_bounds(folder: Path) -> None:
    with pytest.raises(LlmcError, match="more than the model's 64 positions"):
        load(folder, max_seq=65)
    with pytest.raises(LlmcError, match="max_batch is 0"):
        load(folder, max_batch=0)


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_pickled_weights_run_no_code(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Attack(tmp_path / "pwned")}, folder / "pytorch_model.bin")
    with pytest.raises(LlmcError):
        load(folder)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(tmp_path / "pwned")))
    with pytest.raises(LlmcError):
        load(folder)
    assert not (tmp_path / "pwned").exists()


def test_pickled_weights_load(saved: Any, difference: Any) -> None:
    path, model = saved("bert", "Model")
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")

    assert inspect(path).parameters is None
    assert difference(model, load(path).graph, [(2, 5)]) < 1e-5


def test_custom_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nclass Evil: pass\n")
    edit(folder, auto_map={"AutoModelForSequenceClassification": "evil.Evil", "AutoConfig": "evil.Evil"})

    load(folder)

    assert not (tmp_path / "pwned").exists()


def test_random_damage_is_an_error_or_harmless(folder: Path) -> None:
    """Changes of the header's bytes: `inspect` accepts or says what is wrong."""
    file = folder / "model.safetensors"
    original = file.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(end)] = rng.randrange(256)
        file.write_bytes(data)
        try:
            inspect(folder)
        except LlmcError:
            refused += 1
    assert refused > 200


def test_inspect(saved: Any) -> None:
    folder, model = saved("bert", "ForSequenceClassification", id2label={0: "bad", 1: "good"})

    summary = inspect(folder)

    assert (summary.model_type, summary.architecture) == ("bert", "BertForSequenceClassification")
    assert (summary.task.name, summary.labels) == ("text-classification", ("bad", "good"))
    assert summary.dtypes == {"F32": summary.parameters}
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.max_positions == 64
    assert summary.tokenizer is None


def test_text_needs_a_tokenizer(folder: Path) -> None:
    with pytest.raises(LlmcError, match=r"no tokenizer\.json"):
        require_tokenizer(inspect(folder))

    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 20}')
    tokenizer = require_tokenizer(inspect(folder))
    assert (tokenizer.max_length, tokenizer.pad_id) == (20, 1)


def test_inspect_imports_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from llmc.compiler.frontends.huggingface import inspect; inspect(sys.argv[1]);"
        "print(sorted({'torch', 'transformers', 'tvm', 'sympy', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_importing_is_silent(folder: Path) -> None:
    code = "import sys; from llmc.compiler.frontends.huggingface import load; load(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


def test_a_head_that_is_not_known_is_arrays_in_and_out() -> None:
    """A near name is another task: nobody means it."""
    for architecture in ("BertForFun", "LlamaForRewardModelling"):
        found = task_of({"model_type": "bert", "architectures": [architecture]}, "auto", False, "config.json")
        assert (found.name, found.outputs) == ("generic", ())


def test_a_class_without_a_name_has_none_of_another() -> None:
    """transformers fails at such a class; the names of the others are theirs."""
    assert labels({"id2label": {"2": "c", "0": "a", "1": "b"}}) == ("a", "b", "c")
    with pytest.warns(LlmcWarning, match="no name for class 1, which is called LABEL_1"):
        assert labels({"id2label": {"0": "a", "5": "b"}}) == ("a", "LABEL_1")
    with pytest.warns(LlmcWarning, match="no name for class 0"):
        assert labels({"id2label": {"1": "a", "2": "b"}}) == ("LABEL_0", "a")


def test_experts_that_a_model_states_and_does_not_have() -> None:
    """Every config.json of a Doge has its class' 16384, without weights of that size."""
    import transformers

    stated = transformers.DogeConfig(hidden_size=32, vocab_size=100, intermediate_size=48).to_dict()
    assert not stated["is_moe"]
    sizes.want_of(stated, {"a": Tensor("F32", (100, 32), 0)}, "config.json")


def test_every_kind_of_number_that_the_format_has(tmp_path: Path) -> None:
    """Those below a byte are told apart from damage."""
    from safetensors.torch import save_file

    kinds = ("complex64", "float8_e4m3fn", "float8_e8m0fnu", "float8_e5m2fnuz", "uint16", "uint64", "bool")
    held = {name: torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name)) for name in kinds}
    save_file(held, tmp_path / "a.safetensors")
    assert {name: t.shape for name, t in read_header(tmp_path / "a.safetensors").items()} == {
        name: tuple(value.shape) for name, value in held.items()
    }
    save_file(
        {"w": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "b.safetensors"
    )
    with pytest.raises(LlmcError, match="has weights of F4, which are not supported"):
        read_header(tmp_path / "b.safetensors")


def test_a_model_may_state_ten_million_positions() -> None:
    """As Llama 4 and MiniMax do: their rotary positions are no weights."""
    tensors = {"a": Tensor("F32", (100, 32), 0)}
    assert sizes.positions({"max_position_embeddings": 10_485_760}, tensors, "config.json") == 10_485_760
    with pytest.raises(LlmcError, match="max_position_embeddings is larger than any weight"):
        sizes.positions({"max_position_embeddings": 100_000_000}, tensors, "config.json")
