"""Gradients that a copy of a student makes, as `llmc.replicas` has them made on a GPU: on the CPU the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import recovering
import torch
from recovering import SETTINGS, weights

from llmc import replicas
from llmc.errors import LlmcError
from llmc.recover import recover
from llmc.replicas import OnDevice, accelerator


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """accelerate's state is one for a process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def on_cpu(monkeypatch: pytest.MonkeyPatch, precision: str = "no") -> None:
    """Let accelerate's CPU be taken for a GPU."""
    made = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    monkeypatch.setattr("llmc.workers.accelerator", lambda device: made)


@pytest.mark.parametrize(
    ("asked", "make"),
    [
        ({"prune": "0.5"}, recovering.bert),
        ({"quant": "int8"}, recovering.bert),
        ({"share": "16"}, recovering.bert),
        ({"quant": "w4", "lora": 4}, recovering.llama),
    ],
)
def test_the_path_of_a_gpu_has_the_bits_of_the_other(tmp_path: Path, monkeypatch, asked, make):
    model, data = make(tmp_path / "model"), recovering.texts(tmp_path / "texts.txt")
    settings = replace(SETTINGS, **{"prune": None, "steps": 3, **asked})
    recover(model, data, tmp_path / "plain", settings)
    told: list[str] = []
    on_cpu(monkeypatch)
    recover(model, data, tmp_path / "other", settings, say=told.append)
    assert told[0] == "recover: gradients are made on cpu, mixed precision: no"
    files = "adapter_model.safetensors" if "lora" in asked else "model.safetensors"
    assert (tmp_path / "plain" / files).read_bytes() == (tmp_path / "other" / files).read_bytes()


def test_in_mixed_precision_weights_stay_float32(tmp_path: Path, monkeypatch):
    model, data = recovering.bert(tmp_path / "model"), recovering.texts(tmp_path / "texts.txt")
    on_cpu(monkeypatch, "bf16")
    recover(model, data, tmp_path / "out", replace(SETTINGS, steps=3))
    assert {weight.dtype for weight in weights(tmp_path / "out").values()} == {torch.float32}


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    asked: list[Any] = []

    def made(**options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(device=torch.device("cuda", 0), num_processes=len(asked))

    monkeypatch.setattr(accelerate, "Accelerator", made)
    assert accelerator() is None, "there is none here"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert accelerator("cpu") is None
    assert not asked
    found = accelerator()
    assert OnDevice(found).device == torch.device("cuda", 0)
    assert asked == [{"mixed_precision": "no"}]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    with pytest.raises(LlmcError, match=r"recover is one process\n.*2 processes"):
        accelerator()
    assert asked[1] == {"mixed_precision": "bf16"}
    with pytest.raises(LlmcError, match="no such device: gpu"):
        accelerator("gpu")
    assert replicas.DEVICES == ("auto", "cpu")
