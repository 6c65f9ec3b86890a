"""What two models are compared on, and the second of them where it is the first one through passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import cast

import numpy as np

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.inputs import KEEP
from llmc.compiler.graph import Graph, Node, make
from llmc.compiler.graph_diff import random_sessions, want_same_inputs
from llmc.compiler.noise import Noise
from llmc.compiler.samples import Arrays, Session
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.optimise import passed
from llmc.options import Options, Order, placed_passes
from llmc.quantisation import Quantisation

TOKENS = "input_ids"
RANDOM = "random"

Functions = Mapping[str, Graph]


def through_passes(imported: Imported, options: Options) -> tuple[Functions, Functions]:
    """A model's functions by the passes of the level alone, and by those too that options ask for.

    Where only the level or a pipeline is asked for, the first are as imported. Both are without skipped padding, so
    that values have the same shapes.
    """
    plain = cast(Options, {name: value for name, value in options.items() if name not in _ASKED})
    if "calib" in options and _want_samples(plain):
        plain["calib"] = options["calib"]
    after = _passed(imported, options)
    asked = "only_passes" not in options and plain.keys() != options.keys()
    return (_passed(imported, plain) if asked else imported.module.functions), after


_ASKED = (
    *("prune", "share", "factorize", "quant", "attention", "group", "calib", "matmul", "state_dtype"),
    *("zero_points", "add_passes"),
)


def _want_samples(options: Options) -> bool:
    return any(step.change.wants_samples for step in placed_passes(options).pipeline.steps)


def _passed(imported: Imported, options: Options) -> Functions:
    order = Order("compared", None, options)
    order.whole = False
    return passed(imported, order, compile_graph)


def compared(a: Functions, b: Functions, known: Imported, data: str, count: int) -> Noise:
    """Both models' functions of the same names on up to `count` samples.

    Args:
        known: what makes inputs of texts and images.
        data: "random", or what `--calib` takes.

    Raises:
        LlmcError: there is no sample, or data that does not suit both.
    """
    noise = Noise({n: g for n, g in a.items() if n in b}, {n: g for n, g in b.items() if n in a})
    if not noise.a:
        raise LlmcError("the models have no function in common", found=f"{', '.join(a)}; {', '.join(b)}")
    for name, graph in noise.a.items():
        want_same_inputs(graph, b[name])
    if data == RANDOM:
        for name, graph in noise.a.items():
            for session in islice(random_sessions(graph, b[name], empty=False), count):
                noise.add([(name, call) for call in session.calls], session.states)
    else:
        for calls in islice(_calls(noise, known, data), count):
            noise.add(calls)
    if not any(noise.samples.values()):
        raise LlmcError("comparison: there are no samples", at=data, hint="give some, or use --data auto")
    return noise


def sessions(a: Graph, b: Graph, data: str, count: int, known: Imported) -> Iterator[Session]:
    """Samples that two graphs are run on, a call each; `random` ones all."""
    if data == RANDOM:
        yield from random_sessions(a, b)
        return
    want_same_inputs(a, b)
    for sample in islice(_samples({"": a}, known, data), count):
        yield Session({}, [_of(a, b, sample)])


def _calls(noise: Noise, known: Imported, data: str) -> Iterator[list[tuple[str, Arrays]]]:
    """A session for each sample: functions that leave fixed states for others come first.

    Of several functions those are left out that want an input that the data does not have.
    """
    names = sorted(noise.a, key=lambda name: not _begins(noise.a[name]))
    for sample in _samples({name: noise.a[name] for name in names}, known, data):
        lacking = {name: lack for name in names if (lack := _lacking(noise.a[name], sample))}
        if len(lacking) == len(names):
            hint = "; ".join(f"{name} wants {lack}" for name, lack in lacking.items())
            raise LlmcError("no function of the model has its inputs in the data", at=data, hint=hint)
        yield [(n, _of(noise.a[n], noise.b[n], sample)) for n in names if n not in lacking]


def _begins(graph: Graph) -> bool:
    return bool(graph.updates) and not any(graph.users[state] for state in graph.states)


def _lacking(graph: Graph, sample: Arrays) -> str:
    """The first input that a sample does not have, and has to."""
    needed = (n.attributes["name"] for n in graph.inputs if n.attributes["default"] is None)
    return next((name for name in needed if name not in sample), "")


def _samples(functions: Functions, known: Imported, data: str) -> Iterator[Arrays]:
    """Inputs of all functions, by name."""
    several = len(functions) > 1
    inputs = {n.attributes["name"]: n for g in reversed([*functions.values()]) for n in g.inputs}
    asked = Graph(
        tuple(_optional(n) if several or name == KEEP else n for name, n in inputs.items()),
        {},
        {name: bounds for g in functions.values() for name, bounds in g.dims.items()},
    )
    for sample in Quantisation(calib=data, wanted=True).samples(asked, known.tokenizer, known.preprocess):
        # the logits of all tokens, unless the data says
        kept = {} if TOKENS not in sample else {KEEP: np.arange(sample[TOKENS].shape[-1])}
        yield {**kept, **sample}


def _optional(node: Node) -> Node:
    """An input that data need not give."""
    return make("input", (), node.source, **{**node.attributes, "default": node.attributes["low"] or 0})


def _of(a: Graph, b: Graph, sample: Arrays) -> Arrays:
    """What both graphs take of a sample."""
    names = {n.attributes["name"] for n in a.inputs} & {n.attributes["name"] for n in b.inputs}
    return {name: value for name, value in sample.items() if name in names}


def want_data(data: str) -> None:
    """Refuse data that is not there, before models are read."""
    if data != RANDOM:
        Quantisation(calib=data, wanted=True)
