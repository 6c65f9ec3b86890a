"""Any number of texts to vectors: tokenised together, run in batches of like lengths, given back in their order.

Options are those of sentence-transformers' `encode`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError, TextsCut
from llmc.runtime.arrays import Array
from llmc.runtime.encoder import BadTexts
from llmc.runtime.text import Tokenizer, most_rows

if TYPE_CHECKING:
    from llmc.runtime.model import Model

OUTPUT = "sentence_embedding"
TASK = "sentence-embedding"
ROWS = 32  # of a run: a larger batch is no faster a text
WINDOW = 16_384  # texts that are held as tokens at a time


def encode(
    model: Model,
    texts: str | Iterable[str],
    prompt_name: str | None,
    prompt: str | None,
    batch_size: int,
    normalize: bool,
    truncate_dim: int | None,
) -> Array:
    """See `Model.encode`."""
    width = _width(model, truncate_dim)
    if type(batch_size) is not int or batch_size < 1:
        raise LlmcError(f"batch_size is {batch_size!r}, must be a number from 1 on")
    before = _prompt(model, prompt_name, prompt)
    rows = min(batch_size, most_rows(model) or batch_size)
    alone = isinstance(texts, str)
    encoder = _Encoder(model, before, rows)
    parts = [encoder(window) for window in _windows([texts] if isinstance(texts, str) else texts)]
    found = np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
    found = _finished(found[:, :width], normalize)
    if encoder.cut:
        warnings.warn(TextsCut(encoder.cut, len(found), encoder.tokenizer.longest), stacklevel=3)
    return found[0] if alone else found


def _width(model: Model, truncate_dim: int | None) -> int:
    """How many numbers of a vector are wanted."""
    if OUTPUT not in model.outputs or "input_ids" not in model.inputs:
        known = model.task == "feature-extraction"
        hint = f"compile the model with --task {TASK}" if known else "run_text gives what the model has"
        raise LlmcError(
            "the model gives no embedding of a text",
            at=str(model.path),
            found=f"a {model.task} model",
            hint=hint,
        )
    width = model.outputs[OUTPUT].shape[-1]
    assert isinstance(width, int)
    if truncate_dim is None:
        return width
    if type(truncate_dim) is not int or not 1 <= truncate_dim <= width:
        raise LlmcError(f"truncate_dim is {truncate_dim!r}, the model's vectors have {width} numbers")
    return truncate_dim


def _prompt(model: Model, name: str | None, text: str | None) -> str:
    """What goes before every text: `text`, or the prompt of that name, or the model's default."""
    found = Tokenizer.of(model).encoder.prompt_of(name) if text is None else text
    if not isinstance(found, str):
        raise LlmcError(
            f"prompt is {found!r:.60}, must be a text", hint="prompt_name= names one of the model's"
        )
    if found and model.manifest.postprocess.get("pools_prompt") is False:
        raise LlmcError(
            "the model leaves the prompt's tokens out of its pooling, which is not supported",
            at=str(model.path),
            hint="give texts without a prompt",
        )
    return found


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, each as long as is held at a time.

    Raises:
        LlmcError: one is no text.
    """
    try:
        remaining = iter(texts)
    except TypeError:
        raise LlmcError(f"not a text or texts: {texts!r:.60}") from None
    start = 0
    while window := list(islice(remaining, WINDOW)):
        for i, text in enumerate(window):
            if not isinstance(text, str):
                raise LlmcError(f"text {start + i + 1} is no text: {text!r:.60}")
        start += len(window)
        yield window


class _Encoder:
    """Encodes windows of texts; `cut` counts those that were too long."""

    def __init__(self, model: Model, before: str, rows: int) -> None:
        self.model, self.before, self.rows = model, before, rows
        self.tokenizer = Tokenizer.of(model)
        self.least, self.longest = self.tokenizer.low, self.tokenizer.longest
        self.cut = self.seen = 0
        self.spare: dict[str, Array] = {}

    def __call__(self, texts: list[str]) -> Array:
        """f32 [texts, width], in their order."""
        encodings = self._encodings(texts)
        lengths = np.array([len(e) for e in encodings])
        order = np.argsort(-lengths, kind="stable")  # the longest first: memory is got once
        found = np.empty((len(texts), self._vectors()), np.float32)
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            found[chosen] = self._run([encodings[i] for i in chosen], int(lengths[chosen[0]]))
        return found

    def _encodings(self, texts: list[str]) -> list[Any]:
        try:
            made = self.tokenizer.encoder.unpadded(texts, self.before)
        except BadTexts as error:
            raise BadTexts(
                {self.seen + i: why for i, why in error.rows.items()}, self.seen + len(texts)
            ) from None
        self.cut += sum(bool(e.overflowing) for e in made)
        self.seen += len(texts)
        return made

    def _vectors(self) -> int:
        width = self.model.outputs[OUTPUT].shape[-1]
        assert isinstance(width, int)
        return width

    def _run(self, encodings: Sequence[Any], longest: int) -> Array:
        inputs = self.tokenizer.padded(encodings, max(longest, self.least, 1))
        shape = inputs["input_ids"].shape
        return self.model.run(inputs, dict(self._others(shape)))[OUTPUT]

    def _others(self, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
        """Memory for outputs by token, which nobody reads: the system would give new pages for each run."""
        for name, info in self.model.outputs.items():
            sizes = dict(zip(self.model.inputs["input_ids"].shape, shape, strict=True))
            axes = [axis if isinstance(axis, int) else sizes.get(axis) for axis in info.shape]
            known = [axis for axis in axes if axis is not None]
            if name == OUTPUT or len(known) < len(axes):
                continue
            count = math.prod(known)
            if name not in self.spare or self.spare[name].size < count:
                self.spare[name] = np.empty(count, info.numpy_dtype)
            yield name, self.spare[name][:count].reshape(known)


def _finished(vectors: Array, normalize: bool) -> Array:
    """x / max(|x|, 1e-12) if asked for."""
    vectors = np.ascontiguousarray(vectors)
    if not normalize:
        return vectors
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)
