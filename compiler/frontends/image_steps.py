"""The steps of transformers' image processors as the manifest's field `preprocess` says them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_PLAIN_CROP = 384  # from this side on ConvNeXT's processor does not crop


def fixed_size(steps: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that the steps make of any image; None if that depends on it."""
    box = steps.get("pad_size") or steps.get("crop_size") or steps.get("size") or {}
    return (box["height"], box["width"]) if set(box) == {"height", "width"} else None


def translated(processor: Any) -> dict[str, Any]:
    """The steps of an image processor, as the manifest says them."""
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")

    def said(key: str, switch: str) -> Any:
        return getattr(processor, key, None) if getattr(processor, switch, None) else None

    size = said("size", "do_resize")
    steps = {
        "channels": "bgr" if getattr(processor, "do_flip_channel_order", None) else None,
        "transparent": "white" if _whitens(processor) else None,
        "size": None if size is None else _sides(size),
        "resample": None if size is None else int(getattr(processor, "resample", None) or 0),
        "crop_size": _sides(said("crop_size", "do_center_crop")),
        "rescale_factor": said("rescale_factor", "do_rescale"),
        "mean": _numbers(said("image_mean", "do_normalize")),
        "std": _numbers(said("image_std", "do_normalize")),
        "pad_size": _sides(said("pad_size", "do_pad")),
    }
    if getattr(processor, "resample", None) is None:
        steps["resample"] = None
    special = _SPECIAL.get(name)
    steps |= {} if special is None else special(processor, steps)
    return {key: value for key, value in steps.items() if value is not None}


def _whitens(processor: Any) -> bool:
    """Whether it makes white what a file says is transparent; not all versions of transformers do."""
    if not getattr(processor, "do_convert_rgb", None):
        return False
    import numpy as np
    from PIL import Image

    black = Image.new("RGB", (1, 1))
    black.info["transparency"] = (0, 0, 0)
    return bool(np.asarray(processor.convert_to_rgb(black)).min() == 255)


def _sides(size: Any) -> dict[str, int] | None:
    """transformers keeps sizes as pairs, only those that are there."""
    if size is None:
        return None
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {str(key): int(value) for key, value in dict(size).items() if value is not None}


def _numbers(values: Any) -> list[float] | None:
    if values is None:
        return None
    return [float(v) for v in values] if isinstance(values, list | tuple) else [float(values)]


def _convnext(processor: Any, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Below 384 the middle of a larger image, from 384 on the whole image stretched."""
    if steps["size"] is None:
        return {}
    edge = steps["size"]["shortest_edge"]
    square = {"height": edge, "width": edge}
    if edge >= _PLAIN_CROP:
        return {"size": square}
    return {"size": {"shortest_edge": int(edge / processor.crop_pct)}, "crop_size": square}


def _efficientnet(processor: Any, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Divides by the deviation a second time for the classifier."""
    offset = {"offset": -1.0} if processor.rescale_offset and processor.do_rescale else {}
    if not processor.include_top:
        return offset
    std = _numbers(processor.image_std) or []
    if steps["std"] is None:
        return {**offset, "mean": [0.0] * len(std), "std": std}
    return {**offset, "std": [s * s for s in std]}


def _levit(processor: Any, steps: Mapping[str, Any]) -> dict[str, Any]:
    if steps["size"] is None or "shortest_edge" not in steps["size"]:
        return {}
    return {"size": {"shortest_edge": int(256 / 224 * steps["size"]["shortest_edge"])}}


def _poolformer(processor: Any, steps: Mapping[str, Any]) -> dict[str, Any]:
    if steps["size"] is None or processor.crop_pct is None:
        return {}
    edge = steps["size"].get("shortest_edge") or steps["size"]["height"]
    return {"size": {"shortest_edge": int(edge / processor.crop_pct)}}


_SPECIAL: Mapping[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "ConvNextImageProcessor": _convnext,
    "EfficientNetImageProcessor": _efficientnet,
    "LevitImageProcessor": _levit,
    "PoolFormerImageProcessor": _poolformer,
}
