"""Images and sounds when a model is compiled.

Whether the runtime does to them what the folder's processor in transformers does, for which both are run; and images as
samples for calibration.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.frontends.processors import Processor
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import bind
from llmc.errors import LlmcError, LlmcWarning, extras_named
from llmc.runtime import audio, images, looking
from llmc.runtime.fields import Field

LARGEST = 1e-4  # difference to transformers


def image_samples(folder: Path, graph: Graph, preprocess: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each image of a folder, and of the folders in it, as inputs of batch 1; other files are passed over.

    Raises:
        LlmcError: the model takes no images, or the folder has none that can be read.
    """
    steps, name = _steps(graph, preprocess, str(folder))
    with extras_named():
        from PIL import Image
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in endings)
    if not files:
        raise LlmcError("calibration: the folder has no images in it", at=str(folder))
    for file in files:
        sample = {name: images.pixels(images.open_image(file, steps.channels, steps.white), steps)[None]}
        bind(graph, sample)
        yield sample


def image_sample(file: Path, graph: Graph, preprocess: Mapping[str, Any]) -> Mapping[str, Any]:
    """An image as inputs of batch 1.

    Raises:
        LlmcError: the model takes no images, or the file is none that can be read.
    """
    steps, name = _steps(graph, preprocess, str(file))
    return {name: images.pixels(images.open_image(file, steps.channels, steps.white), steps)[None]}


def _steps(graph: Graph, preprocess: Mapping[str, Any], at: str) -> tuple[images.ImageSteps, str]:
    """How images become the model's input, and its name."""
    inputs = {n.attributes["name"]: n for n in graph.inputs if n.dtype == "f32" and len(n.shape) == 4}
    if len(inputs) != 1 or not preprocess:
        hint = "give its inputs as an .npz file"
        raise LlmcError("calibration: the model does not take images", at=at, hint=hint)
    (name,) = inputs
    return images.read_steps(Field(dict(preprocess), at, "preprocess")), name


def want_same(processor: Processor) -> None:
    """Compare both on noise: wide, high and of the model's size; of a second for sounds.

    Warns where images come out stretched, since the artifact takes one size.

    Raises:
        LlmcError: they differ, so that artifact and folder would answer otherwise.
    """
    if processor.changed:
        height, width = processor.shape[1:]
        told = f"images are stretched to {height}x{width}: the folder's processor makes them of any size"
        warnings.warn(LlmcWarning(told), stacklevel=2)
    entry = Field(dict(processor.steps), processor.at, "preprocess")
    if "tiles" in entry or "grid" in entry:
        _want_same_cuts(processor, images.read_steps(entry))
    elif "kind" in entry:
        _want_same_sound(processor, audio.read_steps(entry))
    else:
        _want_same_images(processor, images.read_steps(entry))


def _want_same_images(processor: Processor, steps: images.ImageSteps) -> None:
    from PIL import Image

    rng, mode = np.random.default_rng(0), images.CHANNELS[steps.channels]
    _, height, width = processor.shape
    low, high = min(height, width) // 2 + 1, max(height, width) + 23
    for sides in ((low, high), (high, low), (height, width)):
        noise = rng.integers(0, 256, (*sides, 3), np.uint8)
        image = Image.fromarray(noise).convert(mode)
        if (theirs := processor.image(image)) is not None:
            _want_close(processor, images.pixels(image, steps), np.asarray(theirs))


def _want_same_cuts(processor: Processor, steps: images.ImageSteps) -> None:
    """Of images that are cut: wide, high and small ones."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for sides in ((37, 61), (90, 40), (16, 16)):
        image = Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8))
        made, _ = looking.made([image], steps)
        _want_close(processor, made[looking.PIXELS], np.asarray(processor.image(image)))


def _want_same_sound(processor: Processor, steps: audio.AudioSteps) -> None:
    sound = np.random.default_rng(0).standard_normal(steps.rate).astype(np.float32) / 8
    made, _ = audio.features([sound], steps)
    _want_close(processor, made[0], np.asarray(processor.sound(sound)))


def _want_close(processor: Processor, ours: Any, theirs: Any) -> None:
    if ours.shape != theirs.shape:
        processor.refuse(f"it makes {list(theirs.shape)}, llmc {list(ours.shape)}")
    worst = float(np.abs(ours - theirs).max())
    if not worst <= LARGEST:
        processor.refuse(f"numbers differ by up to {worst:.2g}")
