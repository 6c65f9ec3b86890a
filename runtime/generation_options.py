"""What a text may be asked for: options by transformers' names, checked, with what the model says by default.

`logit_bias`, `presence_penalty`, `frequency_penalty`, `seed`, `logprobs`, `top_logprobs` and `stop` are OpenAI's names.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from ctypes import c_int64, c_uint64
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmc.errors import LlmcError, LlmcWarning
from llmc.runtime.arrays import check_names
from llmc.runtime.barred import Barred, Places
from llmc.runtime.generation_checks import CHECKS
from llmc.runtime.generation_entry import GenerationEntry
from llmc.runtime.generation_structs import Bias, ChoiceOptions, GenerateOptions, Place

USUAL_NEW_TOKENS = 256  # where neither caller nor model says, as transformers' pipeline has it
USUAL_GUESSES = 5  # of an assistant
USUAL_TOP_K = 50  # of transformers, where tokens are drawn
_TINY = 1e-300  # top_p = 0 keeps one token; to C 0 says that the option is not used


@dataclass(frozen=True)
class GenerationOptions:
    """Options of one text. None: not said."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: Sequence[int] | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    stop_strings: Sequence[str] | None = None
    eos_token_id: Sequence[int] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    prefill_chunk_size: int | None = None
    timeout: float | None = None
    assistant_model: Any = None
    num_assistant_tokens: int | None = None
    json_schema: Any = None
    regex: str | None = None
    grammar: str | None = None
    adapter: str | None = None

    @property
    def is_held(self) -> bool:
        """To a schema, an expression or a grammar."""
        return any(getattr(self, name) is not None for name in CONSTRAINTS)

    def new_tokens(self, prompt: int) -> int:
        """How many at most, behind so many of the prompt.

        Raises:
            LlmcError: max_length leaves no room.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return USUAL_NEW_TOKENS
        if self.max_length <= prompt:
            raise LlmcError(
                f"max_length is {self.max_length}, the prompt alone has {prompt} tokens",
                hint="max_new_tokens counts new tokens only",
            )
        return self.max_length - prompt

    def least_tokens(self, prompt: int) -> int:
        """How many at least."""
        return max(self.min_new_tokens or 0, (self.min_length or 0) - prompt, 0)

    def stops(self, entry: GenerationEntry) -> Sequence[int]:
        """The tokens that end a text."""
        return entry.eos if self.eos_token_id is None else self.eos_token_id

    def by_special(self, entry: GenerationEntry, special: Mapping[str, int]) -> GenerationOptions:
        """Stop strings that are special tokens, which texts do not show, end a text as tokens too."""
        found = [special[text] for text in self.stop_strings or () if text in special]
        stops = [token for token in found if token < entry.vocabulary]
        return replace(self, eos_token_id=[*self.stops(entry), *stops]) if stops else self

    @property
    def guesses(self) -> int:
        """Tokens that are guessed at a time, by an assistant or from the text."""
        if self.assistant_model is None:
            return self.prompt_lookup_num_tokens or 0
        return self.num_assistant_tokens or USUAL_GUESSES

    def barred(self, entry: GenerationEntry, prompt: Sequence[int], source: Sequence[int] = ()) -> Barred:
        """What must not come behind a prompt, or must; to transformers a prompt without an encoder is a source."""
        length = len(prompt)
        most = min(self.new_tokens(length), entry.max_length - length if entry.length else 2**62)
        return Barred.of(self, self.stops(entry), length, most, source if entry.encoder else prompt)

    def to_c(
        self, entry: GenerationEntry, prompt: Sequence[int], source: Sequence[int] = ()
    ) -> GenerateOptions:
        """As llmc.h has them, for a prompt, of an encoder-decoder behind this source."""
        biases = {**(self.logit_bias or {}), **dict.fromkeys(self.suppress_tokens or (), -math.inf)}
        stops, barred = self.stops(entry), self.barred(entry, prompt, source)
        top_k = USUAL_TOP_K if self.top_k is None else self.top_k
        choice = ChoiceOptions(
            bias=(Bias * (len(biases) or 1))(*(Bias(token, bias) for token, bias in biases.items())),
            n_bias=len(biases),
            repetition_penalty=self.repetition_penalty or 0,
            presence_penalty=self.presence_penalty or 0,
            frequency_penalty=self.frequency_penalty or 0,
            stop=(c_int64 * (len(stops) or 1))(*stops),
            n_stop=len(stops),
            min_new_tokens=self.least_tokens(len(prompt)),
            do_sample=bool(self.do_sample),
            temperature=self.temperature or 0,
            top_k=top_k,
            top_p=_TINY if self.top_p == 0 else self.top_p or 0,
            min_p=self.min_p or 0,
            typical_p=self.typical_p or 0,
            seed=c_uint64(self.seed or 0),
            no_repeat_ngram=barred.ngram,
            barred=(c_int64 * (len(barred.flat) or 1))(*barred.flat),
            n_barred=len(barred.flat),
            forced=_places(barred.forced),
            n_forced=len(barred.forced),
            without=_places(barred.without),
            n_without=len(barred.without),
        )
        return GenerateOptions(
            function=entry.function.encode(),
            tokens=entry.tokens.encode(),
            keep=entry.keep.encode() if entry.keep else None,
            logits=entry.logits.encode(),
            choice=choice,
            max_new_tokens=self.new_tokens(len(prompt)),
            chunk=self.prefill_chunk_size or 0,
            lookup=self.guesses,
            lookup_ngram=self.max_matching_ngram_size or 0,
            logprobs=bool(self.logprobs or self.top_logprobs),
            top_logprobs=self.top_logprobs or 0,
            timeout=self.timeout or 0,
        )


def _places(places: Places) -> Any:
    return (Place * (len(places) or 1))(*(Place(index, token) for index, token in places))


def options_of(entry: GenerationEntry, given: Mapping[str, Any]) -> GenerationOptions:
    """The caller's options over the model's, checked; a seed is found where tokens are drawn.

    Raises:
        LlmcError: there is no such option, or its value makes no sense.
    """
    asked = {k: _plain(v) for k, v in plain_names(given).items() if v is not None}
    check_names("option", asked, CHECKS)
    own = dict(entry.defaults)
    if "max_length" in asked and "max_new_tokens" not in asked:
        own.pop("max_new_tokens", None)
    if not asked.get("do_sample", own.get("do_sample")):
        own = {k: v for k, v in own.items() if k not in _OF_DRAWING}  # whatever they are, they have no effect
    found = {k: _checked(k, v) for k, v in {**own, **asked}.items() if k in CHECKS}
    options = GenerationOptions(**found)
    _want_tokens(options, entry.vocabulary)
    _want_forced(options)
    _want_one_guesser(options, asked)
    if options.do_sample:
        return options if options.seed is not None else replace(options, seed=secrets.randbits(64))
    if idle := [name for name in _OF_DRAWING if name in asked]:
        told = f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect: do_sample is not set"
        warnings.warn(LlmcWarning(told), stacklevel=4)
    return options


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python has it."""
    return value.item() if isinstance(value, np.generic) else value


