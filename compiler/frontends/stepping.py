"""A decoder as the function `step`: tokens and what is held of those before them -> logits, and what is held then.

One function serves a prompt, the next token and several tokens, for a sequence of any length within the bound. It is
checked as every import is: by transformers' own numbers for the whole text at once, without a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from llmc.compiler.dims import symbol
from llmc.compiler.frontends import (
    caches,
    exporters,
    forward,
    long_tables,
    reference,
    scans,
    sinks,
    step_attention,
)
from llmc.compiler.frontends.caches import Held
from llmc.compiler.frontends.heads import ROOT
from llmc.compiler.frontends.implementations import choose
from llmc.compiler.frontends.inputs import KEEP, TEXT, Input, Inputs
from llmc.compiler.frontends.joint import Joint
from llmc.compiler.frontends.long_tables import PLACES
from llmc.compiler.frontends.masks import ADDED
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.frontends.torch_export import to_graph
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import state_
from llmc.errors import LlmcError, first_line

STEP, LOGITS = "step", "logits"
SEQ, PAST, KEPT = "seq", "past", "kept"
WAYS = (step_attention.STEP, ADDED, "sdpa", "eager")
MORE = (1, 3)  # tokens of the calls after the prompt


class StepHead(nn.Module):
    """`forward(input_ids, logits_to_keep, *held)` -> logits of the tokens asked for, and what is held then.

    Args:
        model: a decoder of transformers in eval mode.
        held: what its cache holds.
        counted: whether the model is told the places of its tokens, which some count from 0 in each call otherwise.
    """

    def __init__(self, model: nn.Module, held: Sequence[Held], counted: bool = False) -> None:
        super().__init__()
        self.model, self.held, self.counted = model, tuple(held), counted
        self.name = caches.parameter_of(model)
        self.keeps = KEEP in _parameters(model)

    def forward(self, *values: Any) -> tuple[Any, ...]:
        ids, kept, *tensors = values
        cache = caches.filled(self.held, tensors)
        options = {KEEP: kept} if self.keeps else {}
        if self.counted:
            options[PLACES] = self._places(ids, tensors)
        with scans.from_zeros():
            result = self.model(
                input_ids=ids, use_cache=True, return_dict=True, **{self.name: cache}, **options
            )
        logits = result.logits if self.keeps else result.logits[:, kept]
        return logits, *caches.parts_of(cache, self.held)

    def _places(self, ids: Any, tensors: Sequence[Any]) -> Any:
        """Of tokens: behind those that are held."""
        past = next(
            t.shape[one.grows] for t, one in zip(tensors, self.held, strict=True) if one.grows is not None
        )
        return (torch.arange(ids.shape[1]) + past)[None]

    def nothing(self) -> list[Any]:
        """What is held at first."""
        return [torch.zeros(one.shape) for one in self.held]


def _parameters(model: Any) -> Mapping[str, Any]:
    import inspect

    return inspect.signature(model.forward).parameters


def step_graph(model: Any, max_seq: int, at: str, whole: Callable[[Any], Any]) -> Graph:
    """The graph of `step`.

    Args:
        model: with transformers' own attention, which it loses.
        max_seq: how many tokens a sequence may have.
        at: its config.json.
        whole: tokens i64 [1, n] -> logits of all of them, as transformers computes them without a cache.

    Raises:
        UnsupportedError: what it keeps cannot be placed in states.
        LlmcError: as `huggingface.load`.
    """
    step_attention.register()
    ids = _tokens(model, max_seq)
    wanted = {LOGITS: whole(ids)}
    head = _chosen(model, ids, wanted, max_seq)
    forward.whole(model)
    forward.one_pass(model, max_seq)
    with long_tables.endless(model):
        graph = sinks.before_keys(_traced(head, ids, max_seq))
    want_same(graph, ids, wanted, at)
    return graph


def _chosen(model: Any, ids: Any, wanted: Mapping[str, Any], max_seq: int) -> StepHead:
    """The model with the first way of attention, and of counting tokens, that is right."""
    held = held_of(model)
    heads = [StepHead(model, held).eval()]
    if PLACES in _parameters(model) and any(one.grows is not None for one in held):
        heads.append(StepHead(model, held, counted=True).eval())
    for head in heads:
        choose(model, functools.partial(_played, head, ids), wanted, {}, max_seq, WAYS)
        if _is_right(head, ids, wanted):
            return head
    return heads[0]


def _is_right(head: StepHead, ids: Any, wanted: Mapping[str, Any]) -> bool:
    try:
        return reference.farthest(_played(head, ids), wanted, {})[1] <= reference.TOLERANCE
    except Exception:  # whatever a model raises that goes on from a cache in its own way
        return False


def held_of(model: Any) -> tuple[Held, ...]:
    try:
        with exporters.scanned():
            return caches.held_by(model)
    except UnsupportedError:
        raise
    except Exception as error:  # anything that a model of transformers raises
        raise UnsupportedError(f"its cache cannot be used: {first_line(error)}", "") from error


def _tokens(model: Any, max_seq: int) -> Any:
    """A text i64 [1, n] that is longer than the narrowest window."""
    count = min(reference.sizes_for(model.config, max_seq)["seq"] + sum(MORE), max_seq)
    given = Inputs((Input(TEXT, (1, SEQ)),), (), {SEQ: (1, max_seq)})
    return torch.from_numpy(reference.sample(given, model.config, {**reference.SIZES, SEQ: count})[TEXT])


def calls(length: int) -> Iterator[slice]:
    """A prompt, the next token, and several more."""
    ends = [length - sum(MORE[i:]) for i in range(len(MORE) + 1)]
    starts = [0, *ends[:-1]]
    yield from (slice(start, end) for start, end in zip(starts, ends, strict=True) if 0 <= start < end)


def _played(head: StepHead, ids: Any) -> dict[str, Any]:
    """All logits of a text, call by call."""
    held, found = head.nothing(), []
    with torch.no_grad(), exporters.scanned():
        for part in calls(ids.shape[1]):
            logits, *held = head(ids[:, part], torch.arange(part.stop - part.start), *held)
            found.append(logits.numpy())
    return {LOGITS: np.concatenate(found, 1)}


def _traced(head: StepHead, ids: Any, max_seq: int) -> Graph:
    bounds = {SEQ: (1, max_seq), KEPT: (1, max_seq)}
    if any(one.grows is not None for one in head.held):
        bounds[PAST] = (0, max_seq)
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items()}
    cut = max(min(7, ids.shape[1]), 2)
    states = [sized(one, torch.randn, 5) for one in head.held]
    growing = ({} if one.grows is None else {one.grows: dims[PAST]} for one in head.held)
    axes = ({1: dims[SEQ]}, {0: dims[KEPT]}, *growing)
    inputs = [Input(TEXT, (1, SEQ)), Input(KEEP, (KEPT,), low=0, high=max_seq - 1)]
    inputs += [Input(one.name, tuple(PAST if n == 0 else n for n in one.shape)) for one in head.held]
    sample = (ids[:, :cut], torch.arange(3) % cut, *states)
    program = program_of(head, Inputs(tuple(inputs), (), bounds), sample, axes)
    names = [one.name for one in head.held]
    graph = to_graph(program, inputs, (LOGITS, *names), bounds, ROOT, corners=corners(bounds))
    made = {one.name: partial(state_of, one) for one in head.held}
    return with_states(graph, made, made)


def corners(bounds: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    """Past and new tokens together are no more than a sequence may have: the runtime refuses others."""
    most, least = bounds[SEQ][1], {KEPT: 1, SEQ: 1, **({PAST: 0} if PAST in bounds else {})}
    ends = [{SEQ: 1}, {SEQ: most}, *([{PAST: most - 1}] if PAST in bounds else [])]
    return [{**least, **end, KEPT: kept} for end in ends for kept in (1, most)]


def program_of(head: Any, inputs: Inputs, sample: tuple[Any, ...], axes: tuple[Any, ...]) -> Any:
    """torch.export of the head; what torch cannot prove of its sizes is tried, as `program.export` does."""
    from llmc.compiler.frontends.program import asserted
    from llmc.compiler.frontends.tracing import is_unproved, trace

    joint = Joint((PAST, SEQ), inputs.bounds[SEQ][1])  # the runtime refuses a longer sequence
    try:
        with torch.no_grad():
            return trace(head, sample, axes, joint=joint)
    except LlmcError as error:
        found = asserted(head, inputs, sample, axes, joint) if is_unproved(error) else None
        if found is None or found[1].bounds != inputs.bounds:
            raise
        return found[0]


def sized(one: Held, make: Callable[[tuple[int, ...]], Any], tokens: int) -> Any:
    return make(tuple(tokens if n == 0 else n for n in one.shape))


def with_states(graph: Graph, made: Mapping[str, Callable[[Node], Node]], updated: Iterable[str]) -> Graph:
    """Inputs that are states by their names -> states, and outputs of these names their next values.

    Args:
        made: name -> the state that stands for an input.
        updated: the names of those that have a next value.
    """
    states = {node: made[name](node) for node in graph.inputs if (name := node.attributes["name"]) in made}
    swapped = graph.replace(lambda node: states.get(node, node))
    return replace(
        swapped,
        inputs=tuple(node for node in graph.inputs if node not in states),
        outputs={LOGITS: swapped.outputs[LOGITS]},
        states=tuple(states.values()),
        updates={name: swapped.outputs[name] for name in updated},
    )


def state_of(one: Held, node: Node) -> Node:
    shape = tuple(symbol(PAST) if n == 0 else n for n in one.shape)
    return state_(one.name, node.dtype, shape, grows=one.grows)


def want_same(
    graph: Graph,
    ids: Any,
    wanted: Mapping[str, Any],
    at: str,
    states: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuse a graph that computes something else than the model, call by call.

    Args:
        ids: tokens i64 [1, n].
        wanted: the logits of all of them, as transformers computes them.
        states: what is held before.

    Raises:
        LlmcError: it does.
    """
    from llmc.compiler.interpret import step

    found = []
    for part in calls(ids.shape[1]):
        given = {TEXT: ids[:, part].numpy(), KEEP: np.arange(part.stop - part.start)}
        outputs, states = step(graph, given, states)
        found.append(outputs[LOGITS])
    _, away = reference.farthest({LOGITS: np.concatenate(found, 1)}, wanted, {})
    if away > reference.TOLERANCE:
        raise LlmcError(
            "the imported graph computes other logits, token by token, than transformers for the whole text",
            at=at,
            found=f"off by {away:.2g} of the largest of {ids.shape[1]} tokens",
            hint="this is a fault of llmc's import: please report it with config.json",
        )
