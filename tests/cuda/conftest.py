"""Fixtures of the CUDA tests: a small random BERT compiled for every GPU, once for each precision."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmc.compiler.graph import Graph

HERE = Path(__file__).parent
WIDTH, WORDS = 48, 99


@pytest.fixture(scope="session")
def gpu_lab() -> ModuleType:
    """tests/cuda/gpu_lab.py"""
    spec = importlib.util.spec_from_file_location("gpu_lab", HERE / "gpu_lab.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_lab"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def needs_nvcc() -> None:
    """Skip where the CUDA toolkit is missing: what the test would show stays unproved there."""
    from llmc.errors import LlmcError
    from llmc.targets.cuda.nvcc import find_nvcc

    try:
        find_nvcc()
    except LlmcError as error:
        pytest.skip(f"{error.problem}: the assembling of CUDA kernels is not tested")


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        max_position_embeddings=80,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(1)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("distilbert")
    config = DistilBertConfig(
        vocab_size=WORDS, dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=96, max_position_embeddings=80
    )
    DistilBertModel(config).save_pretrained(folder)
    return folder


class Compiled:
    """A CUDA artifact and what is needed to run it without a GPU."""

    def __init__(self, graph: Graph, place: Path, lab: ModuleType, quant: str, target: str) -> None:
        from llmc.driver import compile_graph

        self.lab, self.place, self.artifact = lab, place, place / "model.llmc"
        compile_graph(graph, self.artifact, target=target, quant=quant, keep=place / "keep")
        self.source = (place / "keep" / "kernels.cu").read_text()
        self.environment = {
            "LD_LIBRARY_PATH": str(lab.stand_in(place)),
            "LLMC_EMULATED_KERNELS": str(lab.emulated(self.source, place)),
        }

    def run(self, cases: list[dict[str, Any]], **more: str) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.lab.run_artifact(
            self.artifact, cases, self.place, {**self.environment, **more}
        )
        return results


@pytest.fixture(scope="session")
def imported() -> Callable[[Path], Graph]:
    """`imported(model folder)`: its graph, traced once."""

    @cache
    def load(model: Path) -> Graph:
        from llmc.compiler.frontends import huggingface

        return huggingface.load(model, max_seq=64).graph

    return load


@pytest.fixture(scope="session")
def compiled(
    tmp_path_factory: pytest.TempPathFactory,
    gpu_lab: ModuleType,
    needs_nvcc: None,
    imported: Callable[[Path], Graph],
) -> Callable[..., Compiled]:
    """`compiled(model folder, quant, target)`: each once."""
    made: dict[tuple[Any, ...], Compiled] = {}

    def make(model: Path, quant: str = "none", target: str = "cuda-sm_80") -> Compiled:
        key = (model, quant, target)
        if key not in made:
            place = tmp_path_factory.mktemp("cuda")
            made[key] = Compiled(imported(model), place, gpu_lab, quant, target)
        return made[key]

    return make


@pytest.fixture
def token_cases() -> list[dict[str, Any]]:
    """Four shapes, the last row of each padded."""
    rng, cases = np.random.default_rng(0), []
    for batch, seq in ((1, 1), (2, 9), (3, 33), (1, 64)):
        mask = np.ones((batch, seq), np.int64)
        mask[-1, seq // 2 + 1 :] = 0
        cases.append({"input_ids": rng.integers(0, WORDS, (batch, seq)), "attention_mask": mask})
    return cases
