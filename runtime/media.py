"""Images, sounds and texts to the inputs of a model, by the manifest's field `preprocess`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError, LlmcWarning
from llmc.runtime import audio, images
from llmc.runtime.arrays import Array
from llmc.runtime.fields import Field
from llmc.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from llmc.runtime.model import Model

PIXELS, SOUNDS, MASK = "pixel_values", ("input_values", "input_features"), "attention_mask"
_LOUDEST = 100.0  # of samples
_HINT = "give its inputs as arrays: model(NAME=array), or llmc run --input NAME=FILE.npy"


class Images:
    """Makes the input of a model that sees.

    Attributes:
        name: of the input.
        height, width: of the images that go in.
    """

    def __init__(self, model: Model) -> None:
        self.at = str(model.path)
        self.name = _image_input(model)
        self.steps = images.read_steps(_entry(model, "images"))
        _, self.layers, self.height, self.width = model.inputs[self.name].shape

    def open(self, source: Any) -> Any:
        """An image of Pillow; see `images.open_image`.

        Raises:
            LlmcError: also where it is so narrow that it would become too long.
        """
        image = images.open_image(source, self.steps.channels, self.steps.white)
        at = str(source) if isinstance(source, str) or hasattr(source, "__fspath__") else None
        images.want_width(image, self.steps, at)
        return image

    def __call__(self, opened: Sequence[Any]) -> Array:
        """f32 [batch, channels, height, width] of what `open` gave.

        Raises:
            LlmcError: what comes out is not what the model takes.
        """
        made = [images.pixels(image, self.steps) for image in opened]
        wanted = (self.layers, self.height, self.width)
        for image, array in zip(opened, made, strict=True):
            if array.shape != wanted:
                raise LlmcError(
                    f"an image becomes {_shape(array.shape)}, the model takes {_shape(wanted)}",
                    at=self.at,
                    found=f"an image of {image.width}x{image.height} pixels",
                    hint="resize it before, or state size or crop_size when the model is compiled",
                )
        return np.stack(made)


class Sounds:
    """Makes the inputs of a model that hears.

    Attributes:
        name: of the input.
        bounds: least and most samples of a waveform; None if any length will do.
    """

    def __init__(self, model: Model) -> None:
        self.at, self.model = str(model.path), model
        name = next((n for n in SOUNDS if n in model.inputs), None)
        if name is None:
            raise LlmcError("the model takes no audio", at=self.at, found=f"inputs {', '.join(model.inputs)}")
        self.name, self.steps = name, audio.read_steps(_entry(model, "audio"))
        self.bounds = _bounds(model, name) if self.steps.kind == "waveform" else None

    @property
    def alone(self) -> bool:
        """Whether others of a batch would change a sound's answer: padding that the model takes for silence."""
        return self.steps.kind == "waveform" and not (self.steps.masked and MASK in self.model.inputs)

    def open(
        self, source: Any, rate: int | None = None, resample: bool = False, *, whole: bool = False
    ) -> Array:
        """Samples f32 at the model's rate of a file, or of samples.

        Warns where a spectrogram of fixed length leaves out the end, unless `whole`: there will be more of them.

        Raises:
            LlmcError: it is no sound, at another rate, or too long or too short for the model.
        """
        samples, at = source, None
        if isinstance(source, str) or hasattr(source, "__fspath__"):
            at = str(source)
            samples, rate = audio.read_audio(source)
        samples = _mono(samples)
        if resample and rate is not None:
            samples = audio.resampled(samples, rate, self.steps.rate)
        else:
            audio.want_rate(self.steps, rate, at)
        if self.bounds is not None and not self.bounds[0] <= len(samples) <= self.bounds[1]:
            low, high = (n / self.steps.rate for n in self.bounds)
            raise LlmcError(
                f"the audio is {len(samples) / self.steps.rate:.3g} s long",
                at=at,
                found=f"the model takes {low:.3g} to {high:.3g} s",
                hint="cut it into parts" if len(samples) > self.bounds[1] else "give a longer one",
            )
        heard = self.steps.longest
        if heard is not None and len(samples) > heard and not whole:
            seconds, part = len(samples) / self.steps.rate, heard / self.steps.rate
            told = f"the model hears the first {part:.3g} s of {seconds:.3g}" + (f": {at}" if at else "")
            warnings.warn(LlmcWarning(told), stacklevel=2)
        return samples

    def __call__(self, opened: Sequence[Array]) -> dict[str, Array]:
        """The model's inputs of what `open` gave."""
        made, mask = audio.features(opened, self.steps)
        if mask is None or MASK not in self.model.inputs:
            return {self.name: made}
        return {self.name: made, MASK: mask}


