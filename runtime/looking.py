"""A text's images for a model that generates: inputs of the function that sees, and tokens in the prompt."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError, many
from llmc.runtime import images, patches
from llmc.runtime.arrays import Array
from llmc.runtime.source import hold

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.images_entry import ImagesEntry
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session

PIXELS, GRID = "pixel_values", "rows_at"


@dataclass(frozen=True)
class Looked:
    """Images, ready for the function that sees.

    Args:
        arrays: its inputs; empty: there are no images.
        sizes: of each image the rows and columns that it makes of tiles or of a grid.
        rows: of all of them.
        key: the same for the same images.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    sizes: Sequence[tuple[int, int]] = ()
    rows: int = 0
    key: str = ""


def look(session: Session, entry: GenerationEntry, looked: Looked | None) -> float:
    """Have a session hold these images, and no others; the seconds that it took. An encoder's is an array.

    What it holds of a text stays where the images are those that it held before.
    """
    if entry.encoder is not None and looked is not None:
        return hold(session, entry.encoder, looked.arrays[entry.encoder.source])
    if entry.images is None:
        return 0.0
    looked, begin = looked or Looked(), time.perf_counter()
    if session.looked == looked.key and entry.images.together != "prompt":
        return 0.0
    session.reset()
    if looked.arrays:
        session.run(dict(looked.arrays), function=entry.images.function)
    else:
        session.resize(**{entry.images.dim: 1})
    session.looked = looked.key
    return time.perf_counter() - begin


def images_of(model: Model) -> ImagesEntry:
    """How a model is given images.

    Raises:
        LlmcError: it takes none.
    """
    entry = model.manifest.generation
    if entry is None or entry.images is None:
        raise LlmcError(
            "the model takes no images beside a prompt", at=str(model.path), found=f"a {model.task} model"
        )
    return entry.images


def prepared(model: Model, sources: Sequence[Any]) -> Looked:
    """The images of one text: paths, images of Pillow, or u8 [height, width, 3].

    Raises:
        LlmcError: one is no image, or there are too many.
    """
    from llmc.runtime.media import steps_of

    entry, steps = images_of(model), steps_of(model)
    opened = [images.open_image(source, steps.channels, steps.white) for source in sources]
    arrays, sizes = made(opened, steps)
    count = len(arrays[PIXELS])
    if count > entry.most:
        raise LlmcError(
            f"the images make {count} {entry.dim}, the model takes at most {entry.most}",
            at=str(model.path),
            hint="give fewer or smaller ones, or compile the model with a larger bound (--max-seq)",
        )
    _want_shape(model, entry, arrays[PIXELS])
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
    return Looked(arrays, sizes, count * (entry.rows or 1), digest.hexdigest())


def made(opened: Sequence[Any], steps: images.ImageSteps) -> tuple[dict[str, Array], list[tuple[int, int]]]:
    """The inputs of the function that sees, and of each image how many rows and columns of tiles or of a grid it makes.

    Raises:
        LlmcError: an image is too narrow.
    """
    return (_tiled if steps.tiles else _gridded if steps.grid else _fixed)(opened, steps)


def _want_shape(model: Model, entry: ImagesEntry, pixels: Array) -> None:
    wanted = model.functions[entry.function].inputs[PIXELS].shape[1:]
    if pixels.shape[1:] != tuple(wanted):
        shapes = ("x".join(map(str, shape)) for shape in (pixels.shape[1:], wanted))
        problem = f"an image becomes {next(shapes)}, the model takes {next(shapes)}"
        raise LlmcError(
            problem,
            at=str(model.path),
            hint="resize it before, or mend the folder's processor and compile again",
        )


def _fixed(opened: Sequence[Any], steps: images.ImageSteps) -> tuple[dict[str, Array], list[tuple[int, int]]]:
    for image in opened:
        images.want_width(image, steps)
    return {PIXELS: np.stack([images.pixels(image, steps) for image in opened])}, [(0, 0)] * len(opened)


def _tiled(opened: Sequence[Any], steps: images.ImageSteps) -> tuple[dict[str, Array], list[tuple[int, int]]]:
    assert steps.tiles is not None
    found, sizes = list[Array](), list[tuple[int, int]]()
    for image in opened:
        parts, size = patches.tiles(image, steps.tiles, steps.resample)
        found += [images.pixels(part, steps) for part in parts]
        sizes.append(size)
    return {PIXELS: np.stack(found)}, sizes


def _gridded(
    opened: Sequence[Any], steps: images.ImageSteps
) -> tuple[dict[str, Array], list[tuple[int, int]]]:
    assert steps.grid is not None
    found, sizes = list[Array](), list[tuple[int, int]]()
    for image in opened:
        height, width = patches.grid_size(image.height, image.width, steps.grid)
        planes = images.pixels(image.resize((width, height), steps.resample), steps)
        rows, size = patches.patched(planes, steps.grid)
        found.append(rows)
        sizes.append(size)
    return {PIXELS: np.concatenate(found), GRID: patches.beside(sizes, steps.grid.window)}, sizes


