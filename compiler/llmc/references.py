"""How near the texts that a model makes of others are to references: chrF and ROUGE, beside those of a baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.dataset import Row, column_names, read_rows
from llmc.errors import LlmcError, extras_named
from llmc.runtime.encoder import BadTexts, Encoder, was_cut
from llmc.runtime.generation_options import options_of
from llmc.runtime.prompts import generation_of

if TYPE_CHECKING:
    from llmc.runtime.model import Model

Array = np.ndarray[Any, Any]
Write = Callable[[Sequence[Sequence[int]]], list[str]]  # sources in tokens to texts
SOURCE = ("source", "text", "document", "article", "dialogue", "sentence", "input", "content")
REFERENCE = ("reference", "target", "translation", "summary", "highlights", "output", "label")
ROUGE = ("rouge1", "rouge2", "rougeL")
BATCH, RESAMPLES = 32, 1000


@dataclass
class Nearness:
    """What was measured, in points of 100. `baseline_scores` and what follows is None without a baseline.

    Args:
        scores: "chrF" of all texts together, as sacrebleu has it; "rouge1", "rouge2" and "rougeL", the mean of F, as
            rouge-score has them, without stemming.
        differences: the artifact's minus the baseline's.
        intervals: of these, 95 %, by resampling rows.
        agreement: share of equal texts.
        cut: sources that were longer than the model takes and were cut.
    """

    task: str
    rows: int
    scores: Mapping[str, float]
    baseline_scores: Mapping[str, float] | None = None
    differences: Mapping[str, float] | None = None
    intervals: Mapping[str, tuple[float, float]] | None = None
    agreement: float | None = None
    cut: int = 0
    broken: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return dict(vars(self))


class Scores:
    """The measures of some texts beside their references."""

    def __init__(self, texts: Sequence[str], references: Sequence[str]) -> None:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import CHRF

        self._chrf, scorer = CHRF(), RougeScorer(ROUGE)
        counts = self._chrf._extract_corpus_statistics(texts, [references])  # what corpus_score adds up
        self._counts = np.array(counts, np.float64)
        found = [scorer.score(r, t) for t, r in zip(texts, references, strict=True)]
        self._rouge = np.array([[100 * row[name].fmeasure for name in ROUGE] for row in found])

    def of(self, weights: Array) -> Array:
        """All measures, f64 [4], where row i counts weights[i] times."""
        chrf = self._chrf._compute_f_score(list(weights @ self._counts))
        return np.array([chrf, *(weights @ self._rouge / weights.sum())])

    def whole(self) -> dict[str, float]:
        """By their names."""
        return _named(self.of(np.ones(len(self._counts))))


def _named(values: Array) -> dict[str, float]:
    return dict(zip(("chrF", *ROUGE), map(float, values), strict=True))


def nearness(
    artifact: str | Path,
    data: str | Path,
    baseline: str | Path | None = None,
    *,
    text: str | None = None,
    label: str | None = None,
    limit: int | None = None,
    strict: bool = False,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    **options: Any,
) -> Nearness:
    """Measure an encoder-decoder on sources and references, and a baseline on the same rows.

    Args:
        data: .jsonl, .csv or .tsv; `text` and `label` name the columns of sources and references, guessed otherwise.
        baseline: an artifact, or a folder, which PyTorch runs; both get the tokens of the artifact's tokenizer.
        limit: rows to stop after.
        strict: whether a source longer than the artifact takes is an error; it is cut otherwise, and counted.
        max_drop: a share (0.01: one point) that each measure may lose at most.
        min_agreement: least share of texts equal to the baseline's.
        options: of `Model.generate`; what is not given is as the model's makers say, but nothing is drawn.

    Raises:
        LlmcError: the packages are not there, the model makes no texts of texts, the data is unreadable or has no
            references, a source cannot be read, a limit has no figure.
    """
    import llmc

    with extras_named():
        import rouge_score.rouge_scorer  # noqa: F401
        import sacrebleu  # noqa: F401
    model = llmc.load(artifact, threads=threads)
    sources = _Sources(model, str(artifact), str(data), strict)
    rows = _rows(Path(data), text, label, limit)
    asked = _options(model, options)
    writers = [_of_artifact(model, asked)]
    if baseline is not None:
        writers.append(_of_baseline(Path(baseline), model, asked, threads))
    texts, references = _written(writers, sources, rows, progress)
    found = Nearness(model.task, len(references), {}, cut=sources.cut)
    return _judged(_measured(found, texts, references), max_drop, min_agreement)


def _options(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of both models, with the most new tokens, for which each library has a number of its own."""
    entry = generation_of(model)
    most = options_of(entry, {"do_sample": False}).new_tokens(1)
    given = {name: value for name, value in options.items() if value is not None}
    return {"do_sample": False, "max_new_tokens": min(most, entry.max_length - 1), **given}


