"""EfficientNet-Lite0 with its real weights, a PyTorch module: `python bench/models.py` fetches what it needs."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmc
from llmc.errors import LlmcError

NAMES = ("LLMC_EFFICIENTNET", "LLMC_EFFICIENTNET_CODE", "LLMC_FOOLBOX")


@pytest.fixture
def imagenet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench/imagenet.py as a module."""
    path = Path(__file__).parents[2] / "bench" / "imagenet.py"
    spec = importlib.util.spec_from_file_location("bench_imagenet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_imagenet", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_real_weights(imagenet: Any, tmp_path: Path, variants: Any, bits_agree: Any) -> None:
    if missing := [name for name in NAMES if name not in os.environ]:
        pytest.skip(f"{missing[0]} is not set")
    pytest.importorskip("PIL")
    weights, code, folder = (Path(os.environ[name]) for name in NAMES)
    module = imagenet.build(code, weights)
    pixels, labels = imagenet.images(folder)
    imagenet.compile_model(module, tmp_path / "net.llmc", "x86")

    runs = []
    for variant in variants(tmp_path / "net.llmc"):
        with llmc.load(tmp_path / "net.llmc", variant=variant, threads=2) as model:
            runs.append(model(pixel_values=pixels))
            files = sorted(folder.glob("imagenet_*.jpg"))
            prepared = model.preprocess(images=files)
            assert np.abs(prepared["pixel_values"] - pixels).mean() < 0.05  # sides rounded otherwise
            assert (model(**prepared)["logits"].argmax(1) == labels).sum() >= 18
    assert bits_agree(runs)
    expected = module(torch.from_numpy(pixels)).numpy()
    logits = runs[0]["logits"]
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (logits.argmax(1) == labels).sum() >= 18


def test_a_module_is_compiled(tmp_path: Path) -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
    ).eval()
    sample = {"image": torch.zeros(1, 2, 8, 8)}
    llmc.compile_module(module, sample, tmp_path / "m.llmc", outputs=("features",), max_batch=4)
    image = np.random.default_rng(0).standard_normal((3, 2, 8, 8)).astype(np.float32)
    with llmc.load(tmp_path / "m.llmc") as model, torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(model(image=image)["features"], expected, rtol=1e-5, atol=1e-6)


class Bessel(torch.nn.Module):
    """An op that llmc has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x)


def test_mistakes_with_modules(tmp_path: Path) -> None:
    module, sample = torch.nn.Linear(3, 2), {"x": torch.zeros(1, 3)}
    with pytest.raises(LlmcError, match="training mode"):
        llmc.compile_module(module.train(), sample, tmp_path / "m.llmc")
    with pytest.raises(LlmcError, match="no task 'image-classify'"):
        llmc.compile_module(module.eval(), sample, tmp_path / "m.llmc", task="image-classify")
    with pytest.raises(LlmcError, match="returns 1 tensors"):
        llmc.compile_module(module.eval(), sample, tmp_path / "m.llmc", outputs=("a", "b"))
    with pytest.raises(LlmcError, match="i0"):
        llmc.compile_module(Bessel().eval(), {"x": torch.zeros(1, 4)}, tmp_path / "m.llmc")
    assert not (tmp_path / "m.llmc").exists()
