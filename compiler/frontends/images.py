"""Models that read images: one input `pixel_values`, f32 [batch, channels, height, width], of fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.image_steps import fixed_size
from llmc.compiler.frontends.processors import image_steps
from llmc.errors import LlmcError

_SIDES = (("height", "width"), ("shortest_edge",) * 2, ("longest_edge",) * 2)


def image_shape(config: Any, root: Path) -> tuple[int, int, int]:
    """Channels, height and width: what the processor makes, else what the model's configuration says, else 224.

    The processor goes before: DINOv2's makes 224 of what was trained with 518.

    Args:
        config: transformers' configuration of the part that sees.

    Raises:
        LlmcError: the size is not one or two positive numbers.
    """
    channels, size = getattr(config, "num_channels", 3), getattr(config, "image_size", None)
    stated = image_steps(root)
    if (fixed := fixed_size(stated)) is not None:
        size = fixed
    elif size is None:
        size = stated.get("size") or 224
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
