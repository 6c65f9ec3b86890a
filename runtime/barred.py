"""Tokens that must not come, or must: by what came before them, or by their place. What options say, and on scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llmc.runtime.generation_options import GenerationOptions

Array = np.ndarray[Any, np.dtype[Any]]
Sequences = tuple[tuple[int, ...], ...]
Places = tuple[tuple[int, int], ...]  # numbers of new tokens, 0 is the first, and tokens


@dataclass(frozen=True)
class Barred:
    """Those of one text.

    Args:
        ngram: so many tokens in a row come once and not again; 0: any number of times.
        sequences: that never come.
        forced: the new token at such a place is one of those given for it.
        without: the new token at such a place is none of those given for it.
    """

    ngram: int
    sequences: Sequences
    forced: Places
    without: Places

    @staticmethod
    def of(
        options: GenerationOptions, stops: Collection[int], prompt: int, most: int, source: Sequence[int] = ()
    ) -> Barred:
        """What the options say, as transformers means it.

        Args:
            stops: tokens that end a text, which are not barred alone.
            prompt: tokens before the first new one.
            most: new tokens that there may be.
            source: what an encoder was given, or the prompt of a model without one.
        """
        first, last, begin = (
            options.forced_bos_token_id,
            options.forced_eos_token_id,
            options.begin_suppress_tokens,
        )
        words = [
            tuple(word) for word in options.bad_words_ids or () if tuple(word) not in {(s,) for s in stops}
        ]
        held = [*words, *_ngrams(source, options.encoder_no_repeat_ngram_size or 0)]
        forced = [(0, first)] if first is not None and prompt == 1 else []
        place, never = 1 if forced else 0, set(options.suppress_tokens or ())
        if last and most == 1:  # of two that are forced to one place the later rule holds
            forced = []
        return Barred(
            options.no_repeat_ngram_size or 0,
            tuple(dict.fromkeys(held)),
            (*forced, *((most - 1, token) for token in last or () if token not in never)),
            tuple((place, token) for token in begin or ()),
        )

    def on(self, scores: Array, ids: Sequence[int]) -> None:
        """Bar what may not follow `ids`; the array is changed."""
        before = self.ngram - 1
        for i in range(len(ids) - before) if self.ngram else ():
            if not before or tuple(ids[-before:]) == tuple(ids[i : i + before]):
                scores[ids[i + before]] = -np.inf
        for sequence in self.sequences:
            rest = len(sequence) - 1
            if not rest or tuple(ids[-rest:]) == sequence[:-1]:
                scores[sequence[-1]] = -np.inf

    def at(self, scores: Array, index: int) -> None:
        """Keep what the new token `index` may be; the array is changed."""
        if forced := [token for place, token in self.forced if place == index]:
            scores[:] = -np.inf
            scores[forced] = 0
        scores[[token for place, token in self.without if place == index]] = -np.inf

    @property
    def flat(self) -> list[int]:
        """The sequences as llmc.h has them, before each its length."""
        return [number for sequence in self.sequences for number in (len(sequence), *sequence)]


def _ngrams(ids: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[i : i + size]) for i in range(len(ids) - size + 1) if size)
