"""Models that read images: one input `pixel_values`, f32 [batch, channels, height, width], of fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends.folder import Summary
from llmc.compiler.frontends.json_file import read_object
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph

INPUT = "pixel_values"

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


def image_shape(config: Mapping[str, Any], at: str) -> tuple[int, int, int]:
    """Channels, height and width of `config.json`.

    Raises:
        LlmcError: the size is not one or two positive numbers.
    """
    size, channels = config.get("image_size", 224), config.get("num_channels", 3)
    pair = size if isinstance(size, list) else [size, size]
    numbers = [channels, *pair]
    if len(numbers) != 3 or not all(type(n) is int and n > 0 for n in numbers):
        raise LlmcError(
            "image_size or num_channels is not a positive number", at=at, found=f"{size}, {channels}"
        )
    return numbers[0], numbers[1], numbers[2]


def graph(summary: Summary, model: Any, outputs: Sequence[str], max_batch: int) -> Graph:
    """The model's graph; the batch is dynamic."""
    import torch

    from llmc.compiler.frontends.heads import ROOT, ImageHead
    from llmc.compiler.frontends.torch_export import Declared, to_graph
    from llmc.compiler.frontends.tracing import trace

    shape = image_shape(summary.config, str(summary.root / "config.json"))
    axes = {0: torch.export.Dim("batch", min=1, max=max_batch)} if max_batch > 1 else {}
    sample = torch.zeros((min(2, max_batch), *shape))
    with torch.no_grad():
        program = trace(ImageHead(model, outputs).eval(), (sample,), (axes,))
    bounds = {"batch": (1, max_batch)}
    return to_graph(program, [Declared(INPUT, ("batch", *shape))], outputs, bounds, ROOT)
