"""How good an artifact is on data: accuracy, agreement with a baseline, the paired difference; all of slices, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from llmc.dataset import Row, column_names, label_index, read_files, read_rows
from llmc.errors import LlmcError
from llmc.measures import TOP, Answers, Figures, Slices, Tally, mcnemar, of_classes, paired
from llmc.predictors import EMBEDDING, MEDIA, OUTPUTS, of_artifact, of_baseline, rows_of_a_run
from llmc.runtime.encoder import BadTexts

__all__ = ["Evaluation", "Limits", "evaluate", "mcnemar", "paired"]

Array = np.ndarray[Any, Any]
BUFFER = 256  # rows that are sorted by length together


@dataclass
class Evaluation(Figures):
    """What was counted. `baseline_*` and what follows is None without a baseline, accuracies without labels.

    Args:
        top5, baseline_top5: of images and sounds, shares of which the label is among the five likeliest.
        p_value: of the exact McNemar test: how likely are the rows where one alone is right, were both as good?
        macro_f1: mean over the classes that labels or answers name.
        calibration_error: the expected one, of 15 equal bins; see `measures.Answers`.
        classes: rows, precision, recall and F1 of each class.
        slice_by: the column whose values make slices; `slices` has the figures of each, `value` None where the column
            is empty, or is None where they were not measured.
        not_measured: what was not measured -> why.
        cut, baseline_cut: rows whose text was longer than the model takes and was cut.
    """

    task: str = ""
    top5: float | None = None
    baseline_top5: float | None = None
    p_value: float | None = None
    macro_f1: float | None = None
    baseline_macro_f1: float | None = None
    calibration_error: float | None = None
    baseline_calibration_error: float | None = None
    classes: list[Mapping[str, Any]] | None = None
    slice_by: str | None = None
    slices: list[Mapping[str, Any]] | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    baseline_cut: int = 0
    broken: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values; None where there is none."""
        return {"task": self.task, **vars(self)}


