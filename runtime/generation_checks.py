"""What the value of each option of a text must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_LARGEST = 3.4e38  # of the floats that logits are
_COLDEST = 1e-30  # a temperature below it makes infinities of logits


def _number(low: float, high: float = math.inf, *, open_: bool = False) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return known and (low < value if open_ else low <= value) and value <= high

    return fits


def _whole(low: int, high: int = 2**63 - 1) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_whole(0), value))


def _are_sequences(value: Any) -> bool:
    return isinstance(value, Sequence) and all(_are_ids(part) and len(part) for part in value)


def _is_bias(value: Any) -> bool:
    def numbers(bias: Any) -> bool:
        return _number(-_LARGEST, _LARGEST)(bias) or bias == -math.inf

    return isinstance(value, Mapping) and _are_ids(list(value)) and all(map(numbers, value.values()))


def _are_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, Sequence) and all(isinstance(text, str) and text for text in texts)


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping | str | bool) or hasattr(value, "model_json_schema")


def _listed(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str | int) else list(value)


_SHARE = (_number(0, 1), "a number within 0..1")
_COUNT = (_whole(0), "a whole number, at least 0")
_ABOVE = (_number(0, open_=True), "a number above 0")
_PENALTY = (_number(-_LARGEST, _LARGEST), f"a number within {-_LARGEST}..{_LARGEST}")
_FLAG = (_is_flag, "True or False")
CHECKS: Mapping[str, tuple[Any, ...]] = {
    "do_sample": _FLAG,
    "temperature": (_number(_COLDEST, _LARGEST), "a number above 0"),
    "top_k": _COUNT,
    "top_p": _SHARE,
    "min_p": _SHARE,
    "typical_p": (_number(0, 1, open_=True), "a number above 0, at most 1"),
    "repetition_penalty": (_number(1 / _LARGEST, _LARGEST), "a number above 0"),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "logit_bias": (_is_bias, f"a mapping of tokens to numbers, -inf or within {-_LARGEST}..{_LARGEST}"),
    "suppress_tokens": (_are_ids, "a list of tokens"),
    "begin_suppress_tokens": (_are_ids, "a list of tokens"),
    "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT,
    "bad_words_ids": (_are_sequences, "a list of lists of tokens, none of them empty"),
    "forced_bos_token_id": (_whole(0), "a token"),
    "forced_eos_token_id": (lambda v: _whole(0)(v) or _are_ids(v), "a token or a list of tokens", _listed),
    "max_new_tokens": (_whole(1), "a whole number, at least 1"),
    "min_new_tokens": _COUNT,
    "max_length": (_whole(1), "a whole number, at least 1"),
    "min_length": _COUNT,
    "stop_strings": (_are_texts, "a text or a list of texts, none of them empty", _listed),
    "eos_token_id": (lambda v: _whole(0)(v) or _are_ids(v), "a token or a list of tokens", _listed),
    "seed": (_whole(0, 2**64 - 1), f"a whole number within 0..{2**64 - 1}"),
    "logprobs": _FLAG,
    "top_logprobs": _COUNT,
    "prompt_lookup_num_tokens": (_whole(0, 64), "a whole number within 0..64"),
    "max_matching_ngram_size": (_whole(1, 64), "a whole number within 1..64"),
    "prefill_chunk_size": (_whole(1), "a whole number, at least 1"),
    "timeout": _ABOVE,
    "assistant_model": (lambda v: hasattr(v, "generates"), "a model: llmc.load(path)"),
    "num_assistant_tokens": (_whole(1, 64), "a whole number within 1..64"),
    "json_schema": (_is_schema, "a JSON schema: a mapping, or its text"),
    "regex": (lambda v: isinstance(v, str), "a text"),
    "grammar": (lambda v: isinstance(v, str), "a text"),
    "adapter": (lambda v: isinstance(v, str) and bool(v), "a name"),
}
