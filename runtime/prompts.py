"""Prompts: texts or tokens, one or several."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.runtime.encoder import Encoder
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.model import Model


def encoder_of(model: Model) -> Encoder | None:
    """The model's tokenizer, made at the first use; None if it has none."""
    from llmc.runtime.encoder import Encoder

    entry = model.manifest.tokenizer
    if entry is None:
        return None
    made = model.__dict__.get("_whole_encoder")
    if made is None:
        try:
            text = (model.path / entry.file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise LlmcError(f"{entry.file} is no tokenizer: {error}", at=str(model.path)) from None
        made = model.__dict__["_whole_encoder"] = Encoder(text, entry, entry.max_length, str(model.path))
    assert isinstance(made, Encoder)
    return made


def prompt_ids(model: Model, entry: GenerationEntry, prompt: Any, special: bool) -> list[int]:
    """The tokens of a prompt.

    Raises:
        LlmcError: it is neither a text nor tokens, or has none.
    """
    if isinstance(prompt, str):
        encoder = encoder_of(model)
        if encoder is None:
            raise LlmcError(
                "the artifact has no tokenizer", at=str(model.path), hint="give tokens: [1, 2, 3]"
            )
        ids = encoder.ids(prompt, special)
    else:
        ids = _numbers(prompt)
    if not ids and entry.bos is not None:
        return [entry.bos]
    if not ids:
        raise LlmcError("the prompt is empty", hint="the model has no token that begins a text: give a word")
    return ids


def are_several(prompt: Any) -> bool:
    """Whether it is a list of prompts: one of texts, or of lists of tokens."""
    if isinstance(prompt, str) or not isinstance(prompt, list | tuple) or not prompt:
        return False
    return isinstance(prompt[0], str) or hasattr(prompt[0], "__len__")


def _numbers(prompt: Any) -> list[int]:
    try:
        return [index(token) for token in prompt]
    except TypeError:
        raise LlmcError(f"not a text or a list of tokens: {prompt!r:.60}") from None


def want_tokens(ids: Sequence[int], vocabulary: int) -> None:
    """Refuse what C could not even be asked.

    Raises:
        LlmcError: a number is no token's.
    """
    for place, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise LlmcError(f"token {place} of the prompt is {token}, must be within 0..{vocabulary - 1}")
