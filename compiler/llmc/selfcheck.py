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
from llmc.compiler.module import Module
from llmc.compiler.sequences import CALLS, calls
from llmc.errors import LlmcError
from llmc.runtime.selftest import SELFTEST, Call, write_selftest
from llmc.targets import Target
from llmc.targets.backends import backend_of

# Largest difference between the artifact and the interpreter, relative and absolute, that a self-test accepts.
TOLERANCE = {"rtol": 1e-3, "atol": 5e-4}
# A value between two int8 levels falls to either side by the last bit of what came before, and what follows spreads it.
TOLERANCE_LOSSY = {"rtol": 2e-2, "atol": 2e-2}
_CASES = ((1, 1), (2, 9))  # size of the dim `batch`, of all others
_SESSIONS = ((1, CALLS), (2, (9, 1, 2)))  # likewise, call by call, where there are states

Arrays = Mapping[str, Any]


def record(folder: Path, module: Module, source: Module, build_id: str) -> dict[str, float]:
    """Sessions of the interpreter on `module`: as imported, no pass and no kernel had a part in them.

    After a lossy pass it is the module which that made, and only the kernels are judged.

    Args:
        source: what `module` was made from; the same if no pass was lossy.

    Returns:
        rtol, atol: what the self-test accepts. Where values are rounded to int8 levels, at least twice what the
        rounding itself did to the answers of `source`: a model that rounding moves far, one of random weights say,
        is moved by a last bit too.
    """
    rounds = any(map(_rounds, module.functions.values()))
    cases = [_played(module, given) for given in _given(module)]
    write_selftest(folder / SELFTEST, build_id, cases)
    if not rounds:
        return TOLERANCE
    answers = (_played(source, [(call.function, call.inputs) for call in case]) for case in cases)
    moved = max(
        _difference(a, b)
        for case, wanted in zip(cases, answers, strict=True)
        for a, b in zip(case, wanted, strict=True)
    )
    return {**TOLERANCE_LOSSY, "atol": max(TOLERANCE_LOSSY["atol"], 2 * moved)}


def _given(module: Module) -> list[list[tuple[str, Arrays]]]:
    """The calls of each session, as function and inputs. Functions without states have sessions of their own."""
    alone = {name: graph for name, graph in module.functions.items() if not graph.states}
    kept = Module({name: graph for name, graph in module.functions.items() if graph.states})
    orders = [
        calls(Module.of(graph, name), b, (other,)) for name, graph in alone.items() for b, other in _CASES
    ]
    orders += [calls(kept, batch, others) for batch, others in _SESSIONS] if kept.functions else []
    return [
        [(name, _sample(module.functions[name], sizes, number)) for number, (name, sizes) in enumerate(order)]
        for order in orders
    ]


def _played(module: Module, given: Sequence[tuple[str, Arrays]]) -> list[Call]:
    states: dict[str, Any] = {}
    made = []
    for name, inputs in given:
        outputs, states = interpret.step(module.functions[name], inputs, states)
        made.append(Call(name, inputs, outputs))
    return made


def _rounds(graph: Graph) -> bool:
    return any(
        node.op in ("quantize", "quantize_rows") or node.attributes.get("int8") for node in graph.everywhere()
    )


def _difference(found: Call, expected: Call) -> float:
    """The largest of any output."""
    gaps = (np.abs(v.astype(np.float64) - found.outputs[name]) for name, v in expected.outputs.items())
    return max((float(gap.max()) for gap in gaps if gap.size), default=0.0)


def _sample(graph: Graph, sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Legal inputs drawn with a fixed seed; of an input with a default, the second row ends in zeros (padding)."""
    rng, values = np.random.default_rng(seed), {}
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
