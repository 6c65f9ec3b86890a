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

from llmc.compiler.module import Module
from llmc.errors import LlmcError

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
    """What is compiled together: small models by the dozen, a large one alone."""
    large = [case for case in cases if case.model.ByteSize() > _LARGE]
    small = [case for case in cases if case.model.ByteSize() <= _LARGE]
    yield from (small[i : i + TOGETHER] for i in range(0, len(small), TOGETHER))
    yield from ([case] for case in large)


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
    """What becomes of each, as functions of one artifact.

    Raises:
        LlmcError: one of them cannot be compiled.
    """
    import llmc

    graphs = {f"t{i}": onnx_cases.imported(case) for i, case in enumerate(cases)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.llmc")
        llmc.compile_graph(Module(graphs), path, target="x86-avx2")
        with llmc.load(path, threads=1) as model, model.session(threads=1) as session:
            return [
                _row(case, graph, functools.partial(session.call, name))
                for case, (name, graph) in zip(cases, graphs.items(), strict=True)
            ]


def _row(case: Case, graph: Any, call: Callable[..., Any]) -> Row:
    try:
        faults = onnx_cases.faults(case, graph, lambda inputs: call(**inputs))
    except LlmcError as error:
        return {"type": case.name, "compiled": f"no run: {error.problem}"[:300]}
    return {"type": case.name, "compiled": f"wrong: {faults[0]}" if faults else "right"}
