"""The settings of a generation config: which options llmc has, what each must be, and which change no text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from llmc.errors import LlmcError, LlmcWarning


def options(
    stated: Mapping[str, Any], at: str, kinds: Mapping[str, tuple[str, Callable[[Any], bool]]] | None = None
) -> dict[str, Any]:
    """The options among the settings of a generation config, by transformers' names.

    Args:
        kinds: those that there are, and what each must be; by default `KINDS`.

    Raises:
        LlmcError: one is of the wrong kind; `at` is the file.
    """
    found: dict[str, Any] = {}
    unknown = []
    kinds = KINDS if kinds is None else kinds
    if stated.get("do_sample") is True:
        kinds = {**kinds, **_WHERE_DRAWN}
    for key, value in stated.items():
        if value is None or key in _IDLE or (key in _NEUTRAL and value == _NEUTRAL[key]):
            continue
        if key not in kinds:
            unknown.append(key)
            continue
        kind, fits = kinds[key]
        if not fits(value):
            raise LlmcError(f"{key} is not {kind}", at=at, found=repr(value)[:60])
        found[key] = [value] if key == "stop_strings" and isinstance(value, str) else value
    if found.get("do_sample") and found.get("num_beams", 1) > 1:
        unknown.append("num_beams where do_sample is true")
    if unknown:
        told = f"{at}: llmc does not know {', '.join(unknown)}: its texts may differ from transformers'"
        warnings.warn(LlmcWarning(told), stacklevel=2)
    return found


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _is_above(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(n) for n in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_token(value: Any) -> bool:
    return _is_whole(value) or (_is_ids(value) and bool(value))


def _are_sequences(value: Any) -> bool:
    return isinstance(value, list) and all(_is_ids(part) and part for part in value)


def _is_stopping(value: Any) -> bool:
    return isinstance(value, bool) or value == "never"


_WHOLE = ("a whole number", _is_whole)
_NUMBER = ("a number", _is_number)
_COUNT = ("a whole number, at least 1", _is_count)
_SHARE = ("a number within 0..1", _is_share)
# the options that the runtime has (runtime/generation_options.py), and what each must be
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "do_sample": ("true or false", _is_flag),
    "temperature": _NUMBER,
    "top_k": _WHOLE,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "typical_p": _NUMBER,
    "repetition_penalty": ("a number above 0", _is_above),
    "max_new_tokens": _COUNT,
    "min_new_tokens": _WHOLE,
    "max_length": _COUNT,
    "min_length": _WHOLE,
    "suppress_tokens": ("a list of tokens", _is_ids),
    "begin_suppress_tokens": ("a list of tokens", _is_ids),
    "no_repeat_ngram_size": _WHOLE,
    "encoder_no_repeat_ngram_size": _WHOLE,
    "bad_words_ids": ("a list of lists of tokens", _are_sequences),
    "forced_bos_token_id": _WHOLE,
    "forced_eos_token_id": ("a token or a list of tokens", _is_token),
    "num_beams": _COUNT,
    "length_penalty": _NUMBER,
    "early_stopping": ('true, false or "never"', _is_stopping),
    "renormalize_logits": ("true or false", _is_flag),
    "stop_strings": ("a text or a list of texts, none of them empty", _is_texts),
}
# what those must be beyond that which have an effect where tokens are drawn
_WHERE_DRAWN: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("a number above 0", _is_above),
    "top_p": _SHARE,
    "min_p": _SHARE,
    "typical_p": ("a number above 0, at most 1", lambda value: _is_share(value) and value > 0),
}
# what others must be to change nothing
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "renormalize_logits": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "token_healing": False,
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
}
NAMES = frozenset({*KINDS, *_NEUTRAL})  # that change texts
# of speed, of what is returned, of beams alone, or read elsewhere
_IDLE = frozenset(
    {
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "eos_token_id",
        "is_assistant",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "remove_invalid_values",
        "return_dict_in_generate",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "use_mtp",
    }
)
