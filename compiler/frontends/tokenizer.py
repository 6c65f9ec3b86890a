"""A folder's tokenizer: what its files say at a glance, and what transformers makes of them.

tokenizer.json alone does not say what texts become: the class in tokenizer_config.json builds its own normaliser,
adds tokens, cuts and pads on a side. So transformers builds the tokenizer, and what it built goes into the artifact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import vocabulary
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.regular_file import want_regular
from llmc.compiler.frontends.sentence_text import TextSettings
from llmc.errors import LlmcError, first_line

FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
    "tokenizer.tiktoken",
    "tekken.json",
)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SIDES = ("right", "left")
MOST_BYTES = 64 << 20  # of tokenizer.json: the largest vocabularies take half of it
_MOST_ID = 2**31 - 1
_UNBOUNDED = 1 << 30  # transformers' way to say that a tokenizer has no limit is a number far above


@dataclass(frozen=True)
class Tokenizer:
    """How texts become the inputs of a model.

    Args:
        file: tokenizer.json, or the vocabulary that transformers builds one from.
        max_length: the most tokens of a text.
        pad_id, pad_token: what pads; no token: what the file has at the id.
        made: the text of tokenizer.json where the file does not say the same.
        truncation_side, padding_side: where texts are cut and filled up.
        inputs: what the tokenizer makes; other inputs of the model keep their defaults.
        prompts: texts by name that may go before every text.
        prompt: the name of the one that does where none is asked for.
    """

    file: Path
    max_length: int
    pad_id: int
    pad_token: str | None = None
    made: str | None = None
    truncation_side: str = "right"
    padding_side: str = "right"
    inputs: tuple[str, ...] = INPUTS
    prompts: Mapping[str, str] | None = None
    prompt: str | None = None

    @property
    def text(self) -> str:
        """tokenizer.json."""
        return self.made if self.made is not None else self.file.read_text(encoding="utf-8")

    def write(self, path: Path) -> None:
        """Write tokenizer.json; of a file that says the same every byte is kept."""
        if self.made is None:
            shutil.copyfile(self.file, path)
        else:
            path.write_text(self.made, encoding="utf-8")


def file_of(root: Path) -> Path | None:
    """The file of a folder that a tokenizer is read from, if there is one.

    Raises:
        LlmcError: it is no file, or larger than any tokenizer.
    """
    file = next((root / name for name in FILES if (root / name).exists()), None)
    if file is not None:
        want_regular(file, MOST_BYTES)
    return file


def read(
    root: Path, config: Mapping[str, Any], positions: int, told: TextSettings | None
) -> Tokenizer | None:
    """What the files say, without transformers; None if there is no tokenizer.

    The limit is the smallest of what the tokenizer, or sentence-transformers in its place, and the positions allow.

    Raises:
        LlmcError: a file is damaged, or its settings are none.
    """
    file = file_of(root)
    if file is None:
        return None
    if file.name == "tokenizer.json" and not isinstance(_content(file).get("model"), dict):
        raise LlmcError(
            "tokenizer.json is not a tokenizer", at=str(file), hint="save it with save_pretrained"
        )
    extra = root / "tokenizer_config.json"
    settings = read_object(extra) if extra.exists() else {}
    stated = (told.max_length if told else None) or settings.get("model_max_length")
    pad = config.get("pad_token_id")
    if type(pad) is int and pad > _MOST_ID:
        raise LlmcError("pad_token_id is no token's", at=str(root / "config.json"), found=f"{pad:#x}"[:60])
    return Tokenizer(
        file,
        _limit(positions, stated),
        pad if type(pad) is int and pad >= 0 else 0,  # -1 says that no token pads
        truncation_side=_side(settings, "truncation_side", extra),
        padding_side=_side(settings, "padding_side", extra),
        prompts=told.prompts if told else None,
        prompt=told.prompt if told else None,
    )


def _content(file: Path) -> dict[str, Any]:
    return read_object(file, MOST_BYTES)


def _limit(positions: int, stated: Any) -> int:
    known = isinstance(stated, int | float) and not isinstance(stated, bool) and 1 <= stated < _UNBOUNDED
    return min(positions, int(stated)) if known else positions


def _side(settings: Mapping[str, Any], key: str, at: Path) -> str:
    side = settings.get(key) or "right"
    if side not in SIDES:
        raise LlmcError(f"{key} is neither right nor left", at=str(at), found=repr(side)[:60])
    return str(side)


def build(
    tokenizer: Tokenizer | None, root: Path, positions: int, told: TextSettings | None
) -> Tokenizer | None:
    """The tokenizer as transformers builds it, and sentence-transformers after it.

    Args:
        tokenizer: what `read` found.
        told: what sentence-transformers does to texts; None for a model of transformers.

    Raises:
        LlmcError: transformers cannot build it, or builds what a tokenizer.json cannot hold.
    """
    if tokenizer is None:
        return None
    alone = _stands_alone(tokenizer, root)
    vocabulary.want_readers(tokenizer.file)
    try:
        own = _load(root)
    except LlmcError:
        if not alone:
            raise
        return _lowered(tokenizer, told)
    if not _same_kind(own, tokenizer.file):
        if not alone:
            raise _other_kind(own, tokenizer.file)
        return _lowered(tokenizer, told)
    vocabulary.want_same_pieces(own, tokenizer.file)
    return _lowered(_taken(own, tokenizer, positions, told), told)


def _stands_alone(tokenizer: Tokenizer, root: Path) -> bool:
    """Whether no other file says how the tokenizer is built."""
    return tokenizer.file.name == "tokenizer.json" and not (root / "tokenizer_config.json").exists()


def _load(root: Path) -> Any:
    """transformers' tokenizer; no code of the folder is run."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(root), local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # it raises many kinds, and panics of the Rust library are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise LlmcError(
            f"transformers cannot build the tokenizer: {first_line(error)}",
            at=str(root),
            hint="save it where it works: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        ) from None