# --- prompts


def expanded(entry: ImagesEntry, prompt: str, looked: Looked, at: str) -> str:
    """A prompt with all tokens of its images, as the model's processor writes them.

    Raises:
        LlmcError: there are not as many places for images as images.
    """
    texts = entry.texts
    if not texts:
        if looked.arrays:
            raise LlmcError("the artifact does not say how images stand in a prompt", at=at, hint=_TOKENS)
        return prompt
    place, count = texts["placeholder"], len(looked.sizes)
    if "begin" in texts and place not in prompt:
        prompt = place * count + prompt  # PaliGemma's: all images come first
    if (found := prompt.count(place)) != count:
        given = "no image is given" if not count else f"{many(count, 'images')} given"
        raise LlmcError(
            f"the prompt has {many(found, 'places') if found else 'no places'} for images, {given}",
            found=f"{place!r} in the prompt, {found} times",
            hint=f"each {place} in the prompt stands for an image: give as many (images=[...], --image FILE)",
        )
    if "begin" in texts:
        end = prompt.rfind(place) + len(place) if count else 0
        prompt = prompt[:end] + texts["begin"] + prompt[end:] + texts["end"]
    head, *rest = prompt.split(place)
    parts = (image_text(entry, size) + text for size, text in zip(_by_image(looked), rest, strict=True))
    return head + "".join(parts)


_TOKENS = (
    "give tokens, with the image token once for each row; or compile a folder with its processor's settings"
)


def _by_image(looked: Looked) -> list[tuple[tuple[int, int], int]]:
    """Of each image its size, and its rows where that says them."""
    return [(size, size[0] * size[1]) for size in looked.sizes]


def image_text(entry: ImagesEntry, size: tuple[tuple[int, int], int]) -> str:
    """What stands for one image."""
    texts, ((down, across), area) = entry.texts, size
    rows = texts["row"] * (entry.rows or area)
    if "tile" not in texts or not area:
        return texts.get("before", "") + rows + texts.get("after", "")
    lines = [
        "".join(texts["tile"].format(row=y + 1, column=x + 1) + rows for x in range(across)) + texts["line"]
        for y in range(down)
    ]
    return "".join(lines) + texts["whole"] + rows + texts["after"]


def want_rows(entry: ImagesEntry, ids: Sequence[int], looked: Looked) -> None:
    """Refuse a prompt with more or fewer image tokens than there are rows for.

    Raises:
        LlmcError: it is one.
    """
    count = sum(token == entry.token for token in ids)
    if count != looked.rows:
        hint = (
            f"token {entry.token} stands for a row of an image"
            if looked.rows
            else "give the images: images=[...]"
        )
        raise LlmcError(
            f"the prompt has {many(count, 'tokens of images')}, the images given make {looked.rows}",
            hint=hint,
        )


_SOURCES = ("image", "path", "url", "base64")
_NOT_TAKEN = (
    "video",
    "video_url",
    "audio",
    "audio_url",
    "input_audio",
)  # a template may leave them out in silence


def from_messages(messages: Any, given: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A conversation whose images are marked alone, as templates read them, and the images in their order.

    Args:
        given: the images of parts that have none themselves, in order.

    Raises:
        LlmcError: a part has no image, or there are more images than parts.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        return messages, list(given)
    left, found = list(given), list[Any]()
    made = [_without(message, left, found) for message in messages]
    if left:
        raise LlmcError(
            f"{len(given)} images are given, the messages have parts for {len(given) - len(left)}",
            hint='{"type": "image"} among the parts of a content stands for an image',
        )
    return made, found


def _without(message: Any, left: list[Any], found: list[Any]) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    parts = [_part(part, left, found) for part in message["content"]]
    return {**message, "content": parts}


def _part(part: Any, left: list[Any], found: list[Any]) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _NOT_TAKEN:
        raise LlmcError(f"a part of a message is of the type {kind!r}", hint="texts and images are taken")
    if kind not in ("image", "image_url"):
        return part
    name = "url" if kind == "image_url" else next((k for k in _SOURCES if part.get(k) is not None), None)
    if name in ("url", "base64"):
        raise LlmcError(
            f"an image by its {name} is not taken",
            hint='give a path or the image: {"type": "image", "path": "a.png"}',
        )
    if name is None and not left:
        raise LlmcError(
            "a part of a message is an image, and no image is given",
            hint='{"type": "image", "path": "a.png"}, or images=[...]',
        )
    found.append(left.pop(0) if name is None else part[name])
    return {"type": "image"}
