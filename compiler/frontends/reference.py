"""What transformers itself computes on a sample: the measure of how attention is exported, and of the graph.

Nothing that the importer does to a model before the export, and nothing of the export or of its import, is trusted:
the model as transformers loads it is run first, and the graph by the interpreter last, on the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.compiler.frontends.inputs import BOXES, MASK, Inputs
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph

FRAMES_KEPT = "input_features_mask"
Array = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Array]

SIZES: Mapping[str, int] = {
    **{"batch": 3, "seq": 11, "target": 5, "choices": 3, "samples": 2000, "images": 2, "frames": 67},
}
TOLERANCE = (
    5e-4  # of an output's largest value; what is wrongly understood is off by hundreds of times as much
)
_VOCABULARIES = ("vocab_size", "decoder_vocab_size", "src_vocab_size", "tgt_vocab_size")
_SMALLEST = 1e-6
_ENDLESS = 1e30  # numbers at least as large stand for infinity, where a model masks, and measure nothing


def sample(inputs: Inputs, config: Any, sizes: Mapping[str, int] = SIZES, seed: int = 0) -> dict[str, Array]:
    """Random values for each input: rows padded on the right, not at all, and on the left.

    Args:
        config: transformers', for the number of tokens.
        sizes: of each dim, cut to its bounds; an axis that convolutions shorten is made long enough.
    """
    rng = np.random.default_rng(seed)
    cut = {
        name: min(max(sizes.get(name, SIZES[name]), low), high) for name, (low, high) in inputs.bounds.items()
    }
    if "samples" in cut:
        cut["samples"] = min(
            max(sizes["samples"], 4 * inputs.bounds["samples"][0]), inputs.bounds["samples"][1]
        )
    shapes = {i.name: tuple(cut[a] if isinstance(a, str) else a for a in i.axes) for i in inputs.given}
    kept = {name: _kept(shapes[name]) for name in (MASK, FRAMES_KEPT) if name in shapes}
    values = {i.name: _values(i.name, shapes[i.name], i, config, kept.get(MASK), rng) for i in inputs.given}
    return {**values, **kept}


MORE = 5  # tokens beyond a window
_WINDOWS = ("sliding_window", "local_attention", "window_size", "attention_window", "attention_chunk_size")
_LONGEST = 160  # tokens of a row: the interpreter takes seconds for more


def sizes_for(config: Any, max_seq: int) -> dict[str, int]:
    """`SIZES`, with rows long enough for the narrowest window of attention to hide something.

    Args:
        config: transformers', in whose parts windows are stated.
    """
    parts = [p for p in (config, getattr(config, "text_config", None)) if p is not None]
    stated = [value for part in parts for key in _WINDOWS for value in _stated(part, key)]
    windows = [n for n in stated if type(n) is int and 0 < n < min(max_seq, _LONGEST - MORE)]
    return {**SIZES, "seq": max(SIZES["seq"], min(windows, default=0) + MORE)}


def _stated(config: Any, key: str) -> list[Any]:
    """What a configuration says, or its layers where each says it for itself."""
    try:
        return [getattr(config, key, None)]
    except RuntimeError:  # transformers': it "is a per-layer attribute"
        return [getattr(layer, key, None) for layer in config.per_layer_config[:]]


def _kept(shape: tuple[int, ...]) -> Array:
    """The mask i64 of `shape`, whose last axis is the sequence's."""
    length = shape[-1]
    places, rows = np.arange(length), np.arange(int(np.prod(shape[:-1]))).reshape(*shape[:-1], 1)
    short = max(length * 2 // 3, 1)
    kept: Array = np.where(
        rows % 3 == 0, places < short, np.where(rows % 3 == 2, places >= length - short, True)
    )
    return kept.astype(np.int64)


def _values(
    name: str, shape: tuple[int, ...], given: Any, config: Any, kept: Array | None, rng: Any
) -> Array:
    if name == BOXES:  # left, top, right, bottom
        corners = [rng.integers(low, low + 400, (*shape[:-1], 2)) for low in (0, 500)]
        return np.asarray(np.concatenate(corners, -1))
    if not name.endswith("_ids"):
        return np.asarray(rng.normal(size=shape), np.float32)
    if given.default == 0:  # segments
        return np.broadcast_to(np.arange(shape[-1]) * 2 // shape[-1], shape).astype(np.int64)
    return _ids(shape, config, kept if kept is not None and kept.shape == shape else None, rng)


def _ids(shape: tuple[int, ...], config: Any, kept: Array | None, rng: Any) -> Array:
    """Random tokens, none of which pads, and one that ends each row: some heads look for it."""
    most = _fewest_tokens(config)
    pad, end = (_token(config, f"{name}_token_id", most) for name in ("pad", "eos"))
    plain = np.array([i for i in range(min(most, 5000)) if i not in (pad, end)] or [0])
    ids = plain[rng.integers(0, len(plain), shape)]
    kept = np.ones(shape, np.int64) if kept is None else kept
    last = shape[-1] - 1 - np.argmax(kept[..., ::-1], -1)
    if end is not None and shape[-1] > 1:
        np.put_along_axis(ids, last[..., None], end, -1)
    return np.where(kept == 1, ids, 0 if pad is None else pad)


def _fewest_tokens(config: Any) -> int:
    """The smallest vocabulary of a model and its parts: encoder and decoder may have one each."""
    parts = (config, *(getattr(config, name, None) for name in ("text_config", "encoder", "decoder")))
    return min(
        [n for p in parts for key in _VOCABULARIES if type(n := getattr(p, key, None)) is int], default=2
    )


def _token(config: Any, key: str, most: int) -> int | None:
    for part in (getattr(config, "text_config", None), config):
        stated = getattr(part, key, None)
        stated = stated[0] if isinstance(stated, list) and stated else stated
        if isinstance(stated, int) and 0 <= stated < most:
            return stated
    return None


def farthest(found: Values, wanted: Values, values: Values) -> tuple[str, float]:
    """The output that is farthest off, and how far in parts of its largest value; padded tokens do not count."""
    worst = ("", 0.0)
    for name, want in wanted.items():
        if name not in found or found[name].shape != want.shape:
            return name, float("inf")
        away = _away(found[name], want, values.get(MASK))
        if not away <= worst[1]:
            worst = name, away
    return worst


def _away(found: Array, wanted: Array, mask: Array | None) -> float:
    if mask is not None and wanted.shape[: mask.ndim] == mask.shape:
        found, wanted = found[mask == 1], wanted[mask == 1]
    if not wanted.size:
        return 0.0
    if wanted.dtype.kind not in "fc":
        return float((found != wanted).any())
    endless = np.isfinite(wanted) & (np.abs(wanted) >= _ENDLESS)
    both = endless & np.isfinite(found) & (np.abs(found) >= _ENDLESS) & (np.sign(found) == np.sign(wanted))
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted)) | both
    scale = np.abs(np.where(np.isfinite(wanted) & ~endless, wanted, 0)).max()
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.where(same, 0.0, np.abs(found - wanted))
    return float(np.max(np.where(np.isnan(off), np.inf, off)) / max(scale, _SMALLEST))


def want_same(graph: Graph, values: Values, wanted: Values, at: str) -> None:
    """Refuse a graph that computes something else than the model.

    Args:
        wanted: what transformers computes of `values`.

    Raises:
        LlmcError: an output is off.
    """
    from llmc.compiler.interpret import run

    try:
        found = run(graph, {n.attributes["name"]: values[n.attributes["name"]] for n in graph.inputs})
    except LlmcError as error:
        raise LlmcError(
            f"the imported graph cannot be run: {error.problem}", at=at, found=error.found
        ) from error
    name, away = farthest(found, wanted, values)
    if away > TOLERANCE:
        shapes = {k: "x".join(map(str, v.shape)) for k, v in values.items()}
        raise LlmcError(
            f"the imported graph computes another {name!r} than transformers",
            at=at,
            found=f"off by {away:.2g} of its largest value at {shapes}",
            hint="this is a fault of llmc's import: please report it with config.json",
        )
