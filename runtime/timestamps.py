"""Texts of speech with timestamps: which of them may come where, and how they cut a text into segments.

The rules are Whisper's, as transformers has them: timestamps come in pairs and never go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.runtime.scoring import log_softmax

Array = np.ndarray[Any, np.dtype[Any]]
PRECISION = 0.02  # seconds from a timestamp to the next


@dataclass(frozen=True)
class Timestamps:
    """Timestamps among the tokens.

    Args:
        first: the token of 0.00 s; all behind it are timestamps. The one before it says that there are none.
        end: the token that ends a text.
        latest: number of the latest timestamp that a text may begin with; None: any.
    """

    first: int
    end: int
    latest: int | None

    def on(self, scores: Array, made: Sequence[int]) -> None:
        """Bar what may not follow `made`; the array is changed."""
        scores[self.first - 1] = -np.inf
        marks = [token >= self.first for token in made]
        if marks and marks[-1]:
            if len(made) < 2 or marks[-2]:
                scores[self.first :] = -np.inf
            else:
                scores[: self.end] = -np.inf
        times = [token for token, mark in zip(made, marks, strict=True) if mark]
        if times:
            again = marks[-1] and not (len(made) < 2 or marks[-2])
            scores[self.first : times[-1] + (0 if again else 1)] = -np.inf
        if not made:
            scores[: self.first] = -np.inf
            if self.latest is not None:
                scores[self.first + self.latest + 1 :] = -np.inf
        self._prefer(scores)

    def _prefer(self, scores: Array) -> None:
        """Where all timestamps together are likelier than any word, one of them it is."""
        logs = log_softmax(scores)
        with np.errstate(divide="ignore"):
            times = np.log(np.exp(logs[self.first :]).sum())
        if times > logs[: self.first].max():
            scores[: self.first] = -np.inf

    def segments(
        self, ids: Sequence[int], frames: int, stride: int
    ) -> tuple[list[tuple[float, float, list[int]]], int]:
        """What a window's tokens say: (start, end, tokens) in seconds from its beginning, and the frames that are done.

        Args:
            frames: of the window that are sound.
            stride: frames from a timestamp to the next.
        """
        marks = [token >= self.first for token in ids]
        cuts = [i + 1 for i in range(len(ids) - 1) if marks[i] and marks[i + 1]]
        if not cuts:
            return [(0.0, self._last(ids, marks, frames, stride), list(ids))], frames
        alone = marks[-2:] == [False, True]
        if alone:
            cuts.append(len(ids))
        else:
            cuts[-1] += 1  # with the timestamp behind, which begins what is left out
        found, begin = [], 0
        for cut in cuts:
            part = list(ids[begin:cut])
            last = part[-2] if cut == cuts[-1] and not alone else part[-1]
            found.append(((part[0] - self.first) * PRECISION, (last - self.first) * PRECISION, part))
            begin = cut
        return found, frames if alone else (ids[begin - 2] - self.first) * stride

    def _last(self, ids: Sequence[int], marks: Sequence[bool], frames: int, stride: int) -> float:
        times = [token for token, mark in zip(ids, marks, strict=True) if mark]
        if times and times[-1] != self.first:
            return (times[-1] - self.first) * PRECISION
        return frames // stride * PRECISION
