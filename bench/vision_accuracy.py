"""Accuracy of quantised networks for images: a CNN on Fashion-MNIST's 10,000 test images, EfficientNet-Lite0 on 20.

    apt-get install dataset-fashion-mnist
    python bench/vision_accuracy.py [--quant none fp16 int8 int8-static] [--epochs 2] [--only fashion efficientnet]
        [--before equalise correct-bias]

The CNN is that of `convolutions.py`, trained here, seeded, on one thread. int8-static is calibrated by 512 training
images, EfficientNet's by the 20 themselves, for want of others: its figures are a smoke test. `--before`: passes
in front of what quantises. "Drop" is in points, beside PyTorch fp32 on the same images, with the 95 % half width of the
paired difference.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convolutions import MODELS
from imagenet import images
from models import fetch

import llmc

FOLDER = Path("/usr/share/datasets/fashion-mnist")
QUANTS = ("none", "fp16", "int8", "int8-static")
BATCH, CALIBRATION = 100, 512

Array = np.ndarray[Any, Any]


def read(name: str) -> tuple[Array, Array]:
    """f32 [n, 1, 28, 28] of 0 to 1, and labels [n], of "train" or "t10k"."""
    with gzip.open(FOLDER / f"{name}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(FOLDER / f"{name}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return pixels.astype(np.float32) / 255, labels.astype(np.int64)


def trained(epochs: int) -> Any:
    """The CNN after so many epochs of Adam with a falling rate."""
    torch.manual_seed(0)
    model, _ = MODELS["fashion"]()
    pixels, labels = map(torch.from_numpy, read("train"))
    steps = epochs * len(labels) // BATCH
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(0, len(labels), (BATCH,))
        loss = torch.nn.functional.cross_entropy(model(pixels[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def answers(artifact: Path, pixels: Array) -> Array:
    """The class of each image."""
    with llmc.load(artifact, threads=1) as model:
        parts = [
            model(pixel_values=pixels[i : i + 20])["logits"].argmax(1) for i in range(0, len(pixels), 20)
        ]
    return np.concatenate(parts)


def judged(
    name: str,
    model: Any,
    test: tuple[Array, Array],
    calibration: Array,
    quants: list[str],
    before: list[str],
    folder: Path,
) -> Iterator[str]:
    """A line for each precision."""
    pixels, labels = test
    np.savez(folder / "calibration.npz", pixel_values=calibration)
    with torch.no_grad():
        expected = np.concatenate(
            [model(torch.from_numpy(p)).argmax(1).numpy() for p in np.split(pixels, len(pixels) // 20)]
        )
    right = expected == labels
    yield f"{name}: PyTorch fp32 {int(right.sum())} of {len(labels)} ({100 * right.mean():.2f} %)"
    for quant in quants:
        artifact = folder / f"{name}-{quant}.llmc"
        more: dict[str, Any] = {"add_passes": [f"{change}@quantise" for change in before]}
        if quant == "int8-static" or any(change.startswith("correct-bias") for change in before):
            more["calib"] = folder / "calibration.npz"
        sample = {"pixel_values": torch.zeros(1, *pixels.shape[1:])}
        llmc.compile_module(model, sample, artifact, outputs=("logits",), quant=quant, **more)
        found = answers(artifact, pixels)
        loss = right.astype(float) - (found == labels)
        half = 196 * loss.std(ddof=1) / math.sqrt(len(loss))
        yield (
            f"{name} {quant:<12} {int((found == labels).sum())} of {len(labels)}"
            f"  drop {100 * loss.mean():+.2f} +- {half:.2f}  same answers {100 * (found == expected).mean():.2f} %"
        )


def main() -> int:
    """Train, compile, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quant", nargs="+", choices=QUANTS, default=list(QUANTS))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", choices=("fashion", "efficientnet"), default=["fashion", "efficientnet"]
    )
    parser.add_argument("--before", nargs="+", default=[], help="passes in front of what quantises")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="llmc-") as place:
        if "fashion" in options.only:
            if not FOLDER.is_dir():
                parser.error("apt-get install dataset-fashion-mnist")
            model, calibration = trained(options.epochs), read("train")[0][:CALIBRATION]
            for told in judged(
                "fashion", model, read("t10k"), calibration, options.quant, options.before, Path(place)
            ):
                print(told, flush=True)
        if "efficientnet" in options.only:
            model, _ = MODELS["efficientnet"]()
            test = images(fetch("foolbox"))
            for told in judged(
                "efficientnet", model.eval(), test, test[0], options.quant, options.before, Path(place)
            ):
                print(told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
