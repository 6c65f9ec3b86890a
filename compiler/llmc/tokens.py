"""A model's tokenizer on its way into the artifact, and as what calibration and evaluation encode with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llmc.compiler.dims import Bounds
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.runtime.encoder import Encoder, TokenizerEntry

FILE = "tokenizer.json"


def entry_of(tokenizer: Tokenizer, longest: int) -> TokenizerEntry:
    """What the runtime needs to know, for texts of at most `longest` tokens."""
    token = tokenizer.pad_token if tokenizer.pad_token is not None else _token(tokenizer)
    return TokenizerEntry(
        FILE,
        longest,
        tokenizer.pad_id,
        token if token is not None else "[PAD]",
        tokenizer.truncation_side,
        tokenizer.padding_side,
        tokenizer.inputs,
        dict(tokenizer.prompts or {}),
        tokenizer.prompt,
    )


def manifest_entry(tokenizer: Tokenizer, dims: Mapping[str, Bounds]) -> dict[str, Any]:
    """The manifest's field `tokenizer`; prompts only where there are any."""
    fields = asdict(entry_of(tokenizer, longest_of(tokenizer, dims)))
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in fields.items()
        if value not in (None, {})
    }


def longest_of(tokenizer: Tokenizer, dims: Mapping[str, Bounds]) -> int:
    """The most tokens of a text that tokenizer and graph take."""
    bounds = next((dims[name] for name in ("source", "seq") if name in dims), None)
    return min(tokenizer.max_length, bounds.high if bounds else tokenizer.max_length)


def encoder_of(tokenizer: Tokenizer, longest: int) -> Encoder:
    """Encodes as the artifact will."""
    return Encoder(tokenizer.text, entry_of(tokenizer, longest), longest, str(tokenizer.file))


def _token(tokenizer: Tokenizer) -> str | None:
    import tokenizers

    token: str | None = tokenizers.Tokenizer.from_str(tokenizer.text).id_to_token(tokenizer.pad_id)
    return token
