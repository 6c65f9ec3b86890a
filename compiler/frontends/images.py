"""Models that read images: one input `pixel_values`, f32 [batch, channels, height, width], of fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.json_file import read_object
from llmc.errors import LlmcError

# preprocessor_config.json key -> key in the manifest; what a runtime needs to make `pixel_values`
_FACTS = {
    "size": "size",
    "crop_size": "crop_size",
    "resample": "resample",
    "rescale_factor": "rescale_factor",
    "image_mean": "mean",
    "image_std": "std",
}
_SWITCHES = {
    "size": "do_resize",
    "crop_size": "do_center_crop",
    "resample": "do_resize",
    "rescale_factor": "do_rescale",
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
}


def preprocessing(root: Path) -> Mapping[str, Any]:
    """The steps of preprocessor_config.json in their order: resize, crop, rescale, (x - mean) / std."""
    file = root / "preprocessor_config.json"
    if not file.exists():
        return {}
    config = read_object(file)
    return {
        ours: config[theirs]
        for theirs, ours in _FACTS.items()
        if config.get(theirs) is not None and config.get(_SWITCHES[theirs], True)
    }


_SIDES = (("height", "width"), ("shortest_edge",) * 2, ("longest_edge",) * 2)


def image_shape(config: Any, root: Path) -> tuple[int, int, int]:
    """Channels, height and width: what the processor makes, else what the model's configuration says, else 224.

    Args:
        config: transformers' configuration of the part that sees.

    Raises:
        LlmcError: the size is not one or two positive numbers.
    """
    channels, size = getattr(config, "num_channels", 3), getattr(config, "image_size", None)
    stated = preprocessing(root)
    if size is None:
        size = stated.get("crop_size") or stated.get("size") or 224
    if isinstance(size, Mapping):
        size = next(([size[k] for k in pair] for pair in _SIDES if all(k in size for k in pair)), size)
    pair = list(size) if isinstance(size, (list, tuple)) else [size, size]
    numbers: list[Any] = [channels, *pair]
    if len(numbers) != 3 or not all(type(n) is int and n > 0 for n in numbers):
        raise LlmcError(
            "image_size or num_channels is not a positive number",
            at=str(root / "config.json"),
            found=f"{size}, {channels}"[:80],
        )
    return numbers[0], numbers[1], numbers[2]
