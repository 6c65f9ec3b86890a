"""What a folder of a model that writes down speech says of the tokens before a text: languages, tasks, timestamps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmc.errors import LlmcError

# settings of generation_config.json that are read here, or that only word timestamps and longer prompts need
SETTINGS = frozenset(
    {
        *(
            "lang_to_id",
            "task_to_id",
            "is_multilingual",
            "no_timestamps_token_id",
            "max_initial_timestamp_index",
        ),
        *(
            "forced_decoder_ids",
            "language",
            "task",
            "return_timestamps",
            "alignment_heads",
            "prev_sot_token_id",
        ),
        *("median_filter_width", "prompt_condition_type"),
    }
)
# options of other models that texts of speech do not have: these are made of the likeliest tokens
UNHEARD = frozenset({"num_beams"})


def facts(stated: Mapping[str, Any], config: Mapping[str, Any], vocabulary: int, at: str) -> dict[str, Any]:
    """The manifest's field `generation.speech`.

    Raises:
        LlmcError: a setting is of the wrong kind.
    """
    languages = {
        name.strip("<|>"): number for name, number in _tokens(stated, "lang_to_id", vocabulary, at).items()
    }
    no_timestamps = stated.get("no_timestamps_token_id")
    if no_timestamps is not None and not _is_token(no_timestamps, vocabulary):
        raise _wrong("no_timestamps_token_id", no_timestamps, at)
    found = {
        "languages": languages,
        "names": {name: code for name, code in _names().items() if code in languages},
        "tasks": _tokens(stated, "task_to_id", vocabulary, at),
        "forced": _forced(stated, config, vocabulary),
        "no_timestamps": no_timestamps,
        "latest_start": stated.get("max_initial_timestamp_index"),
        "timestamps": bool(stated.get("return_timestamps")),
    }
    found |= {key: stated[key] for key in ("language", "task") if isinstance(stated.get(key), str)}
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _tokens(stated: Mapping[str, Any], key: str, vocabulary: int, at: str) -> dict[str, int]:
    value = stated.get(key) or {}
    if not isinstance(value, dict) or not all(_is_token(number, vocabulary) for number in value.values()):
        raise _wrong(key, value, at)
    return dict(value)


def _forced(stated: Mapping[str, Any], config: Mapping[str, Any], vocabulary: int) -> list[int]:
    """The tokens behind the first of an older folder, -1 for a language that is to be found."""
    pairs = stated.get("forced_decoder_ids") or config.get("forced_decoder_ids") or []
    found: list[int] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] != len(found) + 1:
            break
        found.append(pair[1] if _is_token(pair[1], vocabulary) else -1)
    return found


def _names() -> Mapping[str, str]:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return dict(TO_LANGUAGE_CODE)


def _is_token(value: Any, vocabulary: int) -> bool:
    return type(value) is int and 0 <= value < vocabulary


def _wrong(key: str, value: Any, at: str) -> LlmcError:
    return LlmcError(f"{key} has no numbers of tokens", at=at, found=repr(value)[:60])