def _same_kind(own: Any, file: Path) -> bool:
    """Whether the class is made for the model in tokenizer.json; what it would make of another is nonsense."""
    if file.name != "tokenizer.json":
        return True
    kind, wanted = _content(file)["model"].get("type"), getattr(type(own).model, "__name__", None)
    return kind is None or wanted is None or kind == wanted


def _other_kind(own: Any, file: Path) -> LlmcError:
    return LlmcError(
        f"tokenizer.json is of another kind than {type(own).__name__}, which its neighbours name",
        at=str(file),
        found=f"{_content(file)['model'].get('type')}, wanted {type(own).model.__name__}",
        hint='"tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json takes the file as it is',
    )


def _taken(own: Any, tokenizer: Tokenizer, positions: int, told: TextSettings | None) -> Tokenizer:
    """What transformers built, with the file as it is where that says the same."""
    at = str(tokenizer.file.parent)
    if not getattr(own, "is_fast", False):
        hint = "save it where a fast tokenizer of its class exists"
        raise LlmcError(f"{type(own).__name__} has no form that a tokenizer.json can hold", at=at, hint=hint)
    if own.split_special_tokens:
        raise LlmcError("split_special_tokens is not supported", at=at, hint="set it to false")
    made = _plain(own.backend_tokenizer.to_str())
    same = tokenizer.file.name == "tokenizer.json" and made == _reread(tokenizer.file)
    stated = (told.max_length if told else None) or own.model_max_length
    padded = own.pad_token is not None and own.pad_token_id is not None
    return replace(
        tokenizer,
        max_length=_limit(positions, stated),
        pad_id=own.pad_token_id if padded else tokenizer.pad_id,
        pad_token=str(own.pad_token) if padded else None,
        made=None if same else json.dumps(made, ensure_ascii=False),
        truncation_side=own.truncation_side,
        padding_side=own.padding_side,
        inputs=tuple(name for name in INPUTS if name in own.model_input_names),
    )


def _plain(text: str) -> dict[str, Any]:
    """Without truncation and padding, which each call of transformers sets anew."""
    return {**json.loads(text), "truncation": None, "padding": None}


def _reread(file: Path) -> dict[str, Any]:
    """The file as the library writes it, so that only what is said can differ."""
    import tokenizers

    try:
        return _plain(tokenizers.Tokenizer.from_file(str(file)).to_str())
    except Exception as error:  # the library raises bare Exception
        raise LlmcError(f"tokenizer.json is not a tokenizer: {error}", at=str(file)) from None


def _lowered(tokenizer: Tokenizer, told: TextSettings | None) -> Tokenizer:
    """`do_lower_case` of sentence-transformers: Lowercase before all other normalisers, unless there is one."""
    if told is None or not told.lower:
        return tokenizer
    content = json.loads(tokenizer.text)
    own = content.get("normalizer")
    parts = [] if own is None else own["normalizers"] if own["type"] == "Sequence" else [own]
    if any(part["type"] == "Lowercase" for part in parts):
        return tokenizer
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *parts]}
    return replace(tokenizer, made=json.dumps(content, ensure_ascii=False))
