"""Convolutions by tiles in an artifact: the same bits on every variant, thread and in every batch; and without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import instruction_sets
import numpy as np
import pytest
import torch

import llmc

X = np.random.default_rng(0).standard_normal((5, 3, 31, 26)).astype(np.float32)
WITHOUT = 'winograd{skip=["*"]}@layout'


class Block(torch.nn.Module):
    """Two convolutions and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.second = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def network() -> Any:
    nn = torch.nn
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 40, 3), nn.MaxPool2d(2), Block(40), nn.Flatten(2))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def made(shared: Callable[..., Path]) -> Callable[..., Path]:
    def make(name: str, **options: Any) -> Path:
        def compile_it(path: Path) -> None:
            sample = {"x": torch.zeros(2, 3, 31, 26)}
            llmc.compile_module(network(), sample, path, target="x86", max_batch=8, **options)

        with instruction_sets.code_of_this_processor():
            return shared(f"{name}.llmc", compile_it)

    return make


def test_bits(made: Any, variants: Any, bits_agree: Any) -> None:
    path, runs = made("tiles"), []
    for name in variants(path):
        for threads in (1, 2, 3):
            with llmc.load(path, threads=threads, variant=name) as model:
                runs.append(model.run({"x": X}))
                alone = [model.run({"x": X[i : i + 1]}) for i in range(len(X))]
                runs.append({name: np.concatenate([one[name] for one in alone]) for name in runs[-1]})
    assert bits_agree(runs)


def test_with_and_without(made: Any) -> None:
    """Other bits, equally near."""
    paths = (made("tiles"), made("windows", add_passes=WITHOUT))
    with torch.inference_mode():
        exact = network().double()(torch.from_numpy(X).double()).numpy()
    found = []
    for path in paths:
        with llmc.load(path) as model:
            (value,) = model.run({"x": X}).values()
            found.append(np.array(value))
    assert not np.array_equal(*found)
    for value in found:
        assert np.abs(value - exact).max() < 1e-6 * np.abs(exact).max()
    texts = [llmc.runtime.read_manifest(path).raw["pipeline"] for path in paths]
    assert texts[0].endswith(",winograd")
    assert "winograd" in texts[1]
