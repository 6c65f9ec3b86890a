"""selftest.bin: sample calls with the outputs they should give; the compiler writes it.

The layout is in format.md. Everything is little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime.native import DTYPE_NAMES, MAX_RANK
from llmc.runtime.signature import NUMPY_DTYPES

if TYPE_CHECKING:
    from llmc.runtime.model import Model

SELFTEST = "selftest.bin"
_MAGIC = b"LLMCTST2"
_CODES = {name: code for code, name in enumerate(DTYPE_NAMES)}
_DTYPE_OF = {dtype: name for name, dtype in NUMPY_DTYPES.items() if name != "bf16"}
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Call:
    """One call: the name of the function, its inputs, and the outputs it should give."""

    function: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


Case = Sequence[Call]
"""Calls that follow each other in one session."""


@dataclass(frozen=True)
class SelftestResult:
    """How a self-test went.

    Attributes:
        cases: sequences of calls that were run.
        largest_error: the largest absolute difference of any output.
        failures: a sentence for each output that is further off than the tolerance; empty: passed.
    """

    cases: int
    largest_error: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every output was within its tolerance."""
        return not self.failures


def write_selftest(path: str | Path, build_id: str, cases: Sequence[Case]) -> None:
    """Write selftest.bin. Arrays have one of llmc's dtypes; `build_id` is 64 hexadecimal digits."""
    parts = [_MAGIC, build_id.encode(), struct.pack("<I", len(cases))]
    for case in cases:
        parts.append(struct.pack("<I", len(case)))
        for call in case:
            parts += _call_parts(call)
    Path(path).write_bytes(b"".join(parts))


def read_selftest(path: str | Path) -> tuple[str, list[Case]]:
    """The build id and the cases of a selftest.bin.

    Raises:
        LlmcError: the file is missing or damaged.
    """
    try:
        reader = _Reader(Path(path).read_bytes())
        if reader.take(8) != _MAGIC:
            raise ValueError(f"it does not start with {_MAGIC.decode()}")
        build_id = reader.take(64).decode("ascii")
        cases = [_read_case(reader) for _ in range(reader.number("<I", 100_000))]
        if reader.at != len(reader.data):
            raise ValueError(f"{len(reader.data) - reader.at} bytes too many")
    except OSError as error:
        raise LlmcError(f"cannot read {SELFTEST}: {error.strerror or error}", at=str(path)) from None
    except ValueError as error:
        raise LlmcError(
            f"{SELFTEST} is damaged: {error}", at=str(path), hint="copy the artifact again"
        ) from None
    return build_id, cases


def run_selftest(model: Model) -> SelftestResult:
    """Run every case of the artifact's selftest.bin, each in a session of its own.

    An output passes if |found - expected| <= atol + rtol |expected| everywhere.

    Raises:
        LlmcError: the artifact has no self-test, or it is damaged, of another build, or names other tensors.
    """
    if model.manifest.selftest is None:
        raise LlmcError("the artifact has no self-test", at=str(model.path))
    rtol, atol = model.manifest.selftest
    path = model.path / SELFTEST
    build_id, cases = read_selftest(path)
    if build_id != model.manifest.build_id:
        raise LlmcError(f"{SELFTEST} belongs to another build", at=str(path), hint="compile the model again")
    largest, failures = 0.0, []
    for number, case in enumerate(cases):
        with model.session() as session:
            for turn, call in enumerate(case):
                place = (
                    f"case {number}" if len(case) == 1 else f"case {number}, call {turn} of {call.function}"
                )
                found = session.run(call.inputs, function=call.function)
                for name, expected in call.outputs.items():
                    if name not in found or found[name].shape != expected.shape:
                        raise LlmcError(
                            f"{SELFTEST} expects another output than {name} of the model", at=str(path)
                        )
                    error, within = difference(found[name], expected, rtol, atol)
                    largest = max(largest, error)
                    if not within:
                        failures.append(f"{place}: {name} is off by {error:.3g}")
    return SelftestResult(len(cases), largest, tuple(failures))


def difference(found: Array, expected: Array, rtol: float, atol: float) -> tuple[float, bool]:
    """The largest absolute difference, and whether all are within the tolerance; NaN equals NaN."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    gap = np.where(np.isnan(gap), np.inf, gap)
    allowed = np.where(
        np.isfinite(b), atol + rtol * np.abs(b), 0.0
    )  # of NaN and infinities no other value will do
    return float(gap.max(initial=0.0)), bool(np.all(gap <= allowed))


def _call_parts(call: Call) -> list[bytes]:
    name = call.function.encode()
    head = struct.pack("<I", len(name)) + name + struct.pack("<I", len(call.inputs) + len(call.outputs))
    inputs = [_tensor_bytes(0, name, array) for name, array in call.inputs.items()]
    return [head, *inputs, *(_tensor_bytes(1, name, array) for name, array in call.outputs.items())]


def _tensor_bytes(kind: int, name: str, array: Array) -> bytes:
    text, data = name.encode(), np.ascontiguousarray(array).tobytes()
    head = struct.pack("<IIII", kind, _CODES[_DTYPE_OF[array.dtype]], array.ndim, len(text))
    return head + struct.pack(f"<{array.ndim}q", *array.shape) + text + data


class _Reader:
    """Takes bytes from the front; ValueError where there are none left."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"{count} bytes expected at {self.at}, the file ends before")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str, most: int) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        if not 0 <= value <= most:
            raise ValueError(f"{value} before byte {self.at}, at most {most} makes sense")
        return value


def _read_case(reader: _Reader) -> Case:
    return [_read_call(reader) for _ in range(reader.number("<I", 100_000))]


def _read_call(reader: _Reader) -> Call:
    function = reader.take(reader.number("<I", 1000)).decode()
    sides: tuple[dict[str, Array], dict[str, Array]] = {}, {}
    for _ in range(reader.number("<I", 1000)):
        side = sides[reader.number("<I", 1)]
        code = reader.number("<I", len(DTYPE_NAMES) - 1)
        rank, length = reader.number("<I", MAX_RANK), reader.number("<I", 1000)
        shape = [reader.number("<q", 2**40) for _ in range(rank)]
        name = reader.take(length).decode()
        if code == 0:
            raise ValueError(f"{name} has no dtype")
        dtype, count = NUMPY_DTYPES[DTYPE_NAMES[code]], 1
        for size in shape:
            count *= size
        side[name] = np.frombuffer(reader.take(count * dtype.itemsize), dtype).reshape(shape)
    return Call(function, *sides)
