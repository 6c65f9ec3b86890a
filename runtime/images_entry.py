"""The manifest's field `generation.images`: how a model that generates is given images, as `format.md` says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmc.runtime.fields import Field

TOGETHER = ("", "image", "prompt")
_TEXTS = ("placeholder", "row", "before", "after", "tile", "line", "whole", "begin", "end")


@dataclass(frozen=True)
class ImagesEntry:
    """How a model sees.

    Args:
        function: that leaves rows of images in states, which the function that generates reads.
        dim: the first axis of its inputs.
        token: of a text, stands for one row.
        rows: of an image, or of each of its tiles; None: as many as the image makes.
        together: whose tokens attend to later ones, and so must be in one run: an "image"'s or a "prompt"'s; else "".
        most: images, tiles or rows that the function takes.
        texts: what an image is in a prompt, by `_TEXTS`; empty if the folder's processor did not say.
    """

    function: str
    dim: str
    token: int
    rows: int | None
    together: str
    most: int
    texts: Mapping[str, str]


def read_images(
    entry: Field, functions: Mapping[str, Any], dims: Mapping[str, Any], most: int
) -> ImagesEntry:
    """The entry, checked.

    Args:
        functions: name -> `FunctionEntry`.
        dims: name -> bounds.
        most: the largest number of a token.

    Raises:
        LlmcError: a field is not what it should be.
    """
    dim = entry["dim"].one_of(dims)
    texts = entry["texts"].mapping() if "texts" in entry else {}
    for name, text in texts.items():
        if name not in _TEXTS:
            raise text.wrong(f"one of {', '.join(_TEXTS)}")
    return ImagesEntry(
        function=entry["function"].one_of(functions),
        dim=dim,
        token=entry["token"].integer(0, most),
        rows=entry["rows"].integer(1, most) if "rows" in entry else None,
        together=entry["together"].one_of(TOGETHER) if "together" in entry else "",
        most=int(dims[dim][1]),
        texts={name: text.text() for name, text in texts.items()},
    )
