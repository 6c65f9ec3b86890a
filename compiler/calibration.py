"""Calibration: samples from a file, run through a graph, to find the scale of each activation that needs one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.interpret import bind
from llmc.compiler.npz import NpzError, open_npz
from llmc.compiler.ranges import METHODS, Magnitudes
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
Sample = Mapping[str, Array]
Encode = Callable[[str, str | None], Sample]  # a text, or a pair of them -> inputs of batch 1
TEXT_FIELDS = ("text", "sentence")
PAIR_FIELD = "text_pair"
LEAST_RATIO = 1000  # of signal to noise, 30 dB: with less one scale for all rows is not kept
LEAST_GAIN = 2.0  # of noise, 3 dB: what scales by row have to be better by


def general_text() -> str:
    """The text of `--calib auto`: sentences of many kinds, a few words to a paragraph long.

    The first part is from books and speeches whose copyright has expired everywhere (Austen, Carroll, Conrad, Dickens,
    Doyle, Lincoln, Melville, Shelley, Stevenson, Stoker, Thoreau, Twain, Wells). The second part was written for llmc
    and is dedicated to the public domain (CC0 1.0).
    """
    return Path(__file__).with_name("calibration.txt").read_text("utf-8")


def scales(seen: Iterable[Magnitudes], method: str) -> tuple[float, ...]:
    """The int8 scale of each site by what was seen there, to 6 digits.

    Args:
        method: a key of METHODS.
    """
    limits = [METHODS[method](magnitudes) for magnitudes in seen]
    return tuple(float(f"{limit / 127:.6g}") if limit else 1.0 for limit in limits)


class Noise:
    """Of rows `[r, k]` seen so far the energy that products make of them, and of their errors with either scale.

    A value's error counts by what the products make of it, as if those of different columns were independent.

    Args:
        weights: f32 `[k]`, by column the sum of the squares of all weights that multiply it; None: one scale it is.
        scale: the one for all rows.
    """

    kind: ClassVar[str] = "noise"

    def __init__(self, weights: Array | None, scale: float) -> None:
        self.weights = None if weights is None else weights.astype(np.float64)
        self.scale = scale
        self.sums = np.zeros(3)  # of the rows, of their errors with one scale, and with one for each

    def add(self, values: Array) -> None:
        """Take rows f32 `[..., k]` into account."""
        if self.weights is None:
            return
        rows = values.reshape(-1, values.shape[-1])
        own = np.abs(rows).max(1, keepdims=True, initial=0) / np.float32(127)
        by_row = np.where(own == 0, np.float32(1), own)
        errors = (rows - _rounded(rows, scale) for scale in (np.float32(self.scale), by_row))
        self.sums += [float(np.square(x, dtype=np.float64).sum(0) @ self.weights) for x in (rows, *errors)]

    def is_too_much(self) -> bool:
        """Whether one scale for all is too coarse, and one for each row so much better that it pays."""
        signal, static, by_row = self.sums
        return bool(static * LEAST_RATIO > signal and static > by_row * LEAST_GAIN)

    def merge(self, other: Noise) -> None:
        """Take in what `other` has seen."""
        self.sums += other.sums

    def empty(self) -> Noise:
        """One of the same weights and scale that has seen nothing."""
        return Noise(self.weights, self.scale)

    def parts(self) -> dict[str, Array]:
        """All there is, to be kept in a file."""
        return {"sums": self.sums}

    def take(self, parts: Mapping[str, Array]) -> None:
        """Become what `parts` was called of."""
        self.sums = np.array(parts["sums"])


def _rounded(rows: Array, scale: Any) -> Array:
    return np.asarray(np.clip(np.rint(rows / scale), -127, 127) * scale)


def want_finite(names: Sequence[str], values: Sequence[Array], number: int) -> None:
    """Refuse values of sample `number` that are not finite, with the name of the first such site."""
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value).all():
            raise LlmcError(
                "calibration: an activation is not finite",
                at=name,
                found=f"{'NaN' if np.isnan(value).any() else 'infinity'} in sample {number}",
                hint="does the model give numbers for this sample without quantisation?",
            )


def read_samples(source: str | Path, graph: Graph, encode: Encode | None) -> Iterator[Sample]:
    """The samples of a file, read as they are taken: inputs of batch 1, checked against the graph's signature.

    A .txt file has a text on each line. .jsonl and .csv have texts in a field "text" (and "text_pair"), or, .jsonl
    only, an array for each input. An .npz file has an array for each input, one sample for each index of axis 0.

    Args:
        source: a file, or "auto" for the text that comes with llmc.
        encode: makes inputs of a text; None if the model has no tokenizer.

    Raises:
        LlmcError: the file cannot be read, is of another kind, or a sample does not fit; `at` names the line.
    """
    if str(source) == "auto":
        yield from _texts(
            ((f"line {i}", t) for i, t in enumerate(general_text().splitlines(), 1)), encode, "auto"
        )
        return
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise _refused("cannot tell what kind of calibration data this is", path, hint=_KINDS)
    try:
        for place, sample in reader(path, graph, encode):
            try:
                bind(graph, sample)
            except LlmcError as error:
                raise _refused(error.problem, path, place, error.found, error.hint) from None
            yield sample
    except OSError as error:
        raise _refused(f"cannot read calibration data: {error.strerror or error}", path) from None
    except UnicodeDecodeError:
        raise _refused("calibration data is not UTF-8 text", path) from None


_KINDS = "use a .txt, .jsonl, .csv or .npz file, or auto"
Read = Iterator[tuple[str, Sample]]


def _refused(
    problem: str, path: Path | str, place: str = "", found: str | None = None, hint: str | None = None
) -> LlmcError:
    return LlmcError(
        f"calibration: {problem}", at=f"{path}, {place}" if place else str(path), found=found, hint=hint
    )


def _texts(lines: Iterable[tuple[str, str]], encode: Encode | None, path: Path | str) -> Iterator[Sample]:
    for place, text in lines:
        if text.strip():
            yield _encoded(encode, text, None, path, place)


def _encoded(encode: Encode | None, text: Any, pair: Any, path: Path | str, place: str) -> Sample:
    if encode is None:
        raise _refused("the model has no tokenizer for texts", path, hint="give its inputs as an .npz file")
    if not isinstance(text, str) or not isinstance(pair, str | None):
        raise _refused("a text is not a string", path, place, found=repr(text if pair is None else pair))
    try:
        return encode(text, pair)
    except LlmcError as error:
        raise _refused(error.problem, path, place) from None


def _read_txt(path: Path, graph: Graph, encode: Encode | None) -> Read:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            for sample in _texts([(f"line {number}", line)], encode, path):
                yield f"line {number}", sample


def _read_jsonl(path: Path, graph: Graph, encode: Encode | None) -> Read:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _refused("a line is not JSON", path, place, found=str(error)) from None
            if not isinstance(record, dict):
                raise _refused("a line is not a JSON object", path, place, found=line.strip()[:60])
            yield place, _record(record, path, place, graph, encode)


def _read_csv(path: Path, graph: Graph, encode: Encode | None) -> Read:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for record in reader:
                place = f"line {reader.line_num}"
                if None in record:
                    hint = "a text with a comma in it stands in quotes"
                    raise _refused("a row has more fields than the first", path, place, hint=hint)
                yield place, _text_record(record, path, place, encode)
        except csv.Error as error:
            raise _refused(f"not a CSV file: {error}", path, f"line {reader.line_num}") from None


def _text_record(record: Mapping[Any, Any], path: Path, place: str, encode: Encode | None) -> Sample:
    name = next((f for f in TEXT_FIELDS if f in record), None)
    if name is None:
        fields = ", ".join(str(f) for f in record if f is not None)
        raise _refused('there is no field "text"', path, place, found=fields or "no fields")
    return _encoded(encode, record[name], record.get(PAIR_FIELD), path, place)


def _record(record: dict[str, Any], path: Path, place: str, graph: Graph, encode: Encode | None) -> Sample:
    """One JSON object: a text, or an array for each input."""
    names = {node.attributes["name"]: node for node in graph.inputs}
    if not names.keys() & record.keys():
        return _text_record(record, path, place, encode)
    return {k: _array(v, names[k], path, place)[None] for k, v in record.items() if k in names}


def _array(value: Any, node: Node, path: Path, place: str) -> Array:
    """`value` in the input's dtype; whole numbers stay whole."""
    name = node.attributes["name"]
    try:
        array = np.asarray(value)
    except ValueError:
        raise _refused(f"input {name!r} is ragged", path, place) from None
    wanted = DTYPES[node.dtype]
    if array.dtype.kind not in "iufb" or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise _refused(f"input {name!r} has dtype {array.dtype}, not {wanted}", path, place)
    return array.astype(wanted)


def _read_npz(path: Path, graph: Graph, encode: Encode | None) -> Read:
    try:
        with open_npz(path) as arrays:
            names = {node.attributes["name"]: node for node in graph.inputs}
            if unknown := sorted(arrays.keys() - names.keys()):
                hint = f"the inputs are: {', '.join(names)}"
                raise _refused(f"there is no input {unknown[0]!r}", path, hint=hint)
            counts = {name: rows.count for name, rows in arrays.items()}
            if len(set(counts.values())) > 1:
                raise _refused("the arrays hold different numbers of samples", path, found=str(counts))
            for i in range(next(iter(counts.values()), 0)):
                sample = {name: rows.take() for name, rows in arrays.items()}
                yield f"sample {i}", {k: _array(v, names[k], path, f"sample {i}") for k, v in sample.items()}
    except NpzError as error:
        raise _refused(f"not an .npz file: {error}", path) from None


_READERS: Mapping[str, Callable[[Path, Graph, Encode | None], Read]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".npz": _read_npz,
}
