"""From image files to what a model takes, as transformers' image processors on Pillow do it.

Pillow decodes and resizes, NumPy does the rest. The steps are those of the manifest's field `preprocess`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError, extras_named, first_line
from llmc.runtime.arrays import Array
from llmc.runtime.fields import Field
from llmc.runtime.patches import GridSteps, TileSteps

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 1 << 16  # of a side
BILINEAR = 2  # Pillow's numbers of filters: nearest, Lanczos, bilinear, bicubic, box, Hamming
SIZES = (
    ("height", "width"),
    ("shortest_edge",),
    ("shortest_edge", "longest_edge"),
    ("longest_edge",),
    ("max_height", "max_width"),
)
CHANNELS = {"rgb": "RGB", "bgr": "RGB", "grey": "L"}


@dataclass(frozen=True)
class ImageSteps:
    """What is done to an image, in this order.

    Args:
        channels: a key of CHANNELS.
        white: pixels of the colour that a file says is transparent become white.
        size: one set of SIZES, or None: not resized.
        resample: Pillow's number of the filter.
        crop: height and width cut out of the middle; smaller images are filled up with zeros.
        factor, offset: x * factor + offset.
        mean, std: of each channel, (x - mean) / std; None: left out.
        pad: height and width to which zeros fill up, below and on the right.
        tiles, grid: instead of `size`, of models of images and text, how an image of any size is cut.
    """

    channels: str = "rgb"
    white: bool = False
    size: Mapping[str, int] | None = None
    resample: int = BILINEAR
    crop: tuple[int, int] | None = None
    factor: float | None = None
    offset: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pad: tuple[int, int] | None = None
    tiles: TileSteps | None = None
    grid: GridSteps | None = None

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width that come out of any image; None if that depends on it."""
        if self.pad or self.crop:
            return self.pad or self.crop
        return None if self.size is None or set(self.size) != set(SIZES[0]) else _pair(self.size)


def read_steps(entry: Field) -> ImageSteps:
    """The manifest's field `preprocess` of a model of images.

    Raises:
        LlmcError: a field is wrong or unknown.
    """
    known = {f: entry[f] for f in _READERS if f in entry}
    if unknown := sorted(entry.mapping().keys() - _READERS.keys() - {"kind"}):
        raise LlmcError(
            f"this llmc does not know the step {unknown[0]!r} of preprocess",
            at=entry.file,
            hint="make the model's input yourself and give it as an array (--input)",
        )
    made = dict(_READERS[name](field) for name, field in known.items())
    if (made.get("mean") is None) != (made.get("std") is None):
        raise entry.wrong("both of mean and std, or neither")
    return ImageSteps(**made)


def _size(field: Field) -> dict[str, int]:
    sides = {key: value.integer(1, MOST) for key, value in field.mapping().items()}
    if not any(set(sides) == set(keys) for keys in SIZES):
        raise field.wrong("height and width, shortest_edge, longest_edge, or max_height and max_width")
    return sides


def _pair(sides: Mapping[str, int]) -> tuple[int, int]:
    return sides["height"], sides["width"]


def _box(field: Field) -> tuple[int, int]:
    return field["height"].integer(1, MOST), field["width"].integer(1, MOST)


def _tiles(field: Field) -> TileSteps:
    longest, edge = (field[key].integer(1, MOST) for key in ("longest_edge", "edge"))
    return TileSteps(longest, edge, bool(field["split"].scalar()))


def _grid(field: Field) -> GridSteps:
    sides = {key: field[key].integer(1, MOST) for key in ("patch", "merge", "frames")}
    pixels = {key: field[key].integer(1, MOST**2) for key in ("least", "most")}
    enlarged = "enlarged" in field and bool(field["enlarged"].scalar())
    return GridSteps(**sides, **pixels, window=field["window"].integer(0, MOST), enlarged=enlarged)


def _numbers(field: Field) -> tuple[float, ...]:
    return tuple(f.number() for f in field.items())


_READERS: Mapping[str, Any] = {
    "channels": lambda f: ("channels", f.one_of(CHANNELS)),
    "transparent": lambda f: ("white", f.one_of(("white",)) == "white"),
    "size": lambda f: ("size", _size(f)),
    "resample": lambda f: ("resample", f.integer(0, 5)),
    "crop_size": lambda f: ("crop", _box(f)),
    "rescale_factor": lambda f: ("factor", f.number()),
    "offset": lambda f: ("offset", f.number()),
    "mean": lambda f: ("mean", _numbers(f)),
    "std": lambda f: ("std", _numbers(f)),
    "pad_size": lambda f: ("pad", _box(f)),
    "tiles": lambda f: ("tiles", _tiles(f)),
    "grid": lambda f: ("grid", _grid(f)),
}


