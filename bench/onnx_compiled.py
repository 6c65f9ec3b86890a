"""Tests that the interpreter has right, compiled: many as functions of one artifact, which saves most of the time."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_cases
from apart import apart
from onnx_cases import Case, Row

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.module import Module
from llmc.errors import LlmcError
from llmc.kernels import Kernels
from llmc.optimise import optimise
from llmc.options import Order
from llmc.report import Stages

TARGET = "x86-avx2"
TOGETHER = 64
_LARGE = 4 << 20  # bytes of a model that is compiled alone
_SECONDS, _GIBIBYTES = 900, 8


def load_compiler() -> None:
    """What every process needs, so that forks have it."""
    from llmc import driver
    from llmc.compiler import frontends
    from llmc.targets.cpu import backend, build

    for module in pkgutil.iter_modules(frontends.__path__):
        if module.name.startswith(("onnx", "composed")):
            importlib.import_module(f"{frontends.__name__}.{module.name}")
    assert all((driver, backend, build))


def groups(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    """What is compiled together: small models by the dozen, a large one alone; light ones make their weights."""
    large = [case for case in cases if _is_large(case)]
    small = [case for case in cases if not _is_large(case)]
    yield from (small[i : i + TOGETHER] for i in range(0, len(small), TOGETHER))
    yield from ([case] for case in large)


def _is_large(case: Case) -> bool:
    return case.kind == "light" or case.model.ByteSize() > _LARGE


def rows_of(cases: Sequence[Case]) -> Iterator[Row]:
    """What becomes of each; a group that fails is halved, so that the fault stays with its test."""
    found = apart(cases[0].name, functools.partial(_as_row, cases), _SECONDS, _GIBIBYTES)
    if "rows" in found:
        yield from found["rows"]
    elif len(cases) == 1:
        yield {"type": cases[0].name, "compiled": f"{found['state']}: {found['reason']}"[:300]}
    else:
        half = len(cases) // 2
        yield from rows_of(cases[:half])
        yield from rows_of(cases[half:])


def _as_row(cases: Sequence[Case]) -> Row:
    try:
        return {"rows": compiled(cases)}
    except LlmcError as error:
        return {"state": "refused", "reason": error.problem}


def compiled(cases: Sequence[Case]) -> list[Row]:
    """What becomes of each, as functions of one artifact; without those that have no kernel.

    Raises:
        LlmcError: one of the others cannot be compiled.
    """
    import llmc

    graphs = {case.name: onnx_cases.imported(case) for case in cases}
    refused = {name: reason for name, graph in graphs.items() if (reason := _refusal(graph))}
    rows = [{"type": name, "compiled": f"refused: {reason}"[:300]} for name, reason in refused.items()]
    taken = {f"t{i}": case for i, case in enumerate(cases) if case.name not in refused}
    if not taken:
        return rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.llmc")
        llmc.compile_graph(Module({f: graphs[c.name] for f, c in taken.items()}), path, target=TARGET)
        with llmc.load(path, threads=1) as model, model.session(threads=1) as session:
            for function, case in taken.items():
                call = functools.partial(session.call, function)
                rows.append(_row(case, graphs[case.name], call))
    return rows


def _refusal(graph: Any) -> str:
    """Why a graph has no machine code, empty if it has: the stages before, of one graph alone."""
    import llmc

    order = Order("tests.llmc", "test", {"target": TARGET})
    imported = Imported(graph, "test", "graph", "", "", (), None, None)
    try:
        optimised = optimise(imported, order, Stages(None), llmc.compile_graph)
        Kernels.of(optimised.module, order.target)
    except LlmcError as error:
        return f"{error.problem}: {error.found}".replace("\n", " ")
    return ""


def _row(case: Case, graph: Any, call: Callable[..., Any]) -> Row:
    try:
        faults = onnx_cases.faults(case, graph, lambda inputs: call(**inputs))
    except LlmcError as error:
        return {"type": case.name, "compiled": f"no run: {error.problem}"[:300]}
    return {"type": case.name, "compiled": f"wrong: {faults[0]}" if faults else "right"}
