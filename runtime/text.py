"""From text to the inputs of a model, by the tokenizer.json of its artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime.arrays import Array
from llmc.runtime.encoder import BadTexts, Encoder, Text, was_cut

if TYPE_CHECKING:
    from llmc.runtime.model import Model

_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Tokenizer:
    """Makes batches for a model."""

    def __init__(self, model: Model) -> None:
        entry = model.manifest.tokenizer
        if entry is None:
            raise LlmcError("the artifact has no tokenizer", at=str(model.path), hint="give input_ids")
        self.low, self.longest = _length_bounds(model, entry.max_length)
        self.names = [name for name in model.inputs if name in entry.inputs]
        self.encoder = Encoder(_read(model, entry.file), entry, self.longest, str(model.path))
        self.cut_texts = 0

    @staticmethod
    def of(model: Model) -> Tokenizer:
        """The tokenizer of a model, made at the first use."""
        made = model.__dict__.get("_tokenizer")
        if made is None:
            made = model.__dict__["_tokenizer"] = Tokenizer(model)
        assert isinstance(made, Tokenizer)
        return made

    def __call__(
        self, texts: Text | Sequence[Text], *, truncate: bool = True, prompt: str | None = None
    ) -> dict[str, Array]:
        """int64 arrays [batch, longest text] for the inputs that the tokenizer can make.

        Raises:
            LlmcError: no texts, something else than texts, or a text that is too long and may not be cut.
        """
        return self.arrays(self.encode(texts, truncate=truncate, prompt=prompt))

    def encode(
        self, texts: Text | Sequence[Text], *, truncate: bool = True, prompt: str | None = None
    ) -> list[Any]:
        """The library's encodings, all of one length; errors as above. `cut_texts` counts those that were cut."""
        encodings = self.encoder(_as_batch(texts), truncate=truncate, prompt=prompt)
        columns = len(encodings[0].ids)
        if columns > self.longest:
            raise self._too_long(encodings)
        self.cut_texts += len(was_cut(encodings))
        if columns == 0:
            raise LlmcError("the texts have no tokens", hint="give at least one word")
        if columns < self.low:
            for encoding in encodings:
                encoding.pad(self.low, **self.encoder.pad)
        return encodings

    def _too_long(self, encodings: Sequence[Any]) -> BadTexts:
        lengths = [sum(encoding.attention_mask) for encoding in encodings]
        rows = {
            row: f"has {length} tokens, the model takes {self.longest}"
            for row, length in enumerate(lengths)
            if length > self.longest
        }
        return BadTexts(rows, len(encodings), "let it be truncated, or split it")

    def arrays(self, encodings: Sequence[Any]) -> dict[str, Array]:
        """The model's inputs of encodings."""
        return {n: np.array([getattr(e, _FIELDS[n]) for e in encodings], np.int64) for n in self.names}

    def padded(self, encodings: Sequence[Any], columns: int) -> dict[str, Array]:
        """The same of encodings that are each as long as they are: int64 [batch, columns]."""
        fill = {"input_ids": self.encoder.entry.pad_id}
        left = self.encoder.entry.padding_side == "left"
        return {
            n: _stacked([getattr(e, _FIELDS[n]) for e in encodings], columns, fill.get(n, 0), left)
            for n in self.names
        }


def _stacked(rows: Sequence[Sequence[int]], columns: int, fill: int, left: bool) -> Array:
    """int64 [rows, columns], filled up on one side."""
    found = np.full((len(rows), columns), fill, np.int64)
    for row, values in enumerate(rows):
        if left:
            found[row, columns - len(values) :] = values
        else:
            found[row, : len(values)] = values
    return found


def _read(model: Model, name: str) -> str:
    try:
        return (model.path / name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LlmcError(f"{name} is no tokenizer: {error}", at=str(model.path)) from None


def _length_bounds(model: Model, max_length: int) -> tuple[int, int]:
    """The least and most tokens of a text: those of the last axis of input_ids, and `max_length`."""
    axis = model.inputs["input_ids"].shape[-1] if "input_ids" in model.inputs else None
    if axis is None:
        raise LlmcError("the model does not take text: it has no input_ids", at=str(model.path))
    low, high = (axis, axis) if isinstance(axis, int) else model.dims[axis]
    return low, min(high, max_length)


def most_rows(model: Any) -> int | None:
    """The most texts of one run; None if the model has no such bound."""
    info = model.inputs.get("input_ids")
    if info is None or not info.shape:
        return None
    axis = info.shape[0]
    return axis if isinstance(axis, int) else int(model.dims[axis][1])


def _as_batch(texts: Any) -> list[Text]:
    batch = [texts] if isinstance(texts, str | tuple) else list(texts)
    if not batch:
        raise LlmcError("there are no texts", hint="give at least one")
    for entry in batch:
        pair = entry if isinstance(entry, tuple) else (entry, "")
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise LlmcError(f"not a text or a pair of texts: {entry!r:.60}", hint='"...", or ("...", "...")')
    return batch
