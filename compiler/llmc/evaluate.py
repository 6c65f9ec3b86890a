"""How good an artifact is on data: accuracy, agreement with a baseline, and the paired difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from llmc.dataset import Row, column_names, label_index, read_files, read_rows
from llmc.errors import LlmcError
from llmc.predictors import EMBEDDING, MEDIA, OUTPUTS, of_artifact, of_baseline, rows_of_a_run
from llmc.runtime.encoder import BadTexts

Array = np.ndarray[Any, Any]
BUFFER, TOP = 256, 5  # rows that are sorted by length together; of the likeliest classes


@dataclass
class Evaluation:
    """What was counted. `baseline_*` and what follows is None without a baseline, accuracies without labels.

    Args:
        accuracy, baseline_accuracy: shares of right answers.
        top5, baseline_top5: of images and sounds, shares of which the label is among the five likeliest.
        agreement: share of equal answers.
        difference: accuracy minus the baseline's, on the same rows, with its 95 % interval.
        p_value: of the exact McNemar test: how likely are the rows where one alone is right, were both as good?
        cosine_mean, cosine_min: between the embeddings.
        cut, baseline_cut: rows whose text was longer than the model takes and was cut.
    """

    task: str
    rows: int = 0
    accuracy: float | None = None
    baseline_accuracy: float | None = None
    top5: float | None = None
    baseline_top5: float | None = None
    agreement: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    cut: int = 0
    baseline_cut: int = 0
    broken: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values; None where there is none."""
        return dict(vars(self))


@dataclass(frozen=True)
class Limits:
    """What must hold. `max_drop` is a share (0.01: one point), held against the difference itself."""

    max_drop: float | None = None
    min_accuracy: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None


