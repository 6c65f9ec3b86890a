"""Vocabularies that transformers converts to a tokenizer.json: what packages it takes, and whether it is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError, extras_named

_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")  # a line of it; SentencePiece's are no text
_WORDS = 6


def want_readers(file: Path) -> None:
    """Refuse a file whose package is not installed: transformers would say that something else is wrong with it.

    Raises:
        LlmcError: the package is missing; the hint says which extra brings it.
    """
    if file.suffix not in (".model", ".tiktoken"):
        return
    with extras_named():
        if _is_sentencepiece(file):
            import sentencepiece  # noqa: F401
        else:
            import tiktoken  # noqa: F401


def _is_sentencepiece(file: Path) -> bool:
    with file.open("rb") as stream:
        return file.suffix == ".model" and not _TIKTOKEN.match(stream.readline(1000))


def want_same_pieces(own: Any, file: Path) -> None:
    """Refuse a conversion that cuts texts otherwise than SentencePiece: the class was guessed, and wrong.

    Args:
        own: transformers' tokenizer.

    Raises:
        LlmcError: the tokens of words of the vocabulary differ.
    """
    if file.suffix != ".model" or not _is_sentencepiece(file):
        return
    import sentencepiece

    source = sentencepiece.SentencePieceProcessor(model_file=str(file))
    text = _sample(source)
    wanted, made = source.encode(text, out_type=str), own.tokenize(text)
    if made == wanted:
        return
    raise LlmcError(
        f"{type(own).__name__} does not cut texts as {file.name} does",
        at=str(file.parent),
        found=f"{' '.join(made)}, wanted {' '.join(wanted)}"[:160],
        hint='name the class in tokenizer_config.json, such as "tokenizer_class": "LlamaTokenizer", or save '
        "tokenizer.json where it works: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
    )


def _sample(source: Any) -> str:
    """Words of the vocabulary in small letters, which no class changes."""
    pieces = (source.id_to_piece(i) for i in range(min(source.get_piece_size(), 5000)))
    words = [p[1:] for p in pieces if re.fullmatch("▁[a-z]+", p)]
    return " ".join(sorted(words, key=len, reverse=True)[:_WORDS])