def open_image(source: Any, channels: str = "rgb", white: bool = False) -> Image:
    """An image as transformers' pipelines see it: turned as its EXIF data says, then RGB.

    So alpha is dropped, CMYK and palettes are converted, and of 16 bits a pixel all values above 255 are white.

    Args:
        source: a path, an image of Pillow, or u8 [height, width] or [height, width, 1, 3 or 4].
        channels, white: of `ImageSteps`.

    Raises:
        LlmcError: it is not there, no image, damaged, or larger than Pillow opens.
    """
    with extras_named():
        from PIL import Image as library
        from PIL import ImageOps, UnidentifiedImageError
    at = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    try:
        with library.open(at) if at is not None else nullcontext(_image_of(source)) as image:
            made = ImageOps.exif_transpose(image).convert(CHANNELS[channels])
            return _on_white(made) if white and made.info.get("transparency") is not None else made
    except UnidentifiedImageError:
        raise LlmcError("not an image that Pillow can read", at=at) from None
    except FileNotFoundError:
        raise LlmcError("the image was not found", at=at) from None
    except library.DecompressionBombError as error:
        raise LlmcError(f"the image is too large: {first_line(error)}", at=at) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        hint = "is the file whole?" if "truncated" in str(error) else None
        raise LlmcError(f"the image cannot be read: {first_line(error)}", at=at, hint=hint) from None


def _on_white(image: Image) -> Image:
    """One colour of the image is transparent."""
    from PIL import Image as library

    above = image.convert("RGBA")
    return library.alpha_composite(library.new("RGBA", image.size, "white"), above).convert(image.mode)


def _image_of(source: Any) -> Image:
    from PIL import Image as library

    if isinstance(source, library.Image):
        return source
    array = np.asarray(source)
    layers = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or layers not in (1, 3, 4) or not array.size:
        raise LlmcError(
            "an image is a file, an image of Pillow, or an array of bytes",
            found=f"{array.dtype}{list(array.shape)}" if array.dtype != object else type(source).__name__,
            hint="u8 [height, width, 3]; what is already prepared is given to the model itself",
        )
    return library.fromarray(array[..., 0] if array.ndim == 3 and layers == 1 else array)


def want_width(image: Image, steps: ImageSteps, at: str | None = None) -> None:
    """Refuse an image that is so narrow that it would become too long.

    Raises:
        LlmcError: it is.
    """
    if steps.size is None:
        return
    becomes = target(image.height, image.width, steps.size)
    if max(becomes) > MOST:
        found = f"{image.width}x{image.height} pixels would become {becomes[1]}x{becomes[0]}"
        raise LlmcError("the image is too long and narrow", at=at, found=found)


def pixels(image: Image, steps: ImageSteps) -> Array:
    """f32 [channels, height, width] of an image in the mode that `open_image` gives."""
    if steps.size is not None:
        height, width = target(image.height, image.width, steps.size)
        image = image.resize((width, height), steps.resample)
    array = np.asarray(image)
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if steps.crop is not None:
        planes = _cropped(planes, steps.crop)
    values = _scaled(planes, steps)
    if steps.pad is not None:
        values = _padded(values, steps.pad)
    return np.ascontiguousarray(values[::-1] if steps.channels == "bgr" else values)


def _scaled(planes: Array, steps: ImageSteps) -> Array:
    """Scale in double and round, then the channels' statistics in float, as transformers does."""
    values = planes.astype(np.float32)
    if steps.factor is not None:
        values = (planes.astype(np.float64) * steps.factor).astype(np.float32)
    if steps.offset:
        values = values + np.float32(steps.offset)
    if steps.mean is None or steps.std is None:
        return values
    for name, numbers in (("mean", steps.mean), ("std", steps.std)):
        if len(numbers) not in (1, len(values)):
            raise LlmcError(f"{name} has {len(numbers)} numbers for {len(values)} channels")
    mean, std = (np.array(n, np.float32)[:, None, None] for n in (steps.mean, steps.std))
    return np.asarray((values - mean) / std)


def target(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Height and width that an image is resized to, rounded as transformers does."""
    short, long = sorted((height, width))
    match size:
        case {"height": tall, "width": wide}:
            return tall, wide
        case {"max_height": tall, "max_width": wide}:
            scale = min(tall / height, wide / width)
            return max(1, int(height * scale)), max(1, int(width * scale))
        case {"shortest_edge": edge, "longest_edge": most}:
            return _within(height, width, edge, most)
        case {"shortest_edge": edge}:
            other = int(edge * long / short)
            return (other, edge) if width <= height else (edge, other)
        case _:
            scale = size["longest_edge"] / long
            return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _within(height: int, width: int, edge: int, most: int) -> tuple[int, int]:
    """The shorter side to `edge`, unless the longer one would be more than `most`."""
    short, long = min(height, width), max(height, width)
    exact = float(edge)
    if long / short * edge > most:
        exact = most * short / long
        edge = round(exact)
    if short == edge:
        return height, width
    other = int(exact * long / short)
    return (other, edge) if width < height else (edge, other)


def _cropped(planes: Array, box: tuple[int, int]) -> Array:
    """The middle of an image; what is outside it is zeros, the larger half of them above and on the left."""
    for axis, want in ((1, box[0]), (2, box[1])):
        have = planes.shape[axis]
        if have < want:
            before = (want - have + 1) // 2
            gaps = [(before, want - have - before) if a == axis else (0, 0) for a in range(3)]
            planes = np.pad(planes, gaps)
        else:
            begin = (have - want) // 2
            planes = planes.take(range(begin, begin + want), axis)
    return planes


def _padded(values: Array, box: tuple[int, int]) -> Array:
    rows, columns = box[0] - values.shape[1], box[1] - values.shape[2]
    if min(rows, columns) < 0:
        found = f"{values.shape[1]}x{values.shape[2]} after resizing"
        raise LlmcError(f"the image is larger than {box[0]}x{box[1]}", found=found)
    return np.pad(values, ((0, 0), (0, rows), (0, columns)))