def _written(
    writers: Sequence[Write], sources: _Sources, rows: Iterator[Row], progress: Callable[[int], None]
) -> tuple[list[list[str]], list[str]]:
    """The texts of each writer, and the references."""
    texts, references = [list[str]() for _ in writers], list[str]()
    while batch := list(islice(rows, BATCH)):
        given = sources(batch)
        for write, found in zip(writers, texts, strict=True):
            found += write(given)
        references += [row.label for row in batch]
        progress(len(references))
    return texts, references


def _rows(data: Path, text: str | None, label: str | None, limit: int | None) -> Iterator[Row]:
    """Those of the data, each with a reference."""
    for row in islice(read_rows(data, text, None, label, SOURCE, REFERENCE), limit):
        if row.label is None:
            columns = column_names(data)
            raise LlmcError(
                "there are no references to hold the texts to",
                at=str(data),
                found=f"columns {', '.join(columns)}" if columns else "a text a line",
                hint="name their column: --label-column NAME",
            )
        if not isinstance(row.label, str):
            raise LlmcError(
                "a reference is no text", at=f"{data}, line {row.line}", found=f"{row.label!r:.60}"
            )
        yield row


class _Sources:
    """Texts to the tokens of a source, cut to what the model takes."""

    def __init__(self, model: Model, at: str, data: str, strict: bool) -> None:
        entry, tokenizer = generation_of(model), model.manifest.tokenizer
        if entry.encoder is None or entry.speech is not None:
            raise LlmcError("references are for models that make a text of another", at=at)
        if tokenizer is None:
            raise LlmcError("the artifact has no tokenizer", at=at)
        axis = model.functions[entry.encoder.function].inputs[entry.encoder.source].shape[1]
        longest = axis if isinstance(axis, int) else model.dims[axis][1]
        text = (model.path / tokenizer.file).read_text(encoding="utf-8")
        self._encoder = Encoder(text, tokenizer, min(longest, tokenizer.max_length), at)
        self._data, self._strict, self.cut = data, strict, 0

    def __call__(self, rows: Sequence[Row]) -> list[list[int]]:
        return [self._of(row) for row in rows]

    def _of(self, row: Row) -> list[int]:
        at = f"{self._data}, line {row.line}"
        try:
            found = self._encoder([row.text])
        except BadTexts as error:
            raise LlmcError(f"a text {next(iter(error.rows.values()))}", at=at) from None
        if not row.text.strip():
            raise LlmcError("a source is empty", at=at)
        if was_cut(found):
            self.cut += 1
            if self._strict:
                raise LlmcError(
                    f"a source has more than the {self._encoder.longest} tokens that the model takes", at=at
                )
        return list(found[0].ids)


def _of_artifact(model: Any, options: Mapping[str, Any]) -> Write:
    return lambda sources: [made.text for made in model.generate([list(s) for s in sources], **options)]


def _of_baseline(path: Path, model: Model, options: Mapping[str, Any], threads: int | None) -> Write:
    if not (path / "manifest.json").is_file():
        from llmc.torch_writer import of_folder

        return of_folder(path, model, options, threads)
    import llmc

    other = llmc.load(path, threads=threads)
    entry, own = generation_of(other), generation_of(model)
    if entry.encoder is None or entry.vocabulary < own.vocabulary:
        raise LlmcError(
            "the baseline has other tokens than the artifact, or makes no text of another", at=str(path)
        )
    return _of_artifact(other, options)


def _measured(found: Nearness, texts: Sequence[Sequence[str]], references: Sequence[str]) -> Nearness:
    scores = [Scores(made, references) for made in texts]
    found.scores = scores[0].whole()
    if len(scores) == 1:
        return found
    one, other = scores
    count, random = len(references), np.random.default_rng(0)
    drawn = (random.multinomial(count, np.full(count, 1 / count)) for _ in range(RESAMPLES))
    low, high = np.quantile([one.of(w) - other.of(w) for w in drawn], (0.025, 0.975), axis=0)
    found.baseline_scores = other.whole()
    found.differences = {name: found.scores[name] - value for name, value in found.baseline_scores.items()}
    found.intervals = dict(
        zip(found.scores, zip(map(float, low), map(float, high), strict=True), strict=True)
    )
    found.agreement = sum(a == b for a, b in zip(*texts, strict=True)) / count
    return found


def _judged(found: Nearness, max_drop: float | None, min_agreement: float | None) -> Nearness:
    """List the limits that do not hold."""
    if found.differences is None or found.agreement is None:
        if max_drop is not None or min_agreement is not None:
            raise LlmcError(
                "a limit needs a baseline", hint="give an artifact or a model folder: --baseline MODEL"
            )
        return found
    for name, difference in found.differences.items():
        if max_drop is not None and -difference > 100 * max_drop + 1e-9:
            found.broken.append(f"drop in {name} is {-difference:.4g} points, the limit {100 * max_drop:g}")
    if min_agreement is not None and found.agreement < min_agreement - 1e-12:
        found.broken.append(f"agreement is {found.agreement:.4g}, the limit {min_agreement:g}")
    return found
