"""A small classifier, compiled as a shared module, as a static library, and as one whose symbols have a prefix."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.driver import compile_graph

ROOT = Path(__file__).resolve().parents[2]
STRICT = ["cc", "-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic"]


def run(*command: object, **options: Any) -> Any:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="session")
def shell() -> Callable[..., Any]:
    """`shell(program, arguments...)`: what `subprocess.run` gives, with text."""
    return run


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


def classifier(folder: Path, labels: int) -> Path:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(labels)
        transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with 3 classes; for AVX2 alone, as valgrind knows no AVX-512. It holds module.so too."""
    folder = tmp_path_factory.mktemp("static")
    model = classifier(folder / "classifier", 3)
    llmc.compile(model, folder / "m.llmc", target="x86-avx2", emit="static")
    return folder / "m.llmc"


@pytest.fixture(scope="session")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, x [batch, 4] -> y [batch, 3] and [batch, 5], with the prefixes `a_` and `b_`."""
    folder, artifacts = tmp_path_factory.mktemp("prefixed"), []
    x = input_("x", "f32", (symbol("batch"), 4))
    for prefix, size in (("a_", 3), ("b_", 5)):
        weight = constant(np.arange(4 * size, dtype=np.float32).reshape(size, 4))
        graph = Graph((x,), {"y": make("linear", (x, weight))}, {"batch": (1, 8)})
        artifacts.append(folder / f"{prefix}.llmc")
        compile_graph(graph, artifacts[-1], target="x86-avx2", emit="static", prefix=prefix)
    return artifacts


@pytest.fixture(scope="session")
def link(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`link(name, sources, flags...)`: a program compiled strictly."""

    def build(name: str, sources: list[Path], *flags: object) -> Path:
        output = tmp_path_factory.mktemp("programs") / name
        result = run(*STRICT, *sources, *flags, "-o", output)
        assert result.returncode == 0, result.stderr
        return output

    return build
