"""What a student learns from: tokens, its teacher's answers (Hinton, Vinyals and Dean 2015), and labels."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.folder import Summary, require_tokenizer
from llmc.compiler.frontends.tasks import scores_of
from llmc.dataset import Row, label_index, read_rows
from llmc.errors import LlmcError, TextsCut

CLASSIFYING = "text-classification"
IGNORED = -100  # the label of a token that has none
LEAST_ROWS = 20
MAX_SEQ = 256  # tokens of a row, where nothing else is asked for


@dataclass(frozen=True)
class Columns:
    """Names of columns; guessed where they are None."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Example:
    """A row: tokens, segments, and a class or a number; None where there is no label."""

    ids: Sequence[int]
    types: Sequence[int]
    label: float | None = None


@dataclass(frozen=True)
class Examples:
    """Rows as a model takes them.

    Args:
        inputs: names of the tensors that the model takes.
        pad_id: fills shorter rows up, on the right.
        scores: what makes the logits answers: "softmax", "sigmoid" or "none"; "tokens": softmax, at every token.
    """

    rows: Sequence[Example]
    inputs: Sequence[str]
    pad_id: int
    scores: str

    @property
    def labelled(self) -> bool:
        """Whether there are labels; of text, the next token is one."""
        return self.scores == "tokens" or (bool(self.rows) and self.rows[0].label is not None)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.ids) for row in self.rows]

    def batch(self, rows: Sequence[int], device: Any = None) -> Mapping[str, Any]:
        """i64 [rows, longest] of each input."""
        import torch

        chosen = [self.rows[row] for row in rows]
        longest = max(len(row.ids) for row in chosen)
        made = {
            "input_ids": [[*row.ids, *[self.pad_id] * (longest - len(row.ids))] for row in chosen],
            "attention_mask": [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in chosen],
            "token_type_ids": [[*row.types, *[0] * (longest - len(row.types))] for row in chosen],
        }
        return {name: torch.tensor(made[name], device=device) for name in self.inputs}

    def samples(self, tokens: int) -> Iterator[Mapping[str, Any]]:
        """The first rows that hold so many tokens, each by itself, as graphs take them."""
        for row, length in enumerate(self.lengths):
            if tokens <= 0:
                return
            tokens -= length
            yield {name: value.numpy() for name, value in self.batch([row]).items()}

    def labels(self, rows: Sequence[int], ids: Any, mask: Any) -> Any:
        """i64 [rows] of classes, f32 [rows] of numbers, or of text i64 [rows, longest]: the next token."""
        import torch

        if self.scores == "tokens":
            following = torch.full_like(ids, IGNORED)
            following[:, :-1] = torch.where(mask[:, 1:] > 0, ids[:, 1:], IGNORED)
            return following
        kind = torch.float32 if self.scores == "none" else torch.int64
        return torch.tensor([self.rows[row].label for row in rows], dtype=kind, device=ids.device)


