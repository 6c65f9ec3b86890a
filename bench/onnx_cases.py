"""The tests of the onnx package, and one of them tried."""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case import node
from onnx.backend.test.loader import DATA_DIR, load_model_tests

from llmc.compiler.frontends import onnx as frontend
from llmc.compiler.frontends.onnx_kinds import DTYPES, held_in, wide
from llmc.compiler.graph import DTYPES as ARRAYS
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

# what two units in the last place are: such answers were rounded after each step, llmc's are not
_ROUNDED = {"bfloat16": 2**-6, "float16": 2**-9}
_NOISE = 1e-6  # of the largest answer: what float32 leaves of sums that should be 0
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One test.

    Args:
        op: what it is about: the first op of a node test, else its kind.
        data: inputs and outputs, each a list in the order of the model's.
    """

    name: str
    kind: str
    op: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float

    @property
    def opset(self) -> int:
        """The version of ONNX's own ops."""
        return next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 0)


def cases(kinds: Sequence[str] = (*KINDS, "light")) -> Iterator[Case]:
    """All tests that need no download but their weights, which are made up where a file has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in filter(KINDS.__contains__, kinds):
            for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name):
                yield _node(test) if kind == "node" else _model(test)
    for file in sorted(Path(DATA_DIR, "light").glob("*.onnx")) if "light" in kinds else ():
        expected = numpy_helper.to_array(onnx.load_tensor(str(file.with_name(f"{file.stem}_output_0.pb"))))
        yield Case(file.stem, "light", "light", onnx.load(file), [([_counted(file)], [expected])], 1e-3, 1e-5)


def node_cases(wanted: Callable[[str], bool]) -> Iterator[Case]:
    """The node tests of some of the files that make them, such as `gather`: some of the others take long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in filter(wanted, (m.name for m in pkgutil.iter_modules(node.__path__))):
            importlib.import_module(f"{node.__name__}.{module}")
    for test in sorted(node._NodeTestCases, key=lambda test: test.name):
        yield _node(test)


def _node(test: Any) -> Case:
    name = test.name.removesuffix("_expanded")
    first = test.model.graph.node[0]
    domain = f"{first.domain}." if first.domain not in ("", "ai.onnx") else ""
    op = f"{domain}{first.op_type}" if name == test.name else "function bodies"
    return Case(test.name, "node", op, test.model, test.data_sets, test.rtol, test.atol)


def _model(test: Any) -> Case:
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    data = [
        (_tensors(model.graph.input, part, "input"), _tensors(model.graph.output, part, "output"))
        for part in sorted(folder.glob("test_data_set*"))
    ]
    return Case(test.name, test.kind, test.kind, model, data, test.rtol, test.atol)


def _tensors(infos: Any, folder: Path, what: str) -> list[Any]:
    files = sorted(folder.glob(f"{what}_*.pb"), key=lambda f: int(f.stem.rpartition("_")[2]))
    return [_value(info, file) for info, file in zip(infos, files, strict=False)]


def _value(info: Any, file: Path) -> Any:
    kinds = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    kind = info.type.WhichOneof("value")
    made = kinds.get(kind, onnx.TensorProto)()
    made.ParseFromString(file.read_bytes())
    return numpy_helper.to_array(made) if kind == "tensor_type" else made


def _counted(file: Path) -> Any:
    """What the light models were run on."""
    graph = onnx.load(file).graph
    weights = {t.name for t in graph.initializer}
    info = next(i for i in graph.input if i.name not in weights)
    shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
    count = int(np.prod(shape))
    return (np.arange(count, dtype=np.float32) / count).reshape(shape)


# --- one test


def tried(case: Case) -> Row:
    """Imported, run and compared."""
    row: Row = {"type": case.name}
    try:
        graph = imported(case)
    except LlmcError as error:
        return {**row, "state": "refused", "reason": _short(error)}
    try:
        found = faults(case, graph, lambda inputs: run(graph, inputs))
    except LlmcError as error:
        return {**row, "state": "no run", "reason": str(error).splitlines()[0][:300]}
    return {**row, "state": "wrong", "reason": found[0]} if found else {**row, "state": "right", "reason": ""}


def imported(case: Case) -> Any:
    """The graph of a test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(case.model.SerializeToString())
        return frontend.load(path).graph


def faults(case: Case, graph: Any, answers: Callable[[Any], Any]) -> list[str]:
    """How the answers of all parts of a test differ."""
    return [fault for part in case.data if (fault := _compared(case, graph, answers, *part))]


def _short(error: LlmcError) -> str:
    """The first entry of what is lacking, or the problem itself."""
    return (error.found or error.problem if "cannot be imported" in error.problem else error.problem)[:300]


def _compared(
    case: Case, graph: Any, answers: Callable[[Any], Any], inputs: list[Any], outputs: list[Any]
) -> str:
    """How the answers differ, empty if they do not."""
    weights = {t.name for t in case.model.graph.initializer}
    names = [i.name for i in case.model.graph.input]
    if len(inputs) < len(names):
        names = [name for name in names if name not in weights]
    wanted = {n.attributes["name"]: n.dtype for n in graph.inputs}
    given = {n: widened(v, wanted[n]) for n, v in zip(names, inputs, strict=False) if n in wanted}
    made = answers(given)
    for info, expected in zip(case.model.graph.output, outputs, strict=True):
        if fault := _difference(made[info.name], expected, info, case):
            return f"{info.name}: {fault}"
    return ""


def widened(value: Any, dtype: str) -> Any:
    """A value in the dtype that llmc computes it in."""
    try:
        array = array_of(value)
        return array if array.dtype == ARRAYS[dtype] else wide(array).astype(ARRAYS[dtype])
    except ValueError as error:
        raise LlmcError(f"the test's inputs: {error}") from error


def array_of(value: Any) -> Any:
    """A value of a test as an array."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _difference(got: Any, expected: Any, info: Any, case: Case) -> str:
    expected = array_of(expected)
    if got.shape != expected.shape:
        return f"shape {list(got.shape)}, not {list(expected.shape)}"
    kind = info.type.tensor_type.elem_type
    wanted = ARRAYS[held_in(kind, got.dtype == np.float64)] if kind in DTYPES else got.dtype
    if got.dtype != wanted:
        return f"dtype {got.dtype}, not {wanted}"
    rtol = max(case.rtol, _ROUNDED.get(expected.dtype.name, 0.0))
    atol = case.atol if got.dtype == np.float64 else max(case.atol, _NOISE * _largest(expected))
    wide = np.float64 if got.dtype.kind == "f" else got.dtype
    try:
        np.testing.assert_allclose(got.astype(wide), expected.astype(wide), rtol=rtol, atol=atol)
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return ""


def _largest(expected: Any) -> float:
    """The largest finite answer of floats; integers are exact."""
    if expected.dtype.kind in "biu" or not expected.size:
        return 0.0
    values = np.abs(expected.astype(np.float64))
    return float(np.max(values, where=np.isfinite(values), initial=0.0))