def plain_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """With `stop_strings` for `stop`, which is the same.

    Raises:
        LlmcError: both are there.
    """
    if given.get("stop") is not None and given.get("stop_strings") is not None:
        raise LlmcError("stop and stop_strings are the same", hint="give one of them")
    return {
        ("stop_strings" if k == "stop" else k): v for k, v in given.items() if k != "stop" or v is not None
    }


def _want_one_guesser(options: GenerationOptions, asked: Mapping[str, Any]) -> None:
    if options.assistant_model is not None and options.prompt_lookup_num_tokens:
        raise LlmcError(
            "assistant_model and prompt_lookup_num_tokens cannot go together", hint="one of them guesses"
        )
    if options.assistant_model is None and "num_assistant_tokens" in asked:
        raise LlmcError("num_assistant_tokens needs an assistant_model")


def _checked(name: str, value: Any) -> Any:
    fits, must, *made = CHECKS[name]
    if not fits(value):
        hint = "do_sample=False takes the likeliest token" if name == "temperature" else None
        raise LlmcError(f"{name} is {value!r:.60}, must be {must}", hint=hint)
    return made[0](value) if made else value


def _want_tokens(options: GenerationOptions, vocabulary: int) -> None:
    """Refuse numbers that are no token's.

    Raises:
        LlmcError: there is one.
    """
    named = {name: _flat(getattr(options, name)) for name in _OF_TOKENS}
    for name, ids in named.items():
        if beyond := [token for token in ids if token >= vocabulary]:
            raise LlmcError(f"{name}: {beyond[0]} is no token, must be within 0..{vocabulary - 1}")


def _flat(value: Any) -> list[int]:
    if value is None or isinstance(value, int):
        return [] if value is None else [value]
    return [token for part in value for token in _flat(part)]


def _want_forced(options: GenerationOptions) -> None:
    """Refuse what transformers refuses too: what must come, and must not.

    Raises:
        LlmcError: all tokens that are forced at a place are suppressed.
    """
    never = set(options.suppress_tokens or ())
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = _flat(getattr(options, name))
        if forced and never.issuperset(forced):
            raise LlmcError(f"{name} is {forced[0]}, which suppress_tokens has too", hint="leave one out")


OPTIONS = tuple(CHECKS)
CONSTRAINTS = ("json_schema", "regex", "grammar")  # of a text, one at most
ALONE = (*CONSTRAINTS, "assistant_model")  # of texts without beams
_OF_TOKENS = (
    *("logit_bias", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "eos_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)
_OF_DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
