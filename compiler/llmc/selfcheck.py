"""The self-test of an artifact: answers of the interpreter, compared with the finished code before it gets its name.

The code is tried with more and larger calls than selftest.bin keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import llmc
from llmc.compiler import extensions, interpret
from llmc.compiler.differences import furthest, largest
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.ops import input_
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.samples import Arrays, draw, of_call, samples, without_empty
from llmc.compiler.sequences import calls, with_states
from llmc.compiler.trail import rounds
from llmc.errors import LlmcError
from llmc.kept_answers import plays
from llmc.passes.rows.ragged import blanked
from llmc.runtime.selftest import SELFTEST, Call, Case, difference, write_selftest
from llmc.samplecheck import mixed
from llmc.targets import Target
from llmc.targets.backends import backend_of

if TYPE_CHECKING:
    from llmc.optimise import Optimised

# Largest difference between the artifact and the interpreter, relative and absolute, that a self-test accepts.
TOLERANCE = {"rtol": 1e-3, "atol": 5e-4}
# A value between two int8 levels falls to either side by the last bit of what came before, and what follows spreads it.
TOLERANCE_LOSSY = {"rtol": 2e-2, "atol": 2e-2}
# Tensor cores round activations to half: a self-test of such products accepts this share of the largest answer.
HALVES = 5e-3
# What sums of float32 may be off by, as a share of an output's largest answer: logits of 30 are off by 1e-3 near 0.
ROUNDED = 1e-4
# selftest.bin keeps the smallest cases up to so many bytes, and one in any case.
KEPT_BYTES = 100_000

Given = Sequence[tuple[str, Mapping[str, Any]]]  # function and inputs, call by call


# --- answers


def answers(module: Module, alone: Sequence[Arrays] = ()) -> list[Case]:
    """Sessions of many sizes with what the interpreter says. Functions without states have sessions of their own.

    Args:
        alone: of `played_alone`.
    """
    if alone:
        ((name, graph),) = module.functions.items()
        return [_case(name, graph, s.calls, found) for s, found in zip(samples(graph), alone, strict=True)]
    return _played(module, _given(module))


def played_alone(module: Module) -> list[Arrays]:
    """What `samples` give of a function that has all sessions for itself, so that a `Trail` need not try others.

    Nothing where there are other functions, or where samples do not begin as sessions do, with empty states.
    """
    (graph, *others) = module.functions.values()
    tried = samples(graph) if graph.states and not others else []
    if any(state.size for session in tried for state in session.states.values()):
        return []
    return plays(graph, tried) if tried else []


def replayed(module: Module, cases: Sequence[Case], alone: Sequence[Arrays] = ()) -> list[Case]:
    """The same sessions with the answers of another module; `alone` as of `answers`, of this one."""
    if alone:
        ((name, graph),) = module.functions.items()
        given = ([call.inputs for call in case] for case in cases)
        return [_case(name, graph, calls, found) for calls, found in zip(given, alone, strict=True)]
    return _played(module, [[(call.function, call.inputs) for call in case] for case in cases])


def _case(name: str, graph: Graph, calls: Sequence[Mapping[str, Any]], found: Arrays) -> list[Call]:
    """What `play` found of a session, call by call."""
    return [
        Call(name, inputs, {output: found[of_call(output, number)] for output in graph.outputs})
        for number, inputs in enumerate(calls, 1)
    ]


def outputs_of(cases: Sequence[Case], name: str, graph: Graph) -> list[Mapping[str, Any]]:
    """The answers of a function in each of `samples`; none if it has states, whose sessions are of all functions."""
    if graph.states:
        return []
    calls_of = (call for case in cases for call in case if call.function == name)
    return [without_empty(graph, call.inputs, call.outputs) for call in calls_of]


def blanked_answers(cases: Sequence[Case], module: Module, packing: Mapping[str, Pipeline]) -> Sequence[Case]:
    """The answers with zeros at padding, where the passes of `packing` leave it out."""
    made = {name: (stub, blanked(stub, packing[name])) for name, stub in _stubs(module).items()}
    if all(after is stub for stub, after in made.values()):
        return cases
    return [[_blanked(call, made[call.function][1]) for call in case] for case in cases]


def _stubs(module: Module) -> dict[str, Graph]:
    """Functions that are given their outputs, and the inputs that say where padding is."""
    return {name: _stub(graph) for name, graph in module.functions.items()}


def _stub(graph: Graph) -> Graph:
    outputs = {name: input_(f"output {name}", n.dtype, n.shape) for name, n in graph.outputs.items()}
    return Graph((*graph.inputs, *outputs.values()), outputs, graph.dims)


def _blanked(call: Call, stub: Graph) -> Call:
    given = {f"output {name}": value for name, value in call.outputs.items()}
    return replace(call, outputs=interpret.run(stub, {**call.inputs, **given}))


def _given(module: Module) -> list[Given]:
    alone = {name: graph for name, graph in module.functions.items() if not graph.states}
    kept = Module({name: graph for name, graph in module.functions.items() if graph.states})
    found: list[Given] = [
        [(name, inputs) for inputs in session.calls]
        for name, graph in alone.items()
        for session in samples(graph)
    ]
    for batch, others in with_states([*kept.functions.values()]) if kept.functions else ():
        order = calls(kept, batch, others)
        found.append([(name, _drawn(kept, name, sizes, turn)) for turn, (name, sizes) in enumerate(order)])
    _want_all_tried(module, {name for given in found for name, _ in given})
    return found


def _want_all_tried(module: Module, tried: Set[str]) -> None:
    """What is not called is not checked."""
    if missing := sorted(module.functions.keys() - tried):
        raise LlmcError(
            f"no sizes within the bounds of the dims were found at which the model takes a call of {missing[0]!r}, so "
            "that it cannot be checked",
            hint="give bounds that hold such sizes, as by --max-batch and --max-seq",
        )


def _drawn(module: Module, name: str, sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    return draw(module.functions[name], sizes, np.random.default_rng(seed))


def _played(module: Module, sessions: Sequence[Given]) -> list[Case]:
    """What the interpreter says, call by call; how sessions begin alike, as with the same source, it is asked once."""
    begun: dict[Any, tuple[Arrays, Arrays]] = {}
    return [_session(module, given, begun) for given in sessions]


def _session(module: Module, given: Given, begun: dict[Any, tuple[Arrays, Arrays]]) -> Case:
    states: Arrays = {}
    made: list[Call] = []
    for name, inputs in given:
        key = name, *((n, value.shape, value.tobytes()) for n, value in inputs.items())
        found = begun.get(key) if not made else None
        if found is None:
            found = interpret.step(module.functions[name], inputs, states)
        if not made:
            begun[key] = found
        outputs, states = found
        made.append(Call(name, inputs, outputs))
    return made


# --- the file


def record(
    folder: Path,
    module: Module,
    cases: Sequence[Case],
    source: Sequence[Case],
    build_id: str,
    *,
    halves: bool = False,
) -> dict[str, float]:
    """Write the self-test of `module`, the smallest of `cases`.

    Args:
        source: as `cases`, with the answers before a lossy pass.
        halves: as `Backend.halves` has it.

    Returns:
        rtol, atol: what the self-test accepts. Where values are rounded to int8 levels, at least twice what the
        rounding itself did to the answers of `source`: a model that rounding moves far, one of random weights say,
        is moved by a last bit too.
    """
    write_selftest(folder / SELFTEST, build_id, _smallest(module, cases))
    if not any(map(rounds, module.functions.values())):
        return _scaled(cases, HALVES if halves and _has_halves(module) else ROUNDED)
    pairs = (
        (a, b) for case, wanted in zip(cases, source, strict=True) for a, b in zip(case, wanted, strict=True)
    )
    moved = max((_difference(a, b) for a, b in pairs), default=0.0)
    return {**TOLERANCE_LOSSY, "atol": max(TOLERANCE_LOSSY["atol"], 2 * moved)}


def _smallest(module: Module, cases: Sequence[Case]) -> list[Case]:
    """Those that are kept, in order: as many as there is room for, and none with a row that is empty."""
    whole = [case for case in cases if all(_is_whole(module, call) for call in case)]
    order = sorted(whole, key=_bytes)
    kept, total = order[:1], sum(map(_bytes, order[:1]))
    for case in order[1:]:
        total += _bytes(case)
        if total <= KEPT_BYTES:
            kept.append(case)
    return [case for case in whole if any(case is other for other in kept)]


def _is_whole(module: Module, call: Call) -> bool:
    ones = {name: np.ones_like(value) for name, value in call.outputs.items()}
    seen = without_empty(module.functions[call.function], call.inputs, ones)
    return all(value.all() for value in seen.values())


def _bytes(case: Case) -> int:
    return sum(v.nbytes for call in case for v in (*call.inputs.values(), *call.outputs.values()))


def _has_halves(module: Module) -> bool:
    nodes = (node for graph in module.functions.values() for node in graph.everywhere())
    return any(node.op == "linear" and node.inputs[1].dtype == "f16" for node in nodes)


def _scaled(cases: Sequence[Case], share: float) -> dict[str, float]:
    """The tolerance, where an answer near 0 may be off by a share of the largest one: both sum the same parts.

    One bound serves all outputs. Of float32 it is that of the output whose numbers are smallest, or a large one would
    let a small one be anything.
    """
    most: dict[tuple[str, str], float] = {}
    for case in cases:
        for call in case:
            for name, array in call.outputs.items():
                key = (call.function, name)
                most[key] = max(most.get(key, 0.0), largest(array, np.zeros_like(array)))
    if share == HALVES:
        return {**TOLERANCE, "atol": share * max((1.0, *most.values()))}
    return {**TOLERANCE, "atol": max(TOLERANCE["atol"], share * min(most.values(), default=0.0))}


def _difference(found: Call, expected: Call) -> float:
    """The largest of any output; what is no number in either is left out, as it says nothing of rounding."""
    gaps = (largest(found.outputs[name], value) for name, value in expected.outputs.items())
    return max(gaps, default=0.0)


# --- the check


def check(folder: Path, target: Target, made: Optimised) -> None:
    """Compare every variant that this machine can run with all that is known, and run its self-test.

    Raises:
        LlmcError: an output differs. It names the pass at fault, if one is.
    """
    for variant in backend_of(target).runs_here(target):
        with llmc.load(folder, variant=variant) as model:
            failures = [*_failures(model, made), *model.selftest().failures]
            failures += mixed(model, made.module, made.cases)
        if failures:
            raise _fault(made, variant, failures[0])


def _failures(model: Any, made: Optimised) -> list[str]:
    """A sentence for each output that is too far off."""
    rtol, atol = model.manifest.selftest
    found = []
    for case in made.cases:
        with model.session() as session:
            for call in case:
                graph = made.module.functions[call.function]
                outputs = session.run(call.inputs, function=call.function)
                got, wanted = (without_empty(graph, call.inputs, o) for o in (outputs, call.outputs))
                gaps = {name: difference(got[name], value, rtol, atol) for name, value in wanted.items()}
                found += [f"{n} is off by {gap:.3g}{_at(call)}" for n, (gap, ok) in gaps.items() if not ok]
    return found


def _at(call: Call) -> str:
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in call.inputs.items())
    return f" for {shapes}" if shapes else ""


def _fault(made: Optimised, variant: str, failure: str) -> LlmcError:
    """Values that overflow, or the pass that changes answers, by the interpreter; if it is none, the code is wrong."""
    for trail in made.trails.values():
        if (overflow := trail.overflow(failure)) is not None:
            return overflow
    for trail in made.trails.values():
        if (breach := trail.blame()) is not None:
            return breach
    first = Module({name: trail.first for name, trail in made.trails.items()})
    if not _same(replayed(first, made.noted), made.noted):
        return next(iter(made.trails.values())).written()
    problem, outside = "the compiled model does not compute what the source model does", _outside(made.module)
    hint = "this is a fault of llmc: please report it with the model's config.json"
    if outside:
        hint = f"no pass changes it: look at the kernels of {', '.join(outside)}"
    return LlmcError(problem, at=f"variant {variant}", found=failure, hint=hint)


def _same(cases: Sequence[Case], others: Sequence[Case]) -> bool:
    pairs = ((a, b) for c, o in zip(cases, others, strict=True) for a, b in zip(c, o, strict=True))
    return all(not furthest([a.outputs], [b.outputs])[1] for a, b in pairs)


def _outside(module: Module) -> list[str]:
    """Extensions whose kernels, or formats of weights, the module may use."""
    ops = {node.op for graph in module.functions.values() for node in graph.everywhere()}
    tables = (
        (item, (item.given.scalars, item.given.kernels, item.given.formats)) for item in extensions.loaded()
    )
    return [
        item.origin
        for item, kinds in tables
        if any(not ops.isdisjoint(table) for kind in kinds for table in kind.values())
    ]
