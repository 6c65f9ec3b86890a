"""What models of sound take that read features of frames: which axis is time, and how long it may be.

How many features a frame has is stated, under one of several names; which axis they lie on nobody says. So the model is
asked: it is run on zeros both ways. What it runs on is how it is to be called, where it is one way only.
"""

from __future__ import annotations

import inspect as signatures
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.processors import file_of
from llmc.errors import LlmcError, first_line

FRAMES = "frames"  # the name of the axis of time
MOST_FRAMES = 3000  # 30 seconds of frames of 10 ms
_FEATURES, _OWN_MASK = "input_features", "input_features_mask"
_BINS = (
    "feature_projection_input_dim",
    "input_size",
    "num_mel_bins",
    "input_feat_per_channel",
    "feature_size",
)
_POSITIONS = ("max_source_positions", "max_position_embeddings")
_PARTS = ("encoder_config", "audio_config")
_TRIED = 192  # frames: no usual number of features, and a multiple of what models make one of


@dataclass(frozen=True)
class Spectrogram:
    """What a model takes.

    Args:
        axes: of the features.
        mask: the name of the input that says which frames are a row's own; empty if none does.
        frames: the bounds of their time, where it is open.
    """

    axes: tuple[str | int, ...]
    mask: str = ""
    frames: tuple[int, int] | None = None


def spectrogram_of(model: Any, root: Path) -> Spectrogram:
    """What `input_features` are.

    Raises:
        LlmcError: nothing says it, or the model runs on several kinds, or on none.
    """
    config, masks = model.config, _masks(model)
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if bins is not None and positions is not None:  # Whisper's: two frames for each position, no fewer
        return Spectrogram(("batch", int(bins), 2 * int(positions)), masks[0] if _OWN_MASK in masks else "")
    stated = sorted({*_stated(config, root), *_read_by(model)})
    at = str(root / "config.json")
    if not stated:
        raise _unknown(at, f"none of {', '.join(_BINS)} is stated")
    kinds = [axes for n in stated for axes in (("batch", FRAMES, n), ("batch", n, FRAMES))]
    found, told = _runs(model, kinds, (*masks, ""))
    if not found:
        raise LlmcError(
            f"transformers cannot run the model: {told}", at=at, found=f"input_features {kinds}"[:200]
        )
    if len(found) > 1:
        raise _unknown(at, f"the model runs on {' and '.join(str(one.axes) for one in found)}")
    return found[0]


def _runs(
    model: Any, kinds: Sequence[tuple[str | int, ...]], masks: Sequence[str]
) -> tuple[list[Spectrogram], str]:
    """Those that the model runs on, each with the first mask that it takes; and what it first says of others."""
    found, told = [], ""
    for axes in kinds:
        for mask in masks:
            try:
                frames = _run(model, axes, mask)
            except Exception as error:  # whatever a model raises that was given another's features
                told = told or first_line(error)
            else:
                found.append(Spectrogram(axes, mask, _bounds(model.config, frames)))
                break
    return found, told


def _stated(config: Any, root: Path) -> Iterator[int]:
    """Numbers of features, of the configuration, its parts and the folder's processor."""
    file = file_of(root, "feature_extractor")
    extractor = read_object(file) if file is not None else {}
    extractor = extractor.get("feature_extractor", extractor)
    parts = [config, *(getattr(config, name, None) for name in _PARTS)]
    for name in _BINS:
        numbers = [getattr(part, name, None) for part in parts] + [extractor.get(name)]
        yield from (n for n in numbers if type(n) is int and 0 < n != _TRIED)


class _FoundError(Exception):
    """The first layer that multiplies is found."""


def _read_by(model: Any) -> list[int]:
    """How many features the first layer takes, where it takes any number of frames."""
    import torch

    def stop(layer: Any, given: Any) -> None:
        raise _FoundError(getattr(layer, "in_features", None) or layer.in_channels)

    layers = [
        m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d))
    ]
    hooks = [layer.register_forward_pre_hook(stop) for layer in layers]
    try:
        _run(model, ("batch", FRAMES, _TRIED + 1), "")
    except _FoundError as found:
        return [n for n in found.args if 1 < n != _TRIED]
    except Exception:  # it has looked at their number itself
        return []
    finally:
        for hook in hooks:
            hook.remove()
    return []


def _run(model: Any, axes: tuple[str | int, ...], mask: str) -> int:
    """How many frames make a vector."""
    import torch

    sizes = {"batch": 2, FRAMES: _TRIED}
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in axes]
    device = next(model.parameters()).device
    given = {_FEATURES: torch.zeros(shape, device=device)}
    if mask:
        given[mask] = torch.ones(2, _TRIED, dtype=torch.int64, device=device)
        given[mask][1, _TRIED // 4 :] = 0  # beyond any other number of places too
    if "decoder_input_ids" in signatures.signature(model.forward).parameters:
        given["decoder_input_ids"] = torch.zeros(2, 1, dtype=torch.int64, device=device)
    with torch.no_grad():
        result = model(**given, return_dict=True)
    names = ("encoder_last_hidden_state", "last_hidden_state", "logits")
    made = next(result[name].shape[1] for name in names if result.get(name) is not None)
    return max(_TRIED // int(made), 1)


def _masks(model: Any) -> tuple[str, ...]:
    """Inputs that may say which frames are a row's own."""
    takes = signatures.signature(model.forward).parameters
    return tuple(n for n in (_OWN_MASK, "attention_mask") if n in takes)


def _bounds(config: Any, frames: int) -> tuple[int, int]:
    """As many frames as its positions hold, and as few as make several vectors."""
    parts = [config, *(getattr(config, name, None) for name in _PARTS)]
    stated = [getattr(part, name, None) for part in parts for name in _POSITIONS]
    most = min([n * frames for n in stated if type(n) is int], default=MOST_FRAMES)
    return 6 * frames, min(most, MOST_FRAMES)


def _unknown(at: str, found: str) -> LlmcError:
    return LlmcError(
        "the shape of input_features cannot be told",
        at=at,
        found=found,
        hint="export the model with torch.export, and compile the .pt2 file",
    )
