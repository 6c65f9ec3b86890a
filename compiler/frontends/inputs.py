"""What a model of transformers takes, by its signature, configuration and processor."""

from __future__ import annotations

import bisect
import inspect as signatures
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import images, spectrograms
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.sizes import positions
from llmc.compiler.frontends.spectrograms import FRAMES
from llmc.errors import LlmcError

TEXT, IMAGE, VIDEO, WAVE, FEATURES = (
    "input_ids",
    "pixel_values",
    "pixel_values",
    "input_values",
    "input_features",
)
CLIPS, SERIES = "pixel_values_videos", "past_values"
KEEP = "logits_to_keep"  # positions of a text whose logits are wanted
MASK, SEGMENTS, TARGET, BOXES = "attention_mask", "token_type_ids", "decoder_input_ids", "bbox"
MOST_SECONDS = 30  # of audio of any length
_LARGEST_BOX = 1000  # coordinates of LayoutLM are thousandths of the page


@dataclass(frozen=True)
class Input:
    """One tensor that the model takes.

    Args:
        axes: a name for each dynamic axis, a size for each fixed one.
        default, low, high: of integers; `high=None` is found from the table that the input indexes.
        bounds: of its frames.
    """

    name: str
    axes: tuple[str | int, ...]
    default: int | None = None
    low: int | None = None
    high: int | None = None
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True)
class Inputs:
    """All that a model takes.

    Args:
        given: the graph's inputs, in order.
        fixed: inputs with one legal value, zero: segments where the model has only one.
        bounds: of every dim, by name.
    """

    given: tuple[Input, ...]
    fixed: tuple[str, ...]
    bounds: Mapping[str, tuple[int, int]]

    @property
    def names(self) -> tuple[str, ...]:
        """Of `given`."""
        return tuple(i.name for i in self.given)


def inputs_of(model: Any, root: Path, max_batch: int, max_seq: int) -> Inputs:
    """The inputs of a model in the order in which they are known best: texts, images, sound, then the decoder's.

    Raises:
        LlmcError: it takes nothing that llmc knows, or the size of an image cannot be told.
    """
    takes = signatures.signature(model.forward).parameters
    config = model.config
    found = [i for make in _MAKERS for i in make(model, config, takes, root)]
    if not found:
        main = next(iter(takes), model.main_input_name)
        raise LlmcError(
            f"{type(model).__name__} takes {main}, which llmc does not know",
            at=str(root / "config.json"),
            hint="export the model with torch.export, and compile the .pt2 file",
        )
    if compares(model, found):
        found = [replace(i, axes=("images", *i.axes[1:])) if i.name == IMAGE else i for i in found]
    dims = {axis for i in found for axis in i.axes if isinstance(axis, str)}
    most = {
        "batch": max_batch,
        "images": max_batch,
        "seq": max_seq,
        "target": _targets(config, max_seq),
        "choices": 64,
    }
    most["samples"] = MOST_SECONDS * _rate(root)
    low = {"samples": _least_samples(model, most["samples"])} if "samples" in dims else {}
    for given in found:
        if given.bounds is not None:
            low[FRAMES], most[FRAMES] = given.bounds
    segments = getattr(config, "type_vocab_size", 0) if SEGMENTS in takes and TEXT in takes else 0
    return Inputs(
        tuple(found),
        (SEGMENTS,) if segments == 1 else (),
        {name: (low.get(name, 1), most[name]) for name in most if name in dims},
    )


def compares(model: Any, found: Sequence[Input]) -> bool:
    """Whether the model holds any number of images against any number of texts, as CLIP does."""
    import torch

    towers = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    axes = {i.name: i.axes for i in found}
    if not towers or set(axes) - {TEXT, MASK, IMAGE} or not {TEXT, IMAGE} <= set(axes):
        return False
    texts, images = torch.ones(2, 4, dtype=torch.int64), torch.zeros(3, *map(int, axes[IMAGE][1:]))
    try:
        with torch.no_grad():
            logits = model(input_ids=texts, pixel_values=images)["logits_per_image"]
    except Exception:  # whatever it is, the two are not apart
        return False
    return tuple(logits.shape) == (3, 2)


Takes = Mapping[str, Any]


def _texts(model: Any, config: Any, takes: Takes, root: Path) -> list[Input]:
    main = main_input(model, takes)
    if TEXT not in takes or main not in (TEXT, IMAGE) or (main == IMAGE and not _part(config, "text_config")):
        return []
    axes = (
        ("batch", "choices", "seq")
        if type(model).__name__.endswith("ForMultipleChoice")
        else ("batch", "seq")
    )
    found = [Input(TEXT, axes)]
    if BOXES in takes:
        found.append(Input(BOXES, (*axes, 4), low=0, high=_LARGEST_BOX))
    if MASK in takes:
        found.append(Input(MASK, axes, default=1, low=0, high=1))
    if SEGMENTS in takes and getattr(config, "type_vocab_size", 0) > 1:
        found.append(Input(SEGMENTS, axes, default=0))
    return found


def main_input(model: Any, takes: Takes) -> str:
    """What a model reads first: as it says, or, where its class only inherits a name, what its forward takes."""
    main = str(model.main_input_name)
    return main if main in takes else next((n for n in (IMAGE, WAVE, FEATURES) if n in takes), main)


