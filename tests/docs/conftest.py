"""Fixtures of the documentation's tests: its code blocks, and a model to try them on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

import llmc
from llmc.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def block() -> Callable[[str, str], str]:
    """`block("passes", "my_pass.py")`: the code fence of docs/passes.md whose info string ends in that name."""

    def find(document: str, name: str) -> str:
        text = (ROOT / "docs" / f"{document}.md").read_text()
        found = re.findall(rf"^```\w+ {re.escape(name)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert len(found) == 1, f"docs/{document}.md has {len(found)} blocks called {name}"
        return str(found[0])

    return find


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier with two classes and random weights, as a Hugging Face folder."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    rng = np.random.default_rng(0)  # not PyTorch's: its numbers depend on the CPU
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.from_numpy(rng.normal(0, 0.2, parameter.shape).astype(np.float32))
            parameter.copy_(drawn + 1 if name.endswith("LayerNorm.weight") else drawn)
    folder = tmp_path_factory.mktemp("models") / "classifier"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier(classifier_folder: Path) -> Path:
    """`classifier_folder` compiled; for AVX2 alone, as valgrind knows no AVX-512."""
    artifact = classifier_folder.with_name("m.llmc")
    llmc.compile(classifier_folder, artifact, target="x86-avx2")
    return artifact


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., SimpleNamespace]:
    """Run `llmc ARGUMENTS` in `tmp_path`, in this process: `returncode`, `stdout`, `stderr`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> SimpleNamespace:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run
