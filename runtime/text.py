"""From text to the inputs of a model, by the tokenizer.json of its artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime.arrays import Array

if TYPE_CHECKING:
    from llmc.runtime.model import Model

_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
Text = str | tuple[str, str]


class Tokenizer:
    """Makes batches. `encoder` is a `tokenizers.Tokenizer` that pads and does not truncate.

    Its truncation would be state that threads share; `_encode` cuts by a second one, set up once.
    """

    def __init__(self, model: Model) -> None:
        entry = model.manifest.tokenizer
        if entry is None:
            raise LlmcError("the artifact has no tokenizer", at=str(model.path), hint="give input_ids")
        try:
            import tokenizers
        except ImportError:
            raise LlmcError("text needs the package tokenizers", hint="pip install tokenizers") from None
        self.low, self.longest = _length_bounds(model, entry.max_length)
        self.names = [name for name in model.inputs if name in _FIELDS]
        self.pad = {"pad_id": entry.pad_id, "pad_token": entry.pad_token}
        try:
            path = str(model.path / entry.file)
            self.whole, self.cut = (tokenizers.Tokenizer.from_file(path) for _ in range(2))
            for encoder in (self.whole, self.cut):
                encoder.enable_padding(**self.pad)
            self.whole.no_truncation()
            self.cut.enable_truncation(self.longest)
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
            raise LlmcError(f"{entry.file} is no tokenizer: {error}", at=str(model.path)) from None

    @staticmethod
    def of(model: Model) -> Tokenizer:
        """The tokenizer of a model, made at the first use."""
        made = model.__dict__.get("_tokenizer")
        if made is None:
            made = model.__dict__["_tokenizer"] = Tokenizer(model)
        assert isinstance(made, Tokenizer)
        return made

    def __call__(self, texts: Text | Sequence[Text], *, truncate: bool = True) -> dict[str, Array]:
        """int64 arrays [batch, longest text] for the inputs that the tokenizer can make.

        Raises:
            LlmcError: no texts, something else than texts, or a text that is too long and may not be cut.
        """
        batch = _as_batch(texts)
        encodings = (self.cut if truncate else self.whole).encode_batch(batch)
        columns = len(encodings[0].ids)
        if columns > self.longest:
            raise LlmcError(
                f"a text has {columns} tokens, the model takes {self.longest}",
                hint="let it be truncated, or split it",
            )
        if columns == 0:
            raise LlmcError("the texts have no tokens", hint="give at least one word")
        width = max(columns, self.low)
        if width > columns:
            for encoding in encodings:
                encoding.pad(width, **self.pad)
        return {n: np.array([getattr(e, _FIELDS[n]) for e in encodings], np.int64) for n in self.names}


def _length_bounds(model: Model, max_length: int) -> tuple[int, int]:
    """The least and most tokens of a text: those of the last axis of input_ids, and `max_length`."""
    axis = model.inputs["input_ids"].shape[-1] if "input_ids" in model.inputs else None
    if axis is None:
        raise LlmcError("the model does not take text: it has no input_ids", at=str(model.path))
    low, high = (axis, axis) if isinstance(axis, int) else model.dims[axis]
    return low, min(high, max_length)


def _as_batch(texts: Any) -> list[Text]:
    batch = [texts] if isinstance(texts, str | tuple) else list(texts)
    if not batch:
        raise LlmcError("there are no texts", hint="give at least one")
    for entry in batch:
        pair = entry if isinstance(entry, tuple) else (entry, "")
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise LlmcError(f"not a text or a pair of texts: {entry!r:.60}", hint='"...", or ("...", "...")')
    return batch