@dataclass(frozen=True)
class Limits:
    """What must hold. `max_drop` is a share (0.01: one point), held against the difference itself.

    Args:
        each_slice: of each slice, too.
        slice_rows: of slices with fewer rows nothing is asked.
    """

    max_drop: float | None = None
    min_accuracy: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    each_slice: bool = False
    slice_rows: int = 1


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
    slice_by: str | None = None,
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
        slice_by: a column; rows of each of its values are measured for themselves as well.
        progress: called with the number of rows done.

    Raises:
        LlmcError: the data, a label, the artifact or the baseline is not usable, or a limit has no figure.
    """
    import llmc

    limits = limits or Limits()
    if limits.each_slice and slice_by is None:
        raise _no_slices(None)
    with llmc.load(artifact, threads=threads) as model:
        _want_task(model, str(artifact))
        _want_classes(model, str(artifact))
        kind = MEDIA.get(model.task)
        found_rows = (
            read_files(Path(data), kind, text, label, slice_by)
            if kind
            else read_rows(Path(data), text, pair, label, group=slice_by)
        )
        rows: Iterator[Row] = islice(found_rows, limit)
        first = next(rows)  # data without a row is an error of `read_rows`
        if baseline is None:
            _want_measure(model.task, first, Path(data))
        rows = chain((first,), rows)
        counts = _Counts(model.task, model.labels or (), str(data), slice_by)
        other = None if baseline is None else of_baseline(baseline, model, threads)
        own = of_artifact(model, strict)
        for batch in _batches(rows, rows_of_a_run(model)):
            _count(counts, batch, own, other)
            progress(counts.rows)
        found = counts.result()
        found.cut, found.baseline_cut = own.cut(), other.cut() if other is not None else 0
    return _judged(found, limits)


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
        hint = "accuracy, F1 and calibration error are of classes of which one is right; `llmc compare` shows noise"
        raise LlmcError(f"eval knows no measure for a model that gives {kind}", at=at, hint=hint)


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

    def __init__(self, task: str, labels: Sequence[str], data: str, slice_by: str | None) -> None:
        self.task, self.labels, self.data = task, labels, data
        self.all, self.slices = Tally(), None if slice_by is None else Slices(slice_by)
        self.compared = False
        self.own: Answers | None = None  # where there are labels
        self.other: Answers | None = None

    @property
    def rows(self) -> int:
        return self.all.rows

    def add(self, batch: Sequence[Row], own: Array, other: Array | None) -> None:
        """Count one batch of outputs."""
        self.all.rows += len(batch)
        self.compared = other is not None
        if other is not None and own.shape != other.shape:
            shapes = f"{list(other.shape[1:])}, not {list(own.shape[1:])}"
            raise LlmcError("the baseline's outputs have another size", found=shapes)
        self._want_finite(batch, own, "the artifact's")
        if other is not None:
            self._want_finite(batch, other, "the baseline's")
        tallies = [(self.all, np.ones(len(batch), np.bool_))]
        tallies += [] if self.slices is None else self.slices.of([row.group for row in batch])
        if self.task == EMBEDDING:
            for tally, mine in tallies if other is not None else ():
                tally.compare(cosines(own[mine], np.asarray(other)[mine]))
            return
        equal = None if other is None else own.argmax(-1) == other.argmax(-1)
        right, others = self._add_labels(batch, own, other) if batch[0].label is not None else (None, None)
        for tally, mine in tallies:
            tally.answer(*(None if found is None else found[mine] for found in (equal, right, others)))

    def _want_finite(self, batch: Sequence[Row], outputs: Array, whose: str) -> None:
        """A measure of NaN would be no measure: it has a largest value, and is below no limit."""
        bad = np.flatnonzero(~np.isfinite(outputs).reshape(len(batch), -1).all(1))
        if bad.size:
            raise LlmcError(
                f"{whose} outputs are not finite numbers",
                at=f"{self.data}, line {batch[int(bad[0])].line}",
                hint="fp16 overflows beyond 65504; are the weights damaged?",
            )

    def _add_labels(
        self, batch: Sequence[Row], own: Array, other: Array | None
    ) -> tuple[Array, Array | None]:
        """Which answers are right, and which of the baseline's."""
        count = own.shape[-1]
        places = (f"{self.data}, line {row.line}" for row in batch)
        found = (label_index(at, r.label, self.labels, count) for at, r in zip(places, batch, strict=True))
        truth = np.fromiter(found, np.int64, len(batch))
        self.own = self.own or Answers(count)
        right = self.own.add(own, truth)
        if other is None:
            return right, None
        self.other = self.other or Answers(count)
        return right, self.other.add(other, truth)

    def result(self) -> Evaluation:
        """The figures."""
        embedded, labelled = self.task == EMBEDDING, self.own is not None
        figures = Figures.of(self.all, labelled, self.compared, embedded)
        found = Evaluation(**vars(figures), task=self.task)
        self._add_slices(found, labelled, embedded)
        what = "accuracy, F1 and calibration error"
        if embedded:
            found.not_measured[what] = "embeddings name no classes"
        elif self.own is None:
            found.not_measured[what] = "the data has no labels"
        else:
            self._add_classes(found, self.own, self.other)
        return found

    def _add_slices(self, found: Evaluation, labelled: bool, embedded: bool) -> None:
        if self.slices is None:
            return
        found.slice_by = self.slices.column
        if self.slices.why:
            found.not_measured["slices"] = self.slices.why
            return
        each = self.slices.figures(labelled, self.compared, embedded)
        found.slices = [{"value": value, **vars(figures)} for value, figures in each]

    def _add_classes(self, found: Evaluation, own: Answers, other: Answers | None) -> None:
        found.classes = of_classes(own, other, self.labels)
        found.macro_f1, found.calibration_error = own.macro_f1, own.calibration_error
        listed = self.task in MEDIA and own.count > TOP
        found.top5 = own.top / self.rows if listed else None
        if other is not None:
            found.baseline_macro_f1 = other.macro_f1
            found.baseline_calibration_error = other.calibration_error
            found.baseline_top5 = other.top / self.rows if listed else None
            found.p_value = mcnemar(self.all.only, self.all.other_only)


def cosines(a: Array, b: Array) -> Array:
    """Of each row."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny))


def _judged(found: Evaluation, limits: Limits) -> Evaluation:
    """List the limits that do not hold."""
    _judge(found, limits, vars(found), "")
    if not limits.each_slice:
        return found
    if found.slices is None:
        raise _no_slices(found.not_measured.get("slices"))
    for one in found.slices:
        if one["rows"] >= limits.slice_rows:
            name = "rows without one" if one["value"] is None else repr(one["value"])
            _judge(found, limits, one, f" of {found.slice_by} {name}")
    return found


def _no_slices(why: str | None) -> LlmcError:
    hint = "--slice-by FIELD names a column of kinds, languages, sources ..."
    return LlmcError("there are no slices to hold to the limits", found=why, hint=hint)


def _judge(found: Evaluation, limits: Limits, figures: Mapping[str, Any], of: str) -> None:
    difference = figures["difference"]
    checks: Mapping[str, tuple[float | None, float | None, bool]] = {
        "drop in accuracy": (None if difference is None else -difference, limits.max_drop, True),
        "accuracy": (figures["accuracy"], limits.min_accuracy, False),
        "agreement": (figures["agreement"], limits.min_agreement, False),
        "mean cosine": (figures["cosine_mean"], limits.min_cosine, False),
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
            found.broken.append(f"{name}{of} is {value:.4g}, the limit {limit:g}")