def steps_of(model: Model) -> images.ImageSteps:
    """How a model's images are prepared.

    Raises:
        LlmcError: the artifact does not say.
    """
    return images.read_steps(_entry(model, "images"))


def prepare(
    model: Model,
    pictures: Sequence[Any] | None,
    sounds: Sequence[Any] | None,
    texts: Any,
    rate: int | None,
    resample: bool,
) -> dict[str, Array]:
    """See `Model.preprocess`."""
    if pictures is None and sounds is None and texts is None:
        raise LlmcError("there is nothing to prepare", hint="give images=[...], audio=[...] or texts=[...]")
    made: dict[str, Array] = {}
    entry = model.manifest.generation
    if pictures is not None and entry is not None and entry.images is not None:
        from llmc.runtime.looking import prepared

        made |= prepared(model, batch_of(pictures, "images", (2, 3))).arrays
    elif pictures is not None:
        eyes = Images(model)
        made[eyes.name] = eyes([eyes.open(one) for one in batch_of(pictures, "images", (2, 3))])
    if sounds is not None:
        ears = Sounds(model)
        made |= ears([ears.open(one, rate, resample) for one in batch_of(sounds, "audio", (1,))])
    return made if texts is None else made | text_arrays(model, texts)


def text_arrays(model: Model, texts: Any) -> dict[str, Array]:
    """Token ids; without a mask filled up to the length that the model was trained with, as SigLIP's are."""
    from llmc.runtime.text import Tokenizer

    tokenizer = Tokenizer.of(model)
    encodings = tokenizer.encode(texts)
    if MASK not in tokenizer.names:
        for encoding in encodings:
            encoding.pad(tokenizer.longest, **tokenizer.encoder.pad)
    return tokenizer.arrays(encodings)


def _image_input(model: Model) -> str:
    """`pixel_values`, or the only input that has the shape of images."""
    if PIXELS in model.inputs:
        names = [PIXELS]
    else:
        names = [n for n, t in model.inputs.items() if t.dtype == "f32" and len(t.shape) == 4]
    if len(names) != 1 or len(model.inputs[names[0]].shape) != 4:
        takes = ", ".join(f"{n} {t}" for n, t in model.inputs.items())
        raise LlmcError("the model takes no images", at=str(model.path), found=f"inputs {takes}", hint=_HINT)
    return names[0]


def _entry(model: Model, what: str) -> Field:
    """The manifest's field, where it is for what was given."""
    entry = Field(model.manifest.raw.get("preprocess"), str(model.path / MANIFEST), "preprocess")
    if entry.value is None:
        raise LlmcError(
            f"the artifact does not say how {what} become its inputs",
            at=str(model.path),
            found="no field preprocess in manifest.json",
            hint="compile the model from a folder that has preprocessor_config.json, or a module with "
            f"compile_module(preprocess=...); or {_HINT}",
        )
    return entry


def batch_of(given: Any, name: str, axes: tuple[int, ...]) -> list[Any]:
    """One or several; an array of as many `axes` is one."""
    one = isinstance(given, str) or not hasattr(given, "__iter__") or hasattr(given, "__fspath__")
    if one or getattr(given, "ndim", None) in axes:
        given = [given]
    found = list(given)
    if not found:
        raise LlmcError(f"there are no {name}" if name == "images" else "there is no audio")
    return found


def _mono(samples: Any) -> Array:
    """f32 [samples]."""
    array = np.asarray(samples)
    if array.ndim != 1 or array.dtype.kind != "f" or not array.size:
        raise LlmcError(
            "audio is a file, or samples as floats between -1 and 1",
            found=f"{array.dtype}{list(array.shape)}",
            hint="f32 [samples]; give several as a list, and the mean of several channels",
        )
    peak = float(np.abs(array).max())
    if (
        not peak <= _LOUDEST
    ):  # what is meant for -1..1 may pass it a little; samples of 16 bits are far off, and NaN
        told = "hold numbers that are none" if not np.isfinite(peak) else f"reach {peak:.6g}"
        raise LlmcError(
            f"the samples {told}, must be between -1 and 1", hint="divide samples of 16 bits by 32768"
        )
    return array.astype(np.float32)


def _bounds(model: Model, name: str) -> tuple[int, int]:
    axis = model.inputs[name].shape[-1]
    return (axis, axis) if isinstance(axis, int) else model.dims[axis]


def _shape(sizes: Sequence[Any]) -> str:
    return "x".join(map(str, sizes))
