"""Speech models that write characters with a blank between them: what turns their answers into text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError, first_line

VOCABULARY = "vocab.json"


@dataclass(frozen=True)
class Decoder:
    """How to write down what such a model hears.

    Args:
        tokens: by number.
        facts: for the manifest's field `postprocess`: `blank`, the number of the token between others, `delimiter`, the
            token between words, `space`, what stands for it, and `lower`, whether the text is lower case.
    """

    tokens: tuple[str, ...]
    facts: Mapping[str, Any]


def decoder_of(root: Path, architecture: str) -> Decoder | None:
    """The decoder of the folder's Wav2Vec2CTCTokenizer; None if the folder has none.

    Raises:
        LlmcError: transformers cannot make the tokenizer.
    """
    if not architecture.endswith("ForCTC") or not (root / VOCABULARY).exists():
        return None
    import transformers

    try:
        made = transformers.AutoTokenizer.from_pretrained(
            root, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # anything that transformers raises
        problem = f"transformers cannot make the folder's tokenizer: {first_line(error)}"
        raise LlmcError(problem, at=str(root / VOCABULARY)) from error
    if type(made).__name__ != "Wav2Vec2CTCTokenizer" or made.clean_up_tokenization_spaces:
        return None  # outputs come as numbers
    facts = {
        "blank": int(made.pad_token_id),
        "delimiter": str(made.word_delimiter_token),
        "space": str(made.replace_word_delimiter_char),
        "lower": bool(made.do_lower_case),
    }
    return Decoder(tuple(map(str, made.convert_ids_to_tokens(list(range(len(made)))))), facts)