def examples_of(
    summary: Summary, model: Any, data: Path, columns: Columns, max_seq: int | None, seed: int
) -> tuple[Examples, Examples]:
    """Rows to learn from, and a tenth of all that is held back.

    Raises:
        LlmcError: the folder has no tokenizer, a row or its label is of no use, or there are too few.
    """
    import inspect as signatures

    from llmc.compiler.frontends.huggingface import tokenizer_of
    from llmc.compiler.frontends.quiet import quiet
    from llmc.tokens import encoder_of

    require_tokenizer(summary)
    with quiet():
        tokenizer = tokenizer_of(summary)
    assert tokenizer is not None
    longest = min(tokenizer.max_length, summary.max_positions, max_seq or MAX_SEQ)
    encoder = encoder_of(tokenizer, longest)
    if summary.task.name == CLASSIFYING:
        scores = scores_of(summary.config, CLASSIFYING, len(summary.labels), str(summary.root)) or "softmax"
        rows = _of_rows(encoder, data, columns, summary.labels, scores)
    else:
        scores, rows = "tokens", _windows(encoder, data, columns.text, longest)
    if len(rows) < LEAST_ROWS:
        what = "windows of tokens" if scores == "tokens" else "rows"
        raise LlmcError(
            f"the data has {len(rows)} {what}, recovery needs {LEAST_ROWS} at least", at=str(data)
        )
    known, highest = model.get_input_embeddings().num_embeddings, max(max(row.ids) for row in rows)
    if highest >= known:
        raise LlmcError(
            "the tokenizer has tokens that the model does not know",
            at=str(summary.root),
            found=f"token {highest} in the data, {known} rows in the table",
            hint="is it this model's tokenizer?",
        )
    takes = signatures.signature(model.forward).parameters
    inputs = [name for name in ("input_ids", "attention_mask") if name in takes]
    if "token_type_ids" in takes and "token_type_ids" in tokenizer.inputs:
        inputs.append("token_type_ids")
    random.Random(seed).shuffle(rows)
    held = max(2, len(rows) // 10)
    made = Examples(rows[held:], inputs, tokenizer.pad_id, scores)
    return made, replace(made, rows=rows[:held])


def _of_rows(encoder: Any, data: Path, columns: Columns, labels: Sequence[str], scores: str) -> list[Example]:
    found, cut = [], 0
    for row in read_rows(data, columns.text, columns.pair, columns.label):
        at = f"{data}, line {row.line}"
        try:
            (encoding,) = encoder([row.text if row.pair is None else (row.text, row.pair)])
        except LlmcError as error:
            raise LlmcError(error.problem, at=at) from None
        cut += bool(encoding.overflowing)
        if encoding.ids:
            label = _label(at, row, labels, scores)
            found.append(Example(tuple(encoding.ids), tuple(encoding.type_ids), label))
    if cut:
        warnings.warn(TextsCut(cut, len(found), encoder.longest, hint="see --max-seq"), stacklevel=2)
    return found


def _label(at: str, row: Row, labels: Sequence[str], scores: str) -> float | None:
    if row.label is None or scores == "sigmoid":
        return None
    if scores == "softmax":
        return label_index(at, row.label, labels, len(labels))
    try:
        return float(row.label)
    except (TypeError, ValueError):
        raise LlmcError(
            "the label of a model that gives numbers is none", at=at, found=repr(row.label)[:60]
        ) from None


def _windows(encoder: Any, data: Path, column: str | None, longest: int) -> list[Example]:
    """A text as rows of equal length; what is left at its end has no row of its own."""
    from llmc.perplexity import text_of

    ids = encoder.ids(text_of(data, column), special=False)
    starts = range(0, len(ids) - longest + 1, longest) if len(ids) >= longest * LEAST_ROWS else ()
    if not starts:
        raise LlmcError(
            f"the data has {len(ids)} tokens, recovery needs {LEAST_ROWS} windows of {longest}",
            at=str(data),
            hint="give more text, or a smaller --max-seq",
        )
    return [Example(tuple(ids[start : start + longest]), (0,) * longest) for start in starts]


def order(lengths: Sequence[int], batch: int, seed: int | None) -> list[list[int]]:
    """Rows in batches of like length, so that little is padded; shuffled if there is a seed."""
    rng = random.Random(seed)
    rows = sorted(
        range(len(lengths)), key=lambda row: lengths[row] // 4 + (0 if seed is None else rng.random())
    )
    groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    if seed is not None:
        rng.shuffle(groups)
    return groups


@dataclass(frozen=True)
class Distillation:
    """A student's loss.

    Args:
        alpha: share of the teacher's answers in it; the others' is that of the labels.
        temperature: softens both answers, so that the teacher's small ones count.
        hidden: weight of what the layers give, beside the teacher's, in units of its variance; 0: they are left out.
    """

    student: Any
    teacher: Any
    examples: Examples
    alpha: float
    temperature: float
    hidden: float

    @property
    def models(self) -> Sequence[Any]:
        """What is asked, the student first."""
        return self.student, self.teacher

    def __call__(self, rows: Sequence[int]) -> Any:
        """The mean over a batch."""
        import torch

        given = self.examples.batch(rows, self.student.device)
        wants = self.hidden > 0
        with torch.no_grad():
            told = self.teacher(**given, output_hidden_states=wants)
        found = self.student(**given, output_hidden_states=wants)
        real = given["attention_mask"] if "attention_mask" in given else torch.ones_like(given["input_ids"])
        labels = self.examples.labels(rows, given["input_ids"], real) if self.alpha < 1 else None
        loss = self._answers(found.logits, told.logits, labels, real)
        if wants:
            loss = loss + self.hidden * between_layers(found.hidden_states, told.hidden_states, real)
        return loss

    def _answers(self, found: Any, told: Any, labels: Any, real: Any) -> Any:
        from torch.nn import functional

        scores = self.examples.scores
        if scores == "tokens":
            found, told = found[real > 0], told[real > 0]
            labels = None if labels is None else labels[real > 0]
        if scores == "none":
            taught = functional.mse_loss(found, told)
        elif scores == "sigmoid":
            taught = functional.binary_cross_entropy_with_logits(found, told.sigmoid())
        else:
            t = self.temperature
            soft = (found / t).log_softmax(-1), (told / t).log_softmax(-1)
            taught = functional.kl_div(*soft, reduction="batchmean", log_target=True) * t * t
        if labels is None:
            return taught
        if scores == "none":
            learnt = functional.mse_loss(found[:, 0], labels)
        else:
            learnt = functional.cross_entropy(found, labels, ignore_index=IGNORED)
        return self.alpha * taught + (1 - self.alpha) * learnt


def between_layers(found: Sequence[Any], told: Sequence[Any], real: Any) -> Any:
    """Mean over layers of the squared difference at real tokens, in units of the teacher's variance there."""
    import torch

    chosen = real > 0
    parts = []
    for layer in range(1, len(found)):
        own, other = found[layer][chosen], told[layer * (len(told) - 1) // (len(found) - 1)][chosen]
        parts.append((own - other).square().mean() / other.var().clamp_min(1e-12))
    return torch.stack(parts).mean()


@dataclass(frozen=True)
class Figures:
    """How good a model is on rows that it did not train on; None: what cannot be measured.

    Args:
        accuracy: share of right classes, or of right next tokens.
        agreement: share of classes, or next tokens, that are the teacher's.
        perplexity: of text.
        error: of numbers, the mean absolute difference to the labels.
        distance: of numbers, the root of the mean squared difference to the teacher's.
    """

    accuracy: float | None = None
    agreement: float | None = None
    perplexity: float | None = None
    error: float | None = None
    distance: float | None = None

    def worse_than(self, other: Figures) -> bool:
        """Whether fewer answers are the teacher's, or numbers farther from it."""
        if self.distance is not None and other.distance is not None:
            return self.distance > other.distance
        return (self.agreement or 0.0) < (other.agreement or 0.0)


class Measure:
    """Measures models on the same rows; the first one is the teacher of those that follow."""

    def __init__(self, examples: Examples, batch: int, device: Any = None) -> None:
        self.examples, self.batch, self.device, self.first = examples, batch, device, dict[int, Any]()

    def __call__(self, model: Any) -> Figures:
        """The figures of one model."""
        import torch

        if self.device is not None:
            model = copy.deepcopy(model).to(self.device)
        sums = {"same": 0.0, "right": 0.0, "surprise": 0.0, "off": 0.0, "square": 0.0}
        count, labelled = 0, 0
        with torch.no_grad():
            for number, rows in enumerate(order(self.examples.lengths, self.batch, None)):
                given = self.examples.batch(rows, self.device)
                real = torch.ones_like(given["input_ids"])
                real = given.get("attention_mask", real)
                logits = model(**given).logits
                labels: Any = None
                if self._labelled:
                    labels = self.examples.labels(rows, given["input_ids"], real)
                if self.examples.scores == "tokens":
                    logits, labels = logits[real > 0], labels[real > 0]
                answer = self._answer(logits)
                told = self.first.setdefault(number, answer)
                count += len(answer)
                self._add(sums, logits, answer, told, labels)
                labelled += 0 if labels is None else int((labels != IGNORED).sum())
        return self._figures(sums, count, labelled)

    @property
    def _labelled(self) -> bool:
        return self.examples.labelled and self.examples.scores != "sigmoid"

    def _answer(self, logits: Any) -> Any:
        scores = self.examples.scores
        return logits if scores == "none" else logits > 0 if scores == "sigmoid" else logits.argmax(-1)

    def _add(self, sums: dict[str, float], logits: Any, answer: Any, told: Any, labels: Any) -> None:
        from torch.nn import functional

        if self.examples.scores == "none":
            sums["square"] += float((answer - told).square().sum()) / answer.shape[-1]
            sums["off"] += 0.0 if labels is None else float((answer[:, 0] - labels).abs().sum())
            return
        same = answer == told
        sums["same"] += float((same.all(-1) if same.ndim > 1 else same).sum())
        if labels is None:
            return
        sums["right"] += float((answer == labels).sum())
        if self.examples.scores == "tokens":
            sums["surprise"] += float(
                functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            )

    def _figures(self, sums: Mapping[str, float], count: int, labelled: int) -> Figures:
        if self.examples.scores == "none":
            error = sums["off"] / labelled if labelled else None
            return Figures(error=error, distance=math.sqrt(sums["square"] / count))
        text = self.examples.scores == "tokens"
        return Figures(
            accuracy=sums["right"] / labelled if labelled else None,
            agreement=sums["same"] / count,
            perplexity=math.exp(min(sums["surprise"] / labelled, 700)) if text else None,
        )
