"""The self-test of an artifact: recorded by the interpreter, run on the finished code before it gets its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import llmc
from llmc.compiler import interpret
from llmc.compiler.dims import evaluate
from llmc.compiler.graph import DTYPES, Graph
from llmc.errors import LlmcError
from llmc.runtime.selftest import SELFTEST, Case, write_selftest
from llmc.targets import Target
from llmc.targets.backends import backend_of

# Largest difference between the artifact and the interpreter, relative and absolute, that a self-test accepts.
TOLERANCE = {"rtol": 1e-3, "atol": 5e-4}
# A value between two int8 levels falls to either side by the last bit of what came before, and what follows spreads it.
TOLERANCE_LOSSY = {"rtol": 2e-2, "atol": 2e-2}
# Tensor cores round activations to half: a self-test of such products accepts this share of the largest answer.
HALVES = 5e-3
_CASES = ((1, 1), (2, 9))  # size of the dim `batch`, of all others


def record(
    folder: Path, graph: Graph, source: Graph, build_id: str, *, halves: bool = False
) -> dict[str, float]:
    """Two runs of the interpreter on `graph`: as imported, no pass and no kernel had a part in them.

    After a lossy pass it is the graph which that made, and only the kernels are judged.

    Args:
        source: what `graph` was made from; the same if no pass was lossy.
        halves: as `Backend.halves` has it.

    Returns:
        rtol, atol: what the self-test accepts. Where values are rounded to int8 levels, at least twice what the
        rounding itself did to the answers of `source`: a model that rounding moves far, one of random weights say,
        is moved by a last bit too.
    """
    cases, moved = [], 0.0
    for batch, other in _CASES:
        wanted = {name: batch if name == "batch" else other for name in graph.dims}
        sizes = {name: min(max(wanted[name], low), high) for name, (low, high) in graph.dims.items()}
        inputs = _sample(graph, sizes)
        cases.append((inputs, interpret.run(graph, inputs)))
        moved = max(moved, _largest_difference(cases[-1][1], source, inputs) if _rounds(graph) else 0.0)
    write_selftest(folder / SELFTEST, build_id, cases)
    if not _rounds(graph):
        return _halved(cases) if halves and _has_halves(graph) else TOLERANCE
    return {**TOLERANCE_LOSSY, "atol": max(TOLERANCE_LOSSY["atol"], 2 * moved)}


def _has_halves(graph: Graph) -> bool:
    return any(node.op == "linear" and node.inputs[1].dtype == "f16" for node in graph.nodes)


def _halved(cases: Sequence[Case]) -> dict[str, float]:
    answers = (float(np.abs(a).max()) for _, outputs in cases for a in outputs.values() if a.size)
    return {**TOLERANCE, "atol": HALVES * max(1.0, *answers)}


def _rounds(graph: Graph) -> bool:
    return any(
        node.op in ("quantize", "quantize_rows") or node.attributes.get("int8") for node in graph.everywhere()
    )


def _largest_difference(found: Mapping[str, Any], source: Graph, inputs: Mapping[str, Any]) -> float:
    expected = interpret.run(source, inputs)
    gaps = (np.abs(value.astype(np.float64) - found[name]) for name, value in expected.items())
    return max((float(gap.max()) for gap in gaps if gap.size), default=0.0)


def _sample(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Legal inputs drawn with a fixed seed; of an input with a default, the second row ends in zeros (padding)."""
    rng, values = np.random.default_rng(0), {}
    for node in graph.inputs:
        a = node.attributes
        shape, dtype = tuple(evaluate(d, sizes) for d in node.shape), DTYPES[node.dtype]
        if a["default"] is not None:
            value = np.full(shape, a["default"], dtype)
            if value.ndim == 2 and value.shape[1] > 4:
                value[1:, -4:] = 0
        elif dtype.kind == "f":
            value = rng.standard_normal(shape).astype(dtype)
        else:
            low, high = a["low"] or 0, 1 if a["high"] is None else a["high"]
            value = rng.integers(low, high + 1, shape).astype(dtype)
        values[a["name"]] = value
    return values


def check(folder: Path, target: Target) -> None:
    """Run the self-test of every variant that this machine can run.

    Raises:
        LlmcError: an output differs.
    """
    for variant in backend_of(target).runs_here(target):
        with llmc.load(folder, variant=variant) as model:
            result = model.selftest()
        if not result.passed:
            raise LlmcError(
                "the compiled model does not compute what the source model does",
                at=f"variant {variant}",
                found=result.failures[0],
                hint="this is a fault of llmc: please report it with the model's config.json",
            )