def _images(model: Any, config: Any, takes: Takes, root: Path) -> list[Input]:
    seen = main_input(model, takes) == IMAGE or _part(config, "vision_config") is not None
    if IMAGE not in takes or not seen:
        return []
    tower = _part(config, "vision_config") or _part(config, "encoder")
    shape = images.image_shape(tower or config, root)
    frames = getattr(config, "num_frames", None)
    return [Input(IMAGE, ("batch", *([frames] if frames else []), *shape))]


def _sounds(model: Any, config: Any, takes: Takes, root: Path) -> list[Input]:
    main = main_input(model, takes)
    if main == WAVE and WAVE in takes:
        bins, length = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
        if bins is not None and length is not None:  # a spectrogram of fixed length
            return [Input(WAVE, ("batch", int(length), int(bins)))]
        if type(channels := getattr(config, "audio_channels", None)) is int:  # of codecs
            return [Input(WAVE, ("batch", channels, "samples"))]
        masked = MASK in takes and getattr(config, "feat_extract_norm", "layer") == "layer"
        return [Input(n, ("batch", "samples"), **_MASKED.get(n, {})) for n in (WAVE, MASK)[: 1 + masked]]
    return _frames(model, root) if main == FEATURES and FEATURES in takes else []


def _frames(model: Any, root: Path) -> list[Input]:
    """Features of frames, and where their number is open which are a row's own."""
    found = spectrograms.spectrogram_of(model, root)
    time = next((axis for axis in found.axes if axis == FRAMES), found.axes[-1])
    masks = [Input(found.mask, ("batch", time), **_MASKED[MASK])] if found.mask else []
    return [Input(FEATURES, found.axes, bounds=found.frames), *masks]


_MASKED: Mapping[str, Any] = {MASK: {"default": 1, "low": 0, "high": 1}}


_DECODES = ("ForConditionalGeneration", "ForSpeechToText", "Model", "ForRNNT", "ForTDT")


def _targets_in(model: Any, config: Any, takes: Takes, root: Path) -> list[Input]:
    makes_own = not type(model).__name__.endswith(_DECODES)
    if not getattr(config, "is_encoder_decoder", False) or TARGET not in takes or makes_own:
        return []
    return [Input(TARGET, ("batch", "target"))]


_FIXED: Mapping[str, tuple[str, ...]] = {  # inputs whose sizes are all stated, by the names of these
    CLIPS: ("frames_per_clip", "in_chans", "crop_size", "crop_size"),
    SERIES: ("context_length", "num_input_channels"),
}


def _of_stated_sizes(model: Any, config: Any, takes: Takes, root: Path) -> list[Input]:
    """Clips of V-JEPA, and series of numbers."""
    name = str(model.main_input_name)
    stated = [getattr(config, key, None) for key in _FIXED.get(name, ())]
    sizes = [n for n in stated if type(n) is int and n > 0]
    given = sizes and len(sizes) == len(stated) and name in takes
    return [Input(name, ("batch", *sizes))] if given else []


_MAKERS: Sequence[Callable[[Any, Any, Takes, Path], list[Input]]] = (
    *(_texts, _images, _sounds, _of_stated_sizes, _targets_in),
)


def _targets(config: Any, max_seq: int) -> int:
    """The most tokens of a decoder."""
    if (own := _part(config, "decoder")) is not None and _part(config, "encoder") is not None:
        return positions(own.to_dict(), None, "config.json: decoder")
    stated = [
        getattr(config, key, None) for key in ("max_target_positions", "decoder_max_position_embeddings")
    ]
    return min([n for n in stated if isinstance(n, int)], default=max_seq)


def _part(config: Any, name: str) -> Any:
    """The configuration of one of several towers."""
    return getattr(config, name, None)


def _least_samples(model: Any, most: int) -> int:
    """As many samples as give two vectors by a stack of convolutions: torch.export has another graph for one.

    An encoder whose convolutions are not stated is tried.
    """
    windows, steps = (getattr(model.config, f"conv_{what}", ()) for what in ("kernel", "stride"))
    if not windows and getattr(model.config, "is_encoder_decoder", False):
        return bisect.bisect_left(range(most), 2, lo=1, key=lambda n: _vectors(model.get_encoder(), n))
    seen = 2
    for window, step in zip(reversed(windows), reversed(steps), strict=False):
        seen = (seen - 1) * step + window
    return max(seen, 1)


def _vectors(encoder: Any, samples: int) -> int:
    """How many an encoder makes of so many samples, 0 where it cannot be run on them."""
    import torch

    try:
        with torch.no_grad():
            return int(encoder(torch.zeros(1, samples), return_dict=True).last_hidden_state.shape[1])
    except Exception:  # whatever a model raises that is given too little
        return 0


def _rate(root: Path) -> int:
    """Samples a second by preprocessor_config.json."""
    file = root / "preprocessor_config.json"
    stated = read_object(file).get("sampling_rate") if file.exists() else None
    return stated if isinstance(stated, int) and 0 < stated <= 192_000 else 16_000
