"""What is added to scores or taken off them before a token is chosen; in NumPy, for beams. C has its own (choose.c)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.runtime.barred import Barred

if TYPE_CHECKING:
    from llmc.runtime.generation_options import GenerationOptions

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Penalties:
    """Those of one text; `prompt` is what it begins with."""

    prompt: Sequence[int]
    bias: Mapping[int, float]
    repetition: float
    presence: float
    frequency: float
    stops: Collection[int]
    least: int
    barred: Barred

    @staticmethod
    def of(
        options: GenerationOptions, prompt: Sequence[int], stops: Collection[int], barred: Barred
    ) -> Penalties:
        """Those of some options."""
        bias = {**(options.logit_bias or {}), **dict.fromkeys(options.suppress_tokens or (), -np.inf)}
        return Penalties(
            prompt,
            bias,
            options.repetition_penalty or 1.0,
            options.presence_penalty or 0.0,
            options.frequency_penalty or 0.0,
            stops,
            options.least_tokens(len(prompt)),
            barred,
        )

    def on(self, scores: Array, made: Sequence[int]) -> Array:
        """f32 scores of the token behind `made`, in the order of transformers; the array is changed."""
        for token, bias in self.bias.items():
            scores[token] += np.float32(bias)
        if self.repetition != 1:
            seen = np.unique([*self.prompt, *made])
            held, penalty = scores[seen], np.float32(self.repetition)
            scores[seen] = np.where(held < 0, held * penalty, held / penalty)
        if made and (self.presence or self.frequency):
            tokens, counts = np.unique(made, return_counts=True)
            less = np.float32(self.frequency) * counts.astype(np.float32) + np.float32(self.presence)
            scores[tokens] -= less
        self.barred.on(scores, [*self.prompt, *made])
        if len(made) < self.least:
            scores[list(self.stops)] = -np.inf
        self.barred.at(scores, len(made))
        return scores
