"""By how much a model's answers change when layers do, by the interpreter: what a change leaves as it was is not
computed again, and products are float32 as BLAS has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.compiler.ops.linear import ACTIVATIONS, EXTRAS
from llmc.dataset import Row, label_index, read_files, read_rows
from llmc.distillation import Columns
from llmc.errors import LlmcError
from llmc.predictors import EMBEDDING, MEDIA, OUTPUTS
from llmc.quantisation import Quantisation, encoder

Array = np.ndarray[Any, Any]
Sample = Mapping[str, Array]
BATCH = 16  # samples that are run together
_KEPT = 1 << 30  # bytes of values that are kept of the samples of the float model


@dataclass(frozen=True)
class Rows:
    """Data as inputs of batch 1, the classes that the labels name, if there are labels, and which rows of the data
    these are, if not the first ones."""

    samples: Sequence[Sample]
    labels: Sequence[int] | None = None
    numbers: Sequence[int] = ()

    def part(self, at: Sequence[int]) -> Rows:
        """Some of them."""
        labels = None if self.labels is None else [self.labels[i] for i in at]
        numbers = [self.numbers[i] if self.numbers else i for i in at]
        return Rows([self.samples[i] for i in at], labels, numbers)


@dataclass(frozen=True)
class Loss:
    """What a bound holds, of some rows: the mean and the half width of its 95 % interval."""

    mean: float
    half: float
    rows: int

    @staticmethod
    def of(values: Array) -> Loss:
        """Of a value for each row."""
        half = 1.96 * float(values.std()) / math.sqrt(len(values))
        return Loss(float(values.mean()), half, len(values))

    @property
    def error(self) -> float:
        """The standard error."""
        return self.half / 1.96


# --- what is measured


@dataclass(frozen=True)
class Measure:
    """What is lost between the answers of the float model and of another.

    Args:
        name: "accuracy", "answers", "cosine" or "noise".
        output: the output it is of; empty: all that are real numbers.
    """

    name: str
    output: str = ""

    @property
    def says(self) -> str:
        """What the bound is of."""
        return {
            "accuracy": "accuracy lost, in shares of the rows",
            "answers": "share of rows whose answer is another",
            "cosine": "1 - cosine of the embeddings",
            "noise": "share of the outputs' energy that is noise",
        }[self.name]

    @property
    def least_rows(self) -> int:
        """Of each part of the data, whatever the bound is."""
        return 16

    def rows_for(self, bound: float | None) -> int:
        """Rows that a part of the data must have, so that a bound can be told from none: one row is a step of 1 / n."""
        counted = self.name in ("accuracy", "answers") and bound
        return max(self.least_rows, math.ceil(1 / bound)) if counted and bound else self.least_rows

    def divergence(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> Array:
        """A number for each row that is 0 for equal answers, and of independent changes the sum: for classes the
        Kullback-Leibler divergence."""
        if self.name in ("accuracy", "answers"):
            p, q = (_log_softmax(answers[self.output]) for answers in (before, after))
            return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0))
        return self.loss(before, after, None)

    def loss(
        self, before: Mapping[str, Array], after: Mapping[str, Array], labels: Sequence[int] | None
    ) -> Array:
        """What the bound is of, for each row."""
        if self.name in ("accuracy", "answers"):
            a, b = (answers[self.output].argmax(-1) for answers in (before, after))
            if self.name == "answers" or labels is None:
                return np.asarray(a != b, np.float64)
            truth = np.asarray(labels)
            return np.asarray((a == truth).astype(np.float64) - (b == truth))
        if self.name == "cosine":
            x, y = (answers[self.output].astype(np.float64) for answers in (before, after))
            norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
            return np.asarray(1 - (x * y).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny))
        signal, noise = 0.0, 0.0
        for name, value in before.items():
            if value.dtype.kind == "f":
                x, y = (v.astype(np.float64).reshape(len(v), -1) for v in (value, after[name]))
                signal, noise = signal + (x**2).sum(-1), noise + ((x - y) ** 2).sum(-1)
        return np.asarray(noise / np.maximum(signal, np.finfo(np.float64).tiny))


def _log_softmax(logits: Array) -> Array:
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def measure_of(imported: Imported, labelled: bool) -> Measure:
    """As `llmc eval` has it for the task; of tasks it does not know, the noise of the outputs."""
    if imported.task == EMBEDDING:
        return Measure("cosine", OUTPUTS[EMBEDDING])
    if imported.task in OUTPUTS and (imported.scores or "softmax") == "softmax":
        return Measure("accuracy" if labelled else "answers", OUTPUTS[imported.task])
    return Measure("noise")


# --- data


def read_data(imported: Imported, graph: Graph, data: Path, columns: Columns, most: int | None) -> Rows:
    """The rows of a file: of tasks that `eval` knows texts or files, with labels if there are; else what `--calib`
    reads.

    Raises:
        LlmcError: the data is missing, empty, or of no use to the model.
    """
    if not data.exists():
        raise LlmcError(
            "there is no such data", at=str(data), hint="--data FILE, of texts like those to come"
        )
    if imported.task not in OUTPUTS:
        asked = Quantisation(calib=data, wanted=True)
        found = asked.samples(graph, imported.tokenizer, imported.preprocess)
        return _want_some(Rows(list(islice(found, most))), data)
    kind = MEDIA.get(imported.task)
    if data.suffix == ".npz":
        found = Quantisation(calib=data, wanted=True).samples(graph, imported.tokenizer)
        return _want_some(Rows(list(islice(found, most))), data)
    rows = list(
        islice(
            read_files(data, kind, columns.text, columns.label)
            if kind
            else read_rows(data, columns.text, columns.pair, columns.label),
            most,
        )
    )
    samples = list(_media(imported, graph, rows, kind) if kind else _texts(imported, graph, rows, data))
    if rows[0].label is None or imported.task == EMBEDDING:
        return Rows(samples)
    count = int(graph.outputs[OUTPUTS[imported.task]].shape[-1])
    places = (f"{data}, line {row.line}" for row in rows)
    labels = [label_index(at, r.label, imported.labels, count) for at, r in zip(places, rows, strict=True)]
    return Rows(samples, labels)


def _want_some(rows: Rows, data: Path) -> Rows:
    if not rows.samples:
        raise LlmcError("the data is empty", at=str(data), hint="it needs at least one row")
    return rows


def _texts(imported: Imported, graph: Graph, rows: Sequence[Row], data: Path) -> Iterator[Sample]:
    if imported.tokenizer is None:
        hint = "give its inputs as an .npz file"
        raise LlmcError("the model has no tokenizer for texts", at=str(data), hint=hint)
    encode = encoder(imported.tokenizer, graph, [])
    for row in rows:
        yield encode(row.text, row.pair)


def _media(imported: Imported, graph: Graph, rows: Sequence[Row], kind: str) -> Iterator[Sample]:
    if kind != "image" or not imported.preprocess:
        hint = "give its inputs as an .npz file"
        raise LlmcError(f"a budget reads no files of {kind}s for this model", hint=hint)
    from llmc.preprocessing import image_sample

    for row in rows:
        yield image_sample(Path(row.text), graph, imported.preprocess)


# --- running


@dataclass
class _Batch:
    inputs: Sample
    rows: Sequence[int]
    sizes: Mapping[str, int]
    known: dict[Node, Any] = field(default_factory=dict)


class Evaluator:
    """Runs graphs that have most nodes in common with one, on the same rows.

    Args:
        graph: the float model's.
        keep: whether its values are kept, so that a change costs what comes after it; as many rows are, as there is
            room for.
    """

    def __init__(self, graph: Graph, rows: Rows, keep: bool) -> None:
        self.graph, self.asked, self._keep = graph, rows, keep
        self.batches: list[_Batch] = []
        self.before: list[Mapping[str, Array]] = []
        fixed, held = self._fixed(graph), 0
        for inputs, at in _batches(graph, rows.samples):
            batch = _Batch(inputs, at, interpret.sizes_of(graph, inputs))
            values = self._values(graph, batch, fixed)
            size = sum(v.nbytes for v in values.values() if isinstance(v, np.ndarray))
            if keep and self.batches and held + size > _KEPT:
                break
            held += size
            self.batches.append(batch)
            self.before.append({name: values[node] for name, node in graph.outputs.items()})
            batch.known = values if keep else {}
        used = [i for batch in self.batches for i in batch.rows]
        self.rows = rows.part(used)

    def of_numbers(self, measure: Measure) -> Evaluator:
        """Itself; rows of which the float model's answers are no numbers are refused: what they lose is none.

        Raises:
            LlmcError: there is one.
        """
        for batch, answers in zip(self.batches, self.before, strict=True):
            for name, value in answers.items():
                if value.dtype.kind != "f" or (measure.output or name) != name:
                    continue
                for at, row in zip(batch.rows, value if len(batch.rows) > 1 else [value], strict=True):
                    if not np.isfinite(row).all():
                        number = self.asked.numbers[at] if self.asked.numbers else at
                        kind = "NaN" if np.isnan(row).any() else "an infinite value"
                        raise LlmcError(
                            "the float model's answer is not finite",
                            at=f"row {number + 1} of the data",
                            found=f"{kind} in {name!r}",
                            hint="leave the row out",
                        )
        return self

    def answers(self, graph: Graph) -> list[Mapping[str, Array]]:
        """The outputs of another graph, a mapping for each batch."""
        fixed = self._fixed(graph)
        found: list[Mapping[str, Array]] = []
        for batch in self.batches:
            values = self._values(graph, batch, fixed)
            found.append({name: values[node] for name, node in graph.outputs.items()})
        return found

    def divergence(self, graph: Graph, measure: Measure) -> float:
        """The mean over the rows; infinite where answers are no numbers."""
        pairs = zip(self.before, self.answers(graph), strict=True)
        values = np.concatenate([measure.divergence(a, b) for a, b in pairs])
        return float(values.mean()) if np.isfinite(values).all() else math.inf

    def loss(self, graph: Graph, measure: Measure) -> Loss:
        """What the bound is of."""
        values, done = [], 0
        for a, b in zip(self.before, self.answers(graph), strict=True):
            count = len(next(iter(a.values())))
            labels = None if self.rows.labels is None else self.rows.labels[done : done + count]
            values.append(measure.loss(a, b, labels))
            done += count
        return Loss.of(np.concatenate(values))

    @staticmethod
    def _fixed(graph: Graph) -> dict[Node, Any]:
        """The values of what depends on constants alone, such as weights that are stored otherwise."""
        found: dict[Node, Any] = {}
        for node in graph.nodes:
            plain = node.op not in ("input", "state") and not OPS[node.op].symbolic and not node.bodies
            if plain and all(i in found for i in node.inputs):
                found[node] = _value(node, [found[i] for i in node.inputs], {}, {})
        return found

    @staticmethod
    def _values(graph: Graph, batch: _Batch, fixed: Mapping[Node, Any]) -> dict[Node, Any]:
        """Of the nodes that are not known; of those that are, what is read."""
        values: dict[Node, Any] = {}
        for node in graph.nodes:
            if node in batch.known:
                values[node] = batch.known[node]
            elif node in fixed:
                values[node] = fixed[node]
            else:
                read = [values[i] for i in node.inputs]
                values[node] = _value(node, read, batch.inputs, batch.sizes)
        return values


def _batches(graph: Graph, samples: Sequence[Sample]) -> Iterator[tuple[Sample, list[int]]]:
    """Samples of like length together, padded where there is a mask; each by itself where it has to be."""
    order = sorted(range(len(samples)), key=lambda i: sum(v.size for v in samples[i].values()))
    # the first that are run are of all lengths, should there be no room for all
    firsts = {str(node.shape[0]) for node in graph.inputs if node.shape}
    most = min([BATCH, *(bounds.high for name, bounds in graph.dims.items() if name in firsts)])
    groups = [order[i : i + most] for i in range(0, len(order), most)]
    for group in groups[::2] + groups[1::2]:
        joined = _joined(graph, [samples[i] for i in group])
        if joined is not None:
            yield joined, group
            continue
        for i in group:
            yield samples[i], [i]


def _joined(graph: Graph, samples: Sequence[Sample]) -> Sample | None:
    """One batch of several; None if the graph does not take it."""
    inputs = {node.attributes["name"]: node for node in graph.inputs}
    first = samples[0]
    if len(samples) == 1 or any(isinstance(inputs[name].shape[0], int) for name in first):
        return dict(first) if len(samples) == 1 else None
    if len({str(inputs[name].shape[0]) for name in first}) > 1 or any(len(v) != 1 for v in first.values()):
        return None
    if all(s[name].shape == first[name].shape for s in samples for name in first):
        return {name: np.concatenate([s[name] for s in samples]) for name in first}
    mask = "attention_mask"
    if mask not in inputs or any(inputs[name].type.rank != 2 for name in first):
        return None
    longest = max(s[name].shape[1] for s in samples for name in first)
    lengths = [next(iter(s.values())).shape[1] for s in samples]
    if any(v.shape[1] != n for s, n in zip(samples, lengths, strict=True) for v in s.values()):
        return None
    made = {
        name: np.concatenate([np.pad(s[name], ((0, 0), (0, longest - s[name].shape[1]))) for s in samples])
        for name in first
    }
    kept = np.arange(longest) < np.array(lengths)[:, None]
    return {**made, mask: kept.astype(first.get(mask, np.zeros(0, np.int64)).dtype)}


def _value(node: Node, read: list[Any], inputs: Sample, sizes: Mapping[str, int]) -> Any:
    """Of a node; products by float32 sums, which are as good as those of the kernels."""
    if node.op == "linear" and read[1].dtype == np.float32:
        return _linear(node, *read)
    return interpret.value_of(node, read, inputs, sizes)


def _linear(node: Node, x: Array, w: Array, *extras: Array) -> Array:
    result = np.matmul(x, w.T)
    pending = iter(extras)
    for step in node.attributes["epilogue"]:
        if step in EXTRAS:
            result += next(pending)
        elif step in ("gelu", "gelu_poly"):
            result = _gelu(result)
        else:
            result = ACTIVATIONS[step](result)
    return np.asarray(result, np.float32)


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(x * np.float32(0.5) * (1 + erf(x * np.float32(math.sqrt(0.5)))), np.float32)
