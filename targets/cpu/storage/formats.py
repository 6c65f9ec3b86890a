"""The storage formats that products on CPUs read: llmc's own, and those of extensions."""

from __future__ import annotations

from collections.abc import Mapping

from llmc.compiler import extensions
from llmc.targets.cpu.storage import bfloat16, bitmask, blockwise, codebook
from llmc.targets.cpu.storage.panels import Reader


def readers() -> Mapping[str, Reader]:
    """Op -> how products read weights of it."""
    own: dict[str, Reader] = {
        "bfloat16": bfloat16.panels,
        "bitmask": bitmask.panels,
        "blockwise": blockwise.panels,
        "codebook": codebook.panels,
    }
    return {**own, **extensions.formats("cpu")}
