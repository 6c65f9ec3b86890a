"""What tests of texts held to a grammar share: the artifact `words` with letters of JSON, SentencePiece's, or words."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmc.runtime.manifest import seal

SPECIAL = ("</s>", "<u>", "<a>")
# 41 tokens with pieces of several letters, and the two bytes of é
LETTERS = (*SPECIAL, *'{}":,[] \n-.0127abcdnorstuelfÃ©', "true", 'e"', '{"', '":', "12", ' "', "bo", " ")
PIECES = (*SPECIAL, "▁", "▁a", "b", "▁ab", *"acd12ef", "▁1", "▁{", *(f"x{i}" for i in range(23)))
WORDS = (*SPECIAL, *["red", "green", "two", "fish", "birds", "a", "the", "1"], *(f"x{i}" for i in range(30)))


def letters() -> Tokenizer:
    """Bytes and pieces of JSON, as GPT-2 writes them."""
    shown = [text if text in SPECIAL else text.replace(" ", "Ġ").replace("\n", "Ċ") for text in LETTERS]
    made = Tokenizer(models.BPE({text: i for i, text in enumerate(dict.fromkeys(shown))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return _special(made)


def pieces(fallback: bool = False) -> Tokenizer:
    """SentencePiece's, as T5 has them, or with bytes as Llama does."""
    if fallback:
        made = Tokenizer(models.BPE({text: i for i, text in enumerate(PIECES)}, [], byte_fallback=True))
        parts = (
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        )
        made.decoder = decoders.Sequence(list(parts))
    else:
        made = Tokenizer(models.Unigram([(text, -1.0 - i) for i, text in enumerate(PIECES)], unk_id=1))
        made.decoder = decoders.Metaspace()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return _special(made)


def words() -> Tokenizer:
    """Whole words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<u>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _special(made)


def _special(made: Tokenizer) -> Tokenizer:
    made.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return made


def with_tokenizer(artifact: Path, folder: Path, tokenizer: Tokenizer | None, **changed: Any) -> Path:
    """A copy of an artifact with another tokenizer, or none, and other fields of `generation`."""
    copied = Path(shutil.copytree(artifact, folder))
    fields = json.loads((copied / "manifest.json").read_text())
    fields["generation"] |= changed
    if tokenizer is None:
        (copied / "tokenizer.json").unlink()
        del fields["files"]["tokenizer.json"], fields["tokenizer"]
    else:
        data = str(tokenizer.to_str()).encode()
        (copied / "tokenizer.json").write_bytes(data)
        fields["files"]["tokenizer.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (copied / "manifest.json").write_text(json.dumps(seal(fields)))
    return copied


def ids_of(text: str, tokens: Sequence[str] = LETTERS) -> list[int]:
    """A text letter by letter."""
    return [tokens.index(letter) for letter in text]
