"""What a folder says of generating text: which tokens begin and end one, how tokens are chosen, how a chat is written.

The rules are transformers': generation_config.json goes before config.json, chat_template.jinja before the template in
tokenizer_config.json. An option that llmc does not know, and that would change answers, is warned about by its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import chat_template, speech_config
from llmc.compiler.frontends.json_file import read_object
from llmc.errors import LlmcError, LlmcWarning

FILE = "generation_config.json"


@dataclass(frozen=True)
class Generation:
    """What the artifact needs to know.

    Args:
        facts: the manifest's field `generation` (runtime/format.md).
        template: the text of the chat template; None if the folder has none.
    """

    facts: Mapping[str, Any]
    template: str | None = None


def read(
    root: Path,
    config: Mapping[str, Any],
    *,
    function: str,
    tokens: str,
    logits: str,
    vocabulary: int,
    max_length: int,
    keep: str | None = None,
    length: str | None = None,
    encoder: Mapping[str, str] | None = None,
    speech: bool = False,
) -> Generation:
    """What the files of a model's folder say.

    Args:
        config: what config.json says.
        function, tokens, keep, logits: names of the function, its inputs and its output.
        vocabulary: how many tokens have a logit.
        max_length: the most tokens of a sequence.
        length: the dim along which the states grow; None if they do not.
        encoder: of an encoder-decoder the `function` that reads a source, and its input, `source`.
        speech: whether a source is speech.

    Raises:
        LlmcError: a file is damaged, or a setting is of the wrong kind.
    """
    file = root / FILE
    stated = stated_by(root, config)
    special = Tokens(stated, config, vocabulary, str(file if file.exists() else root / "config.json"))
    facts = {
        "function": function,
        "tokens": tokens,
        "keep": keep,
        "logits": logits,
        "length": length,
        "vocabulary": vocabulary,
        "max_length": max_length,
        "bos": special.one("bos_token_id"),
        "eos": special.several("eos_token_id"),
        "pad": special.one("pad_token_id"),
        "defaults": options(
            {k: v for k, v in stated.items() if not (speech and k in speech_config.SETTINGS)},
            str(file),
            {**KINDS, **_OF_SOURCES} if encoder else KINDS,
        ),
    }
    if speech:
        facts["speech"] = speech_config.facts(stated, config, vocabulary, str(file))
    if encoder is not None:
        facts["encoder"] = {**encoder, "start": special.start()}
    template = chat_template.read(root)
    if template is not None:
        named = {name: special.one(f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
        facts["chat"] = {"file": chat_template.FILE, "tokens": chat_template.tokens(root, named)}
    return Generation(facts, template)


def stated_by(root: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a folder; those of an older one are among others in its config.json.

    Raises:
        LlmcError: the file is damaged.
    """
    file = root / FILE
    if file.exists():
        return read_object(file)
    known = {*KINDS, *_OF_SOURCES} if config.get("is_encoder_decoder") else set()
    return {key: value for key, value in config.items() if key in known}


class Tokens:
    """Numbers of special tokens: those that the generation config leaves out are the model's.

    A number beyond the vocabulary, as small test models have them, is that of a token that never comes.
    """

    def __init__(
        self, stated: Mapping[str, Any], config: Mapping[str, Any], vocabulary: int, at: str
    ) -> None:
        text = config.get("text_config")
        self._places = [stated, config, text if isinstance(text, dict) else {}]
        self._vocabulary, self._at = vocabulary, at

    def several(self, key: str) -> list[int]:
        """All tokens of that name.

        Raises:
            LlmcError: what is there is no number of a token, and no list of them.
        """
        value: Any = next((place[key] for place in self._places if place.get(key) is not None), [])
        ids = value if isinstance(value, list) else [value]
        for number in ids:
            if type(number) is not int:
                raise LlmcError(f"{key} is not the number of a token", at=self._at, found=repr(value)[:60])
        return [number for number in dict.fromkeys(ids) if 0 <= number < self._vocabulary]

    def one(self, key: str) -> int | None:
        """The first of them."""
        return next(iter(self.several(key)), None)

    def start(self) -> int | None:
        """What a decoder of an encoder's begins with."""
        found = self.one("decoder_start_token_id")
        return self.one("bos_token_id") if found is None else found


def options(
    stated: Mapping[str, Any], at: str, kinds: Mapping[str, tuple[str, Callable[[Any], bool]]] | None = None
) -> dict[str, Any]:
    """The options among the settings of a generation config, by transformers' names.

    Args:
        kinds: those that there are, and what each must be; by default `KINDS`.

    Raises:
        LlmcError: one is of the wrong kind; `at` is the file.
    """
    found = {}
    unknown = []
    kinds = KINDS if kinds is None else kinds
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
    if unknown:
        told = f"{at}: llmc does not know {', '.join(unknown)}: its texts may differ from transformers'"
        warnings.warn(LlmcWarning(told), stacklevel=2)
    return found


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(t, str) for t in value))


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
# the options that the runtime has (runtime/generation_options.py), and what each must be
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "do_sample": ("true or false", _is_flag),
    "temperature": _NUMBER,
    "top_k": _WHOLE,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "typical_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "max_new_tokens": _WHOLE,
    "min_new_tokens": _WHOLE,
    "max_length": _WHOLE,
    "min_length": _WHOLE,
    "suppress_tokens": ("a list of tokens", _is_ids),
    "begin_suppress_tokens": ("a list of tokens", _is_ids),
    "no_repeat_ngram_size": _WHOLE,
    "bad_words_ids": ("a list of lists of tokens", _are_sequences),
    "forced_bos_token_id": _WHOLE,
    "forced_eos_token_id": ("a token or a list of tokens", _is_token),
    "num_beams": _WHOLE,
    "length_penalty": _NUMBER,
    "early_stopping": ('true, false or "never"', _is_stopping),
    "stop_strings": ("a text or a list of texts", _is_texts),
}
# those that look at the source
_OF_SOURCES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {"encoder_no_repeat_ngram_size": _WHOLE}
# what others must be to change nothing
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
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
        "renormalize_logits",
        "return_dict_in_generate",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "use_mtp",
    }
)
