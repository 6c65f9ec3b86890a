"""What `llmc eval` counts of a classifier's answers, in memory that does not grow with the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BINS = 15  # of confidences, as in Guo et al. 2017
TOP = 5  # of the likeliest classes
FEW = 30  # rows below which an interval that takes sums for normal is no guide
MOST = 100  # slices


@dataclass
class Answers:
    """A model's answers beside the labels: rows of each class, and of each bin of confidence.

    Args:
        count: of classes.
        labelled, answered, right: rows that are of a class, were taken for it, and both.
        sure, hits, binned: of each bin of confidence the sum of confidences, right answers, and rows.
    """

    count: int
    top: int = 0

    def __post_init__(self) -> None:
        self.labelled, self.answered, self.right = (np.zeros(self.count, np.int64) for _ in range(3))
        self.sure = np.zeros(BINS)
        self.hits, self.binned = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)

    def add(self, logits: Array, truth: Array) -> Array:
        """Count a batch `[rows, classes]`; which answers are right."""
        answers = logits.argmax(-1)
        right: Array = answers == truth
        for counts, found in ((self.labelled, truth), (self.answered, answers), (self.right, truth[right])):
            counts += np.bincount(found, minlength=self.count)
        confidence = confidences(logits)
        place = bin_of(confidence)
        self.sure += np.bincount(place, confidence, BINS)
        self.hits += np.bincount(place[right], minlength=BINS)
        self.binned += np.bincount(place, minlength=BINS)
        own = logits[np.arange(len(truth)), truth]
        self.top += int(((logits > own[:, None]).sum(-1) < TOP).sum())
        return right

    @property
    def precision(self) -> Array:
        """Of each class the share of answers that are right; 0 where there are none, and so below."""
        return _shares(self.right, self.answered)

    @property
    def recall(self) -> Array:
        """Of each class the share of its rows that are found."""
        return _shares(self.right, self.labelled)

    @property
    def f1(self) -> Array:
        """The harmonic mean of both."""
        return _shares(2 * self.right, self.labelled + self.answered)

    @property
    def seen(self) -> Array:
        """The classes that a label or an answer names."""
        return np.flatnonzero(self.labelled + self.answered)

    @property
    def macro_f1(self) -> float:
        """The mean over classes that a label or an answer names, each of the same weight."""
        return float(self.f1[self.seen].mean())

    @property
    def calibration_error(self) -> float:
        """The expected calibration error (Guo et al. 2017): over 15 equal bins of the confidence the mean distance of
        accuracy and mean confidence, weighted by rows."""
        return float(np.abs(self.hits - self.sure).sum() / self.binned.sum())


def confidences(logits: Array) -> Array:
    """The largest probability of each row."""
    x = logits.astype(np.float64)
    return np.asarray(1 / np.exp(x - x.max(-1, keepdims=True)).sum(-1))


def bin_of(confidence: Array) -> Array:
    """The bin ((m - 1) / 15, m / 15] of each, from 0."""
    return np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidence) - 1, 0, BINS - 1)


def _shares(part: Array, whole: Array) -> Array:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


@dataclass
class Tally:
    """Rows of the data or of a slice: how many are right, and equal to the baseline's."""

    rows: int = 0
    right: int = 0
    other_right: int = 0
    only: int = 0
    other_only: int = 0
    equal: int = 0
    cosines: float = 0.0
    lowest: float = 1.0

    def answer(self, equal: Array | None, right: Array | None, other: Array | None) -> None:
        """Count a batch: which answers are the baseline's, which are right, which of the baseline's."""
        self.equal += 0 if equal is None else int(equal.sum())
        if right is None:
            return
        self.right += int(right.sum())
        if other is not None:
            self.other_right += int(other.sum())
            self.only += int((right & ~other).sum())
            self.other_only += int((other & ~right).sum())

    def compare(self, cosines: Array) -> None:
        """Count a batch of embeddings."""
        self.cosines += float(cosines.sum())
        self.lowest = min(self.lowest, float(cosines.min(initial=1.0)))


def paired(only: int, other_only: int, n: int) -> tuple[float, tuple[float, float]]:
    """The difference of two accuracies on the same n rows and its 95 % interval (Wald, paired).

    Args:
        only, other_only: rows that the first alone, and the second alone, has right.
    """
    difference = (only - other_only) / n
    deviation = math.sqrt(max(0.0, (only + other_only) / n - difference**2) / n)
    return difference, (difference - 1.96 * deviation, difference + 1.96 * deviation)


def mcnemar(only: int, other_only: int) -> float:
    """Exact two-sided p of McNemar's test: a fair coin on each row that just one has right."""
    n, k = only + other_only, min(only, other_only)
    tail = (
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))
        for i in range(k + 1)
    )
    return min(1.0, 2 * sum(tail))


@dataclass
class Figures:
    """What holds of all rows, and of those of a slice. None where there is no such figure.

    Args:
        accuracy, baseline_accuracy: shares of right answers.
        agreement: share of equal answers.
        difference: accuracy minus the baseline's, on the same rows, with its 95 % interval.
        cosine_mean, cosine_min: between the embeddings.
    """

    rows: int = 0
    accuracy: float | None = None
    baseline_accuracy: float | None = None
    agreement: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None

    @staticmethod
    def of(tally: Tally, labelled: bool, compared: bool, embedded: bool) -> Figures:
        """The figures of what was counted."""
        found, n = Figures(tally.rows), tally.rows
        if embedded:
            if compared:
                found.cosine_mean, found.cosine_min = tally.cosines / n, tally.lowest
            return found
        found.accuracy = tally.right / n if labelled else None
        found.agreement = tally.equal / n if compared else None
        if labelled and compared:
            found.baseline_accuracy = tally.other_right / n
            found.difference, found.interval = paired(tally.only, tally.other_only, n)
        return found


@dataclass
class Slices:
    """A tally for each value of a column, up to `MOST`; `why` says why there are none."""

    column: str
    tallies: dict[str | None, Tally] = field(default_factory=dict)
    why: str = ""

    def of(self, values: Sequence[str | None]) -> list[tuple[Tally, Array]]:
        """Each value's tally, and which rows of a batch are its own, already counted."""
        if self.why:
            return []
        found = []
        for value in dict.fromkeys(values):
            mine = np.array([other == value for other in values])
            tally = self.tallies.setdefault(value, Tally())
            tally.rows += int(mine.sum())
            found.append((tally, mine))
        if len(self.tallies) > MOST:
            self.why = f"column {self.column!r} has more than {MOST} values"
            self.tallies.clear()
            return []
        return found

    def figures(self, labelled: bool, compared: bool, embedded: bool) -> list[tuple[str | None, Figures]]:
        """In the order of the values, rows without one last."""
        order = sorted(self.tallies, key=lambda value: (value is None, value or ""))
        return [(v, Figures.of(self.tallies[v], labelled, compared, embedded)) for v in order]


def of_classes(own: Answers, other: Answers | None, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Each class that a label or an answer names: rows, precision, recall and F1, and the baseline's."""
    seen = own.seen if other is None else np.union1d(own.seen, other.seen)
    found: list[Mapping[str, Any]] = []
    for i in map(int, seen):
        facts: dict[str, Any] = {"class": names[i] if i < len(names) else str(i)}
        facts["rows"] = int(own.labelled[i])
        for prefix, answers in (("", own), ("baseline_", other)):
            if answers is not None:
                shares = (answers.precision[i], answers.recall[i], answers.f1[i])
                facts |= {
                    prefix + n: float(v) for n, v in zip(("precision", "recall", "f1"), shares, strict=True)
                }
        found.append(facts)
    return found