def evaluate(
    artifact: str | Path,
    data: str | Path,
    baseline: str | Path | None = None,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    limits: Limits | None = None,
    threads: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Evaluation:
    """Run an artifact, and a baseline on the same rows, over a file of texts in constant memory.

    Args:
        data: .jsonl, .csv, .tsv or .txt; `text`, `pair`, `label` name its columns, guessed otherwise. Of images and
            sounds a folder of folders by class, too.
        baseline: another artifact, or a Hugging Face folder, which PyTorch runs.
        limits: thresholds; those that are broken are listed in `Evaluation.broken`.
        limit: rows to stop after.
        strict: whether a text longer than the artifact takes is an error; it is cut otherwise, and counted.
        progress: called with the number of rows done.

    Raises:
        LlmcError: the data, a label, the artifact or the baseline is not usable, or a limit has no figure.
    """
    import llmc

    with llmc.load(artifact, threads=threads) as model:
        _want_task(model, str(artifact))
        _want_classes(model, str(artifact))
        kind = MEDIA.get(model.task)
        found_rows = (
            read_files(Path(data), kind, text, label) if kind else read_rows(Path(data), text, pair, label)
        )
        rows: Iterator[Row] = islice(found_rows, limit)
        first = next(rows)  # data without a row is an error of `read_rows`
        if baseline is None:
            _want_measure(model.task, first, Path(data))
        rows = chain((first,), rows)
        counts = _Counts(model.task, model.labels or (), str(data))
        other = None if baseline is None else of_baseline(baseline, model, threads)
        own = of_artifact(model, strict)
        for batch in _batches(rows, rows_of_a_run(model)):
            _count(counts, batch, own, other)
            progress(counts.rows)
        found = counts.result()
        found.cut, found.baseline_cut = own.cut(), other.cut() if other is not None else 0
    return _judged(found, limits or Limits())


def _want_task(model: Any, at: str) -> None:
    if model.task not in OUTPUTS:
        hint = f"it measures {', '.join(OUTPUTS)}"
        raise LlmcError(f"eval knows no measure for the task {model.task}", at=at, hint=hint)


def _count(counts: _Counts, batch: Sequence[Row], own: Any, other: Any) -> None:
    """Run a batch, and count what came of it; a text that is none is named with its line."""
    texts = _texts(batch)
    try:
        counts.add(batch, own(texts), None if other is None else other(texts))
    except BadTexts as error:
        row, reason = next(iter(error.rows.items()))
        raise LlmcError(f"a text {reason}", at=f"{counts.data}, line {batch[row].line}") from None


def _want_measure(task: str, first: Row, data: Path) -> None:
    """Without a baseline there is accuracy alone, which needs labels."""
    if task == EMBEDDING:
        raise LlmcError(
            "there is nothing to compare the embeddings with",
            at=str(data),
            hint="give an artifact or a model folder: --baseline MODEL",
        )
    if first.label is None:
        columns = column_names(data)
        raise LlmcError(
            "there are no labels to hold the answers to",
            at=str(data),
            found=f"columns {', '.join(columns)}" if columns else "a text a line",
            hint="name their column, --label-column NAME, or give a --baseline to agree with",
        )


def _want_classes(model: Any, at: str) -> None:
    """Accuracy is of labels of which one is right."""
    scores = getattr(model, "scores", None) or "softmax"
    if model.task != EMBEDDING and scores != "softmax":
        kind = "labels that may hold together" if scores == "sigmoid" else "numbers, not classes"
        raise LlmcError(f"eval knows no measure for a model that gives {kind}", at=at)


def _batches(rows: Iterator[Row], count: int) -> Iterator[list[Row]]:
    """Batches of texts of like length, so that little is padded."""
    while buffer := list(islice(rows, BUFFER)):
        buffer.sort(key=lambda r: len(r.text) + len(r.pair or ""))
        yield from (buffer[i : i + count] for i in range(0, len(buffer), count))


def _texts(batch: Sequence[Row]) -> list[Any]:
    return [r.text if r.pair is None else (r.text, r.pair) for r in batch]


# --- counting


class _Counts:
    """Running sums over the batches."""

    def __init__(self, task: str, labels: Sequence[str], data: str) -> None:
        self.task, self.labels, self.data = task, labels, data
        self.rows = self.right = self.other_right = self.only = self.other_only = self.equal = 0
        self.top = self.other_top = 0
        self.cosines, self.lowest, self.labelled, self.compared = 0.0, 1.0, False, False

    def add(self, batch: Sequence[Row], own: Array, other: Array | None) -> None:
        """Count one batch of outputs."""
        self.rows += len(batch)
        self.compared, self.classes = other is not None, own.shape[-1]
        if other is not None and own.shape != other.shape:
            shapes = f"{list(other.shape[1:])}, not {list(own.shape[1:])}"
            raise LlmcError("the baseline's outputs have another size", found=shapes)
        self._want_finite(batch, own, "the artifact's")
        if other is not None:
            self._want_finite(batch, other, "the baseline's")
        if self.task == EMBEDDING:
            self._add_cosines(own, other)
            return
        answers = own.argmax(-1)
        others = None if other is None else other.argmax(-1)
        if others is not None:
            self.equal += int((answers == others).sum())
        if batch[0].label is not None:
            truth = self._add_labels(batch, answers, others, own.shape[-1])
            self.top += _among(own, truth)
            self.other_top += 0 if other is None else _among(other, truth)

    def _want_finite(self, batch: Sequence[Row], outputs: Array, whose: str) -> None:
        """A measure of NaN would be no measure: it has a largest value, and is below no limit."""
        bad = np.flatnonzero(~np.isfinite(outputs).reshape(len(batch), -1).all(1))
        if bad.size:
            raise LlmcError(
                f"{whose} outputs are not finite numbers",
                at=f"{self.data}, line {batch[int(bad[0])].line}",
                hint="fp16 overflows beyond 65504; are the weights damaged?",
            )

    def _add_labels(self, batch: Sequence[Row], answers: Array, others: Array | None, count: int) -> Array:
        truth = [label_index(f"{self.data}, line {r.line}", r.label, self.labels, count) for r in batch]
        right, self.labelled = answers == truth, True
        self.right += int(right.sum())
        if others is not None:
            other = others == truth
            self.other_right += int(other.sum())
            self.only += int((right & ~other).sum())
            self.other_only += int((other & ~right).sum())
        return np.asarray(truth)

    def _add_cosines(self, own: Array, other: Array | None) -> None:
        if other is None:
            return
        a, b = own.astype(np.float64), other.astype(np.float64)
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosines = (a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
        self.cosines += float(cosines.sum())
        self.lowest = min(self.lowest, float(cosines.min()))

    def result(self) -> Evaluation:
        """The figures."""
        found, n = Evaluation(self.task, self.rows), self.rows
        if self.task == EMBEDDING:
            if self.compared:
                found.cosine_mean, found.cosine_min = self.cosines / n, self.lowest
            return found
        found.accuracy = self.right / n if self.labelled else None
        listed = self.labelled and self.task in MEDIA and self.classes > TOP
        found.top5 = self.top / n if listed else None
        if not self.compared:
            return found
        found.agreement = self.equal / n
        if self.labelled:
            found.baseline_accuracy = self.other_right / n
            found.baseline_top5 = self.other_top / n if listed else None
            found.difference, found.interval = paired(self.only, self.other_only, n)
            found.p_value = mcnemar(self.only, self.other_only)
        return found


def _among(outputs: Array, truth: Array) -> int:
    """Rows whose right class is among the likeliest."""
    right = outputs[np.arange(len(truth)), truth]
    return int(((outputs > right[:, None]).sum(-1) < TOP).sum())


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


def _judged(found: Evaluation, limits: Limits) -> Evaluation:
    """List the limits that do not hold."""
    drop = None if found.difference is None else -found.difference
    checks: Mapping[str, tuple[float | None, float | None, bool]] = {
        "drop in accuracy": (drop, limits.max_drop, True),
        "accuracy": (found.accuracy, limits.min_accuracy, False),
        "agreement": (found.agreement, limits.min_agreement, False),
        "mean cosine": (found.cosine_mean, limits.min_cosine, False),
    }
    for name, (value, limit, upper) in checks.items():
        if limit is None:
            continue
        if value is None:
            raise LlmcError(
                f"there is no {name} to hold to a limit",
                found=f"task {found.task}, {'labels' if found.accuracy is not None else 'no labels'}",
                hint="accuracy needs labels, agreement and cosine need a --baseline",
            )
        if not (value <= limit + 1e-12 if upper else value >= limit - 1e-12):
            found.broken.append(f"{name} is {value:.4g}, the limit {limit:g}")
    return found
