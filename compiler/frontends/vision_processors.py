"""What a folder's image processor does for a model of images and text: see `processors`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends import processors
from llmc.compiler.frontends.image_steps import fixed_size, translated
from llmc.compiler.frontends.processors import Processor
from llmc.errors import LlmcError, first_line

if TYPE_CHECKING:
    from llmc.compiler.frontends.eyes import Eyes


@dataclass(frozen=True)
class Cutter(Processor):
    """One whose images become tiles or patches of a grid, as many as an image makes."""

    def image(self, image: Any) -> Any:
        """f32 [tiles, channels, height, width] or [rows, patches, values]."""
        import numpy as np  # looking at a folder needs none

        try:
            made = np.asarray(self.made([image], return_tensors="np")["pixel_values"])
        except Exception as error:  # anything that transformers raises
            self.refuse(f"its own error: {first_line(error)}")
        return made[0] if "tiles" in self.steps else made.reshape(-1, *self.shape)


def of(root: Path, eyes: Eyes) -> Processor | None:
    """The processor of a model that sees; None if the folder has none.

    Raises:
        LlmcError: it cannot be made, or makes something else than the model takes.
    """
    made = processors.processor_of(root, "image_processor")
    if made is None:
        return None
    at = str(processors.file_of(root, "image_processor"))
    if eyes.kind == "fixed":
        return _fixed(root, eyes, made, at)
    steps = {k: v for k, v in translated(made).items() if k not in ("size", "pad_size")}
    if not getattr(made, "do_resize", False):
        raise _not_known("images are not resized", at)
    if eyes.kind == "tiles":
        steps["tiles"] = _tiles(made, eyes, at)
        return Cutter(made, steps, at, eyes.shape)
    steps["grid"] = _grid(made, eyes, at)
    return Cutter(made, steps, at, eyes.inputs[0].axes[1:])  # type: ignore[arg-type]  # sizes


def _fixed(root: Path, eyes: Eyes, made: Any, at: str) -> Processor | None:
    """Its images must all come out in the model's size: a stretched one is another picture."""
    for name in ("do_pan_and_scan", "do_image_splitting"):
        if getattr(made, name, None):
            raise _not_known(f"{name} is true", at)
    if (size := fixed_size(translated(made))) != eyes.shape[1:]:
        raise _not_known(f"its images are of {size or 'any size'}, the model's of {eyes.shape[1:]}", at)
    return processors.images_of(root, eyes.shape)


def _tiles(made: Any, eyes: Eyes, at: str) -> dict[str, Any]:
    size, edge = (getattr(getattr(made, n, None), "longest_edge", None) for n in ("size", "max_image_size"))
    edge = edge or (dict(made.max_image_size) or {}).get("longest_edge")
    if type(size) is not int or edge != eyes.shape[1]:
        raise _not_known(f"size or max_image_size is not of tiles of {eyes.shape[1]}", at)
    return {"longest_edge": size, "edge": edge, "split": bool(made.do_image_splitting)}


def _grid(made: Any, eyes: Any, at: str) -> dict[str, Any]:
    sizes = {"patch": made.patch_size, "merge": made.merge_size, "frames": made.temporal_patch_size}
    if sizes != eyes.sizes:
        raise _not_known(f"its patches are {sizes}, the model's {eyes.sizes}", at)
    size = dict(made.size)
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if type(least) is not int or type(most) is not int:
        raise _not_known("size is not shortest_edge and longest_edge", at)
    count = eyes.counted
    if least % count or most % count:
        raise _not_known(f"size is not of whole pixels in {count} frames", at)
    found = {**sizes, "least": least // count, "most": most // count, "window": eyes.window}
    return {**found, "enlarged": True} if eyes.enlarged else found


def _not_known(found: str, at: str) -> LlmcError:
    return LlmcError(
        "the folder's image processor does what llmc does not do for this model",
        at=at,
        found=found,
        hint="mend preprocessor_config.json, or compile for texts alone: --task text-generation",
    )
