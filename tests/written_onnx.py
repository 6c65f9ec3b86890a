"""Graphs written as ONNX, and what the file gives: read again by llmc, or run by the onnx package's reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from llmc.compiler import interpret
from llmc.compiler.frontends import onnx as frontend
from llmc.compiler.graph import Graph
from llmc.compiler.to_onnx.file import write
from llmc.compiler.verify import verify

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


def written(graph: Graph, path: Path, **options: Any) -> onnx.ModelProto:
    """The checked model in the file that a graph is written to."""
    write(path, graph, {}, **options)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(str(path), load_external_data=False)


def again(path: Path) -> Graph:
    """The graph that the frontend makes of a file."""
    graph = frontend.load(path).graph
    verify(graph)
    return graph


def referenced(path: Path, inputs: Arrays) -> dict[str, Array]:
    """Outputs by the reference of the onnx package."""
    evaluator = ReferenceEvaluator(str(path))
    with np.errstate(all="ignore"):  # infinities and NaN are meant
        made = evaluator.run(None, dict(inputs))
    return dict(zip(evaluator.output_names, map(np.asarray, made), strict=True))


def want_same(found: Arrays, wanted: Arrays, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """The same outputs, of the same types, in the same order."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


def want_round_trip(graph: Graph, inputs: Arrays, path: Path, **tolerance: float) -> Graph:
    """A graph goes out and comes in again with the same outputs; what came in."""
    written(graph, path)
    back = again(path)
    want_same(interpret.run(back, inputs), interpret.run(graph, inputs), **tolerance)
    return back
