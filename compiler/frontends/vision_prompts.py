"""How images stand in prompts, by the settings of a folder's processor: `texts` of the manifest's `generation.images`.

They are what transformers' processors of the families write. A setting that is not understood is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.eyes import Eyes
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.errors import LlmcError

_FILE = "processor_config.json"
_IDLE = {"processor_class", "image_processor", "video_processor", "tokenizer", "chat_template", "auto_map"}


def texts(root: Path, eyes: Eyes, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The field `texts`; none where the folder has no tokenizer, or nobody knows how images stand in prompts.

    Raises:
        LlmcError: the processor's settings do not fit the model, or are not understood.
    """
    if tokenizer is None or eyes.model.config.model_type not in _FAMILIES:
        return {}
    file = root / _FILE
    stated = read_object(file) if file.exists() else {}
    config = eyes.model.config
    make, settings = _FAMILIES[config.model_type]
    unknown = sorted(stated.keys() - _IDLE - {"image_token"} - settings.keys())
    if unknown:
        hint = f"known are {', '.join(sorted({'image_token', *settings}))}"
        raise LlmcError(
            f"the processor's setting {unknown[0]!r} is not known to llmc", at=str(file), hint=hint
        )
    for name, wanted in settings.items():
        _want(file, stated, name, wanted(eyes))
    vocabulary = _Vocabulary(tokenizer, root)
    row = vocabulary.text(eyes.token, "image_token")
    if stated.get("image_token", row) != row:
        raise LlmcError(
            "image_token is not the token of config.json's image_token_id", at=str(file), found=row
        )
    return {"texts": {"placeholder": row, "row": row, **make(config, vocabulary)}}


def _want(file: Path, stated: Mapping[str, Any], name: str, wanted: Any) -> None:
    """Refuse a setting that would give prompts other tokens than the model has rows."""
    if stated.get(name) is not None and wanted is not None and stated[name] != wanted:
        raise LlmcError(
            f"the processor's {name} is {stated[name]!r}, the model's images need {wanted!r}",
            at=str(file),
            hint="is it the one saved with these weights?",
        )


class _Vocabulary:
    """The tokens of a folder's tokenizer."""

    def __init__(self, tokenizer: Tokenizer, root: Path) -> None:
        from tokenizers import Tokenizer as Tool

        self._tool, self._at = Tool.from_str(tokenizer.text), str(root)

    def text(self, number: Any, name: str) -> str:
        """The text of a token.

        Raises:
            LlmcError: there is none.
        """
        found = self._tool.id_to_token(number) if type(number) is int and number >= 0 else None
        if found is None:
            raise LlmcError(f"the tokenizer has no token {number}, the {name}", at=self._at)
        return str(found)

    def want(self, text: str) -> str:
        """A text that must be one token.

        Raises:
            LlmcError: it is none.
        """
        if self._tool.token_to_id(text) is None:
            raise LlmcError(f"the tokenizer has no token {text!r}, which stands around images", at=self._at)
        return text


def _plain(config: Any, vocabulary: _Vocabulary) -> dict[str, str]:
    return {}


def _tiles(config: Any, vocabulary: _Vocabulary) -> dict[str, str]:
    around, whole = vocabulary.want("<fake_token_around_image>"), "<global-img>"
    return {
        "before": around + whole,
        "after": around,
        "tile": around + "<row_{row}_col_{column}>",
        "line": "\n",
        "whole": "\n" + around + whole,
    }


def _gemma(config: Any, vocabulary: _Vocabulary) -> dict[str, str]:
    begin, end = (
        vocabulary.text(getattr(config, f"{name}_token_index", None), f"{name}_token")
        for name in ("boi", "eoi")
    )
    return {"placeholder": begin, "before": f"\n\n{begin}", "after": f"{end}\n\n"}


def _paligemma(config: Any, vocabulary: _Vocabulary) -> dict[str, str]:
    text = config.text_config
    number = config.bos_token_id if getattr(config, "bos_token_id", None) is not None else text.bos_token_id
    return {"begin": vocabulary.text(number, "bos_token"), "end": "\n"}


def _rows(eyes: Eyes) -> Any:
    return eyes.tokens


def _patch(eyes: Eyes) -> Any:
    return eyes.model.config.vision_config.patch_size


def _strategy(eyes: Eyes) -> Any:
    return eyes.model.config.vision_feature_select_strategy


def _extra(eyes: Eyes) -> Any:
    """Rows beyond the patches, before one is left out."""
    side = eyes.shape[1] // _patch(eyes), eyes.shape[2] // _patch(eyes)
    return eyes.tokens - side[0] * side[1] + (_strategy(eyes) == "default")


Settings = Mapping[str, Callable[[Eyes], Any]]
_LLAVA: Settings = {
    "patch_size": _patch,
    "vision_feature_select_strategy": _strategy,
    "num_additional_image_tokens": _extra,
}
_FAMILIES: Mapping[str, tuple[Callable[[Any, _Vocabulary], dict[str, str]], Settings]] = {
    "llava": (_plain, _LLAVA),
    "idefics3": (_tiles, {"image_seq_len": _rows}),
    "smolvlm": (_tiles, {"image_seq_len": _rows}),
    "qwen2_vl": (_plain, {}),
    "qwen2_5_vl": (_plain, {}),
    **dict.fromkeys(("exaone4_5", "glm46v", "glm4v", "glm4v_moe", "glm_ocr"), (_plain, {})),
    "gemma3": (_gemma, {"image_seq_length": _rows}),
    "paligemma": (_paligemma, {"image_seq_length": _rows}),
}
