"""Tests that the interpreter has right, compiled: many as functions of one artifact, which saves most of the time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_cases
from onnx_cases import Case, Row

from llmc.compiler.module import Module
from llmc.errors import LlmcError

TOGETHER = 24


def compiled(cases: Sequence[Case]) -> list[Row]:
    """What becomes of each; a group that cannot be compiled is halved, so that the fault stays with its test."""
    import llmc

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.llmc")
        try:
            graphs = {f"t{i}": onnx_cases.imported(case) for i, case in enumerate(cases)}
            llmc.compile_graph(Module(graphs), path, target="x86-avx2")
            with llmc.load(path, threads=1) as model, model.session(threads=1) as session:
                return [_row(case, session, f"t{i}", graphs[f"t{i}"]) for i, case in enumerate(cases)]
        except LlmcError as error:
            if len(cases) == 1:
                return [{"type": cases[0].name, "compiled": f"refused: {error.problem}"[:300]}]
    half = len(cases) // 2
    return [*compiled(cases[:half]), *compiled(cases[half:])]


def _row(case: Case, session: Any, function: str, graph: Any) -> Row:
    try:
        faults = onnx_cases.faults(case, graph, lambda inputs: session.call(function, **inputs))
    except LlmcError as error:
        return {"type": case.name, "compiled": f"no run: {error.problem}"[:300]}
    return {"type": case.name, "compiled": f"wrong: {faults[0]}" if faults else "right"}
