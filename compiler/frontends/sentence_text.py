"""What sentence-transformers does to texts: lower case, a limit, prompts. Unknown settings are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.json_file import read_object
from llmc.errors import LlmcError

# in the order sentence-transformers looks for them; the first that says anything counts
FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_READ = ("max_seq_length", "do_lower_case")
# settings of speed, or that `encode` does not look at
_IDLE = ("unpad_inputs", "query_length", "document_length")
# what else may be said, in the words that change nothing
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        {"text": {"method": "forward", "method_output_name": ["last_hidden_state"]}},
    ),
}


@dataclass(frozen=True)
class TextSettings:
    """What is done to a text before and by the tokenizer.

    Args:
        lower: lower case before all else.
        max_length: the most tokens, None if not stated.
        prompts: texts by name that may go before every text.
        prompt: the name of the one that does where none is asked for.
    """

    lower: bool = False
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None


def text_settings(path: Path, transformer: Path) -> TextSettings:
    """The settings in a model's folder and that of its transformer.

    Raises:
        LlmcError: a file is broken, or says something that is not supported.
    """
    config, at = _first(transformer)
    for key, value in config.items():
        if key not in (*_READ, *_IDLE) and value not in (None, False, {}, [], *_USUAL.get(key, ())):
            raise LlmcError(
                f"the setting {key} of {at.name} is not supported",
                at=str(at),
                found=f"{value!r:.60}",
                hint="remove it if the answers do not depend on it",
            )
    most = config.get("max_seq_length")
    if most is not None and (type(most) is not int or most < 1):
        raise LlmcError("max_seq_length is not a positive number", at=str(at), found=repr(most)[:60])
    prompts, prompt = _prompts(path / "config_sentence_transformers.json")
    return TextSettings(bool(config.get("do_lower_case")), most, prompts, prompt)


def _first(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """The first file that says anything."""
    for name in FILES:
        if (folder / name).exists() and (config := read_object(folder / name)):
            return config, folder / name
    return {}, folder / FILES[0]


def _prompts(file: Path) -> tuple[Mapping[str, str], str | None]:
    config = read_object(file) if file.exists() else {}
    given, name = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(given, dict) or not all(isinstance(t, str | None) for t in given.values()):
        raise LlmcError("prompts are not texts by name", at=str(file), found=repr(given)[:60])
    prompts = {str(key): text or "" for key, text in given.items()}
    if name in ("query", "document"):  # sentence-transformers has these two, empty if they are not given
        prompts.setdefault(name, "")
    if name is not None and name not in prompts:
        known = ", ".join(prompts) or "none"
        raise LlmcError(f"there is no prompt {name!r}, the default", at=str(file), found=f"prompts: {known}")
    for text in (*prompts, *prompts.values()):
        want_unicode(text, "a prompt", str(file))
    return prompts, name


def want_unicode(text: str, what: str, at: str) -> None:
    r"""Refuse a text that UTF-8 cannot write: JSON may hold half of a pair, as in "\ud83d".

    Raises:
        LlmcError: it has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LlmcError(f"{what} is not valid Unicode", at=at, found=ascii(text)[:60]) from None
