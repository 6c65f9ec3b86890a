"""A tokenizer's tokens as the bytes that they write, for llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.errors import LlmcError, first_line
from llmc.runtime.encoder import Encoder

_BLANK = "▁"  # how SentencePiece writes it


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a model that generates.

    Args:
        tokenizer: an `llguidance.LLTokenizer`.
        size: tokens that have a logit.
        ends: that end a text.
        drops_blank: the blank that a text begins with is not shown, as SentencePiece has it.
        forces: letters that a grammar leaves no choice of become the tokens that the tokenizer makes of them; else any.
    """

    tokenizer: Any
    size: int
    ends: tuple[int, ...]
    drops_blank: bool
    forces: bool

    @staticmethod
    def of(encoder: Encoder, size: int, ends: tuple[int, ...], at: str) -> Vocabulary:
        """
        Raises:
            LlmcError: the tokens are not pieces of text, as those of WordPiece; or one that ends a text is no token.
        """
        import llguidance

        for token in ends:
            if not 0 <= token < size:
                raise LlmcError(f"the stopping {token} is no token, must be within 0..{size - 1}")
        most = max(size, encoder.whole.get_vocab_size())
        decoder = json.loads(encoder.text).get("decoder")
        forces = _has_bytes(decoder) and bool(ends)
        try:
            if forces:
                made = llguidance.LLTokenizer(encoder.text, n_vocab=most, eos_token=list(ends))
            else:
                made = _of_pieces(encoder, _pieces(encoder, decoder, most, at), ends)
        except ValueError as error:
            raise LlmcError(
                f"the tokens are none that llguidance knows: {first_line(error)}", at=at
            ) from None
        return Vocabulary(made, size, ends, _drops_blank(made, encoder), forces)

    def only_ends(self, mask: bytes) -> bool:
        """Whether none but tokens that end a text are allowed, of those that the model has."""
        bits = int.from_bytes(mask, "little") & ((1 << self.size) - 1)
        return not bits & ~sum(1 << end for end in set(self.ends))


def _parts(decoder: Any) -> list[Any]:
    """A decoder of tokenizer.json, or those that it is made of."""
    if not isinstance(decoder, dict):
        return []
    return [d for part in decoder.get("decoders", ()) for d in _parts(part)] or [decoder]


def _has_bytes(decoder: Any) -> bool:
    """Whether llguidance knows the tokens' bytes by the file itself."""
    return any(part.get("type") in ("ByteLevel", "ByteFallback") for part in _parts(decoder))


def _pieces(encoder: Encoder, decoder: Any, most: int, at: str) -> list[bytes]:
    """What tokens write; the library knows bytes, but neither SentencePiece's pieces alone nor whole words."""
    import llguidance

    if _has_bytes(decoder):
        known = llguidance.LLTokenizer(encoder.text, n_vocab=most)
        return [known.decode_bytes([token]) for token in range(most)]
    parts = [part.get("type") for part in _parts(decoder)]
    if parts not in ([], ["Metaspace"]):
        raise LlmcError(
            "the model's tokens are not pieces of text that can be held to a grammar",
            at=at,
            found=f"a tokenizer with the decoder {' and '.join(map(str, parts))}",
        )
    found = [encoder.whole.id_to_token(token) for token in range(most)]
    if parts:
        return [(text or "").replace(_BLANK, " ").encode() for text in found]
    return [f" {text}".encode() if text else b"" for text in found]


def _of_pieces(encoder: Encoder, tokens: Sequence[bytes], ends: Sequence[int]) -> Any:
    """The library's tokenizer. Where no token ends a text, one more does, which the model does not have."""
    import llguidance

    stops = list(ends) or [len(tokens)]
    given = _Pieces(encoder.whole, [*tokens, *(() if ends else (b"",))], stops[0])
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(given), eos_token=stops)


class _Pieces:
    """What llguidance asks of a tokenizer; texts are never made tokens, as `Vocabulary.forces` is not set."""

    def __init__(self, whole: Any, tokens: Sequence[bytes], end: int) -> None:
        added = whole.get_added_tokens_decoder()
        self.tokens, self.eos_token_id, self.bos_token_id = tokens, end, None
        self.special_token_ids = [token for token, info in added.items() if info.special]

    def __call__(self, text: bytes) -> list[int]:
        return []


def _drops_blank(made: Any, encoder: Encoder) -> bool:
    """Whether the blank of a first token is left out of a text."""
    for token in range(encoder.whole.get_vocab_size()):
        written = made.decode_bytes([token])
        if written[:1] == b" " and written[1:2].isalnum() and not made.is_special_token(token):
            return not encoder.text_of([token]).startswith(" ")
    return False
