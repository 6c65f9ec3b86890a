"""Small random models saved as Hugging Face folders, and the comparison with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from random_families import random_model, reference, sample

from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`make_model(family, class suffix, **config)`: see random_model."""
    return random_model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`saved(family, class suffix, **config) -> (folder, model)`"""

    def save(family: str, suffix: str, **changes: Any) -> tuple[Path, Any]:
        model = random_model(family, suffix, **changes)
        folder = tmp_path / f"{family}-{suffix}"
        model.save_pretrained(folder)
        return folder, model

    return save


def largest_difference(model: Any, graph: Graph, shapes: list[tuple[int, int]]) -> float:
    """The largest difference to PyTorch as a fraction of the output's largest value."""
    worst = 0.0
    for batch, seq in shapes:
        inputs = sample(graph, batch, seq)
        expected = reference(model, inputs)
        for name, value in run(graph, inputs).items():
            assert value.shape == expected[name].shape
            worst = max(worst, float(np.abs(value - expected[name]).max() / np.abs(expected[name]).max()))
    return worst


@pytest.fixture(scope="session")
def difference() -> Callable[..., float]:
    """`difference(model, graph, shapes)`: see largest_difference."""
    return largest_difference


@pytest.fixture(scope="session")
def sample_inputs() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """`sample_inputs(graph, batch, seq)`: see sample."""
    return sample
