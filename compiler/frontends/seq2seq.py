"""An encoder-decoder as two functions: `encode` reads the source once, `step` makes the text token by token.

What `encode` leaves for `step` are the keys and values that each layer of the decoder has for the source: states as
long as the source, which `step` reads and never changes. Its own keys and values grow, as a decoder's do (`stepping`).
Both are checked by transformers' own numbers for source and text at once, without a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from llmc.compiler.dims import Dim, evaluate, symbol
from llmc.compiler.frontends import cross_attention, forward, long_tables, program, reference
from llmc.compiler.frontends.heads import ROOT
from llmc.compiler.frontends.implementations import choose
from llmc.compiler.frontends.inputs import KEEP, TEXT, Input, Inputs
from llmc.compiler.frontends.masks import ADDED
from llmc.compiler.frontends.seq2seq_parts import SOURCE, EncodeHead, Part, Parts, StepHead
from llmc.compiler.frontends.stepping import (
    KEPT,
    LOGITS,
    MORE,
    PAST,
    SEQ,
    STEP,
    calls,
    program_of,
    want_same,
    with_states,
)
from llmc.compiler.frontends.torch_export import to_graph
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make, state_
from llmc.errors import LlmcError

ENCODE, HIDDEN = "encode", "last_hidden_state"
WAYS = (cross_attention.UNPADDED, ADDED, "sdpa", "eager")
_SOURCE = 13  # tokens of the source that functions are checked with


def functions(model: Any, parts: Parts, at: str, whole: Callable[[Any, Any], Any]) -> dict[str, Graph]:
    """The graphs of `encode` and `step`.

    Args:
        model: with transformers' own attention, which it loses.
        at: its config.json.
        whole: source, tokens i64 [1, n] -> logits of all of them, as transformers computes them without a cache.

    Raises:
        UnsupportedError, LlmcError: as `huggingface.load`.
    """
    cross_attention.register()
    most = max(high for _, high in parts.bounds.values())
    source, ids = _source(model, parts), _text(model, parts)
    wanted = {LOGITS: whole(source, ids)}
    encode, step = EncodeHead(model, parts).eval(), StepHead(model, parts).eval()
    choose(model, lambda: _played(encode, step, source, ids), wanted, {}, most, WAYS)
    forward.whole(model)
    forward.one_pass(model, most)
    encoding = _encode(encode, source, at)
    made = {ENCODE: encoding, STEP: _step(step, ids, encoding)}
    _want_same(made, source, ids, wanted, at)
    return made


def _source(model: Any, parts: Parts) -> Any:
    axes = tuple(SEQ if axis == SOURCE else axis for axis in parts.source.axes)
    bounds = {SEQ if parts.span == SOURCE else parts.span: parts.bounds[parts.span]} if parts.span else {}
    values = _drawn(model, replace(parts.source, axes=axes), bounds, _SOURCE)
    return torch.from_numpy(values)


def _text(model: Any, parts: Parts) -> Any:
    """A text i64 [1, n] as the decoder begins one."""
    count = reference.SIZES[SEQ] + sum(MORE)
    ids = torch.from_numpy(_drawn(model, Input(TEXT, (1, SEQ)), {SEQ: parts.bounds[SEQ]}, count))
    ids[0, 0] = parts.start
    return ids


def _drawn(model: Any, given: Input, bounds: Mapping[str, tuple[int, int]], count: int) -> Any:
    """Values of an input, `count` tokens of them where it has tokens."""
    sizes = {**reference.SIZES, SEQ: count}
    return reference.sample(Inputs((given,), (), bounds), model.config, sizes)[given.name]


def _played(encode: EncodeHead, step: StepHead, source: Any, ids: Any) -> dict[str, Any]:
    """All logits of a text, call by call."""
    own, found = step.parts.nothing(), []
    with torch.no_grad():
        _, *cross = encode(source)
        for part in calls(ids.shape[1]):
            logits, *own = step(ids[:, part], torch.arange(part.stop - part.start), *own, *cross)
            found.append(logits.numpy())
    return {LOGITS: np.concatenate(found, 1)}


def _encode(head: EncodeHead, source: Any, at: str) -> Graph:
    parts = head.parts
    inputs = Inputs((parts.source,), (), {parts.span: parts.bounds[parts.span]} if parts.span else {})
    traced, inputs = _encoding(head, inputs, source, at)
    graph = to_graph(traced, [parts.source], (HIDDEN, *_names(parts.cross)), inputs.bounds, ROOT)
    updates = {name: graph.outputs[name] for name in _names(parts.cross)}
    lengths = _lengths(parts, graph)
    states = [part.state(updates[part.name].dtype, lengths) for part in parts.cross]
    for known in _known(parts):
        states.append(known)
        updates[known.attributes["name"]] = make("full", (), shape=known.shape, value=0, dtype=known.dtype)
    return replace(graph, outputs={HIDDEN: graph.outputs[HIDDEN]}, states=tuple(states), updates=updates)


def _encoding(head: EncodeHead, inputs: Inputs, source: Any, at: str) -> tuple[Any, Inputs]:
    """The program of an encoder, and the bounds within which it holds: convolutions take no short sound."""
    if head.parts.span not in (None, SOURCE):
        return program.export(head, inputs, head.model.config, at)
    moving = {axis: name for axis, name in enumerate(inputs.given[0].axes) if isinstance(name, str)}
    try:
        return _traced(head, inputs, (source,), [moving]), inputs
    except LlmcError as error:
        if head.parts.span is None or not isinstance(error.__cause__, TypeError):
            raise
    head.masked = True
    return _traced(head, inputs, (source,), [moving]), inputs


def _lengths(parts: Parts, encoding: Graph) -> dict[str, Dim]:
    """How many vectors the encoder makes of a source, where that is not the number of its tokens."""
    if parts.span in (None, SOURCE):
        return {}
    return {SOURCE: encoding.outputs[HIDDEN].shape[1]}


def _known(parts: Parts) -> list[Node]:
    """A state as long as a sound, by which `step` knows of how many samples or frames it was."""
    if parts.span in (None, SOURCE):
        return []
    return [state_(f"source.{parts.span}", "bool", (symbol(parts.span),))]


def _step(head: StepHead, ids: Any, encoding: Graph) -> Graph:
    parts, cut = head.parts, max(min(7, ids.shape[1]), 2)
    held, lengths = (*parts.own, *parts.cross), _lengths(parts, encoding)
    dims = {**parts.bounds, **encoding.dims}
    bounds = {n: b for n, b in dims.items() if n != parts.span or n == SOURCE}
    if lengths:
        ends = [{str(parts.span): end} for end in dims[str(parts.span)]]
        bounds[SOURCE] = (evaluate(lengths[SOURCE], ends[0]), evaluate(lengths[SOURCE], ends[1]))
    sizes = {PAST: min(5, bounds[PAST][1]), SOURCE: min(6, bounds.get(SOURCE, (1, 6))[1])}
    states = [torch.randn(part.sized(**sizes)) for part in held]
    sample = (ids[:, :cut], torch.arange(3) % cut, *states)
    inputs = [Input(TEXT, (1, SEQ)), Input(KEEP, (KEPT,), low=0, high=bounds[SEQ][1] - 1)]
    inputs += [Input(part.name, part.shape) for part in held]
    moving = [{1: SEQ}, {0: KEPT}, *(part.moving for part in held)]
    traced = _traced(head, Inputs(tuple(inputs), (), bounds), sample, moving)
    graph = to_graph(traced, inputs, (LOGITS, *_names(parts.own)), dims, ROOT, computed=lengths)
    made: dict[str, Callable[[Node], Node]] = {part.name: _state_of(part, lengths) for part in held}
    graph = with_states(graph, made, _names(parts.own))
    return replace(graph, states=(*graph.states, *_known(parts)))


def _names(parts: Sequence[Part]) -> list[str]:
    return [part.name for part in parts]


def _traced(head: Any, inputs: Inputs, sample: tuple[Any, ...], moving: Sequence[Mapping[int, str]]) -> Any:
    from llmc.compiler.frontends.tracing import is_unproved, trace

    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in inputs.bounds.items()}
    axes = tuple({axis: dims[name] for axis, name in named.items()} for named in moving)
    with torch.no_grad():
        try:
            return trace(head, sample, axes)
        except LlmcError as error:
            if not is_unproved(error) or not isinstance(head, StepHead):
                raise
        if _has_grown(head):
            return trace(head, sample, axes)
        with long_tables.endless(head.model):
            return program_of(head, inputs, sample, axes)


def _has_grown(head: StepHead) -> bool:
    """Whether a step can be run at a place beyond all bounds: models that make tables of positions make them longer.

    What is traced then reads a table that is long enough for every sum of sizes that torch thinks of. A table that
    has been trained, and is another when it is made longer, stays as it is.
    """
    parts = head.parts
    past, source = 2 * parts.bounds[PAST][1], parts.bounds.get(SOURCE, (1, 1))[0]
    held = [torch.zeros(part.sized(past=past, source=source)) for part in (*parts.own, *parts.cross)]
    tables = _tables(head)
    try:
        head(torch.tensor([[parts.start]]), torch.tensor([0]), *held)
    except Exception:  # whatever a model raises that has no such place
        return False
    longer = {key: table for key, table in _tables(head).items() if table is not tables.get(key)}
    if all(torch.equal(table[: len(tables[key])], tables[key]) for key, table in longer.items()):
        return True
    for module, name in longer:
        setattr(module, name, tables[module, name])
    return False


def _tables(head: StepHead) -> dict[tuple[Any, str], Any]:
    """Weights and buffers by module and name."""
    return {
        (module, name): table
        for module in head.modules()
        for name, table in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }


def _state_of(part: Part, lengths: Mapping[str, Dim]) -> Callable[[Node], Node]:
    return lambda node: part.state(node.dtype, lengths)


def _want_same(made: Mapping[str, Graph], source: Any, ids: Any, wanted: Mapping[str, Any], at: str) -> None:
    """Refuse graphs that compute something else than the model, call by call.

    Raises:
        LlmcError: they do.
    """
    from llmc.compiler.interpret import step

    name = made[ENCODE].inputs[0].attributes["name"]
    _, states = step(made[ENCODE], {name: source.numpy()}, {})
    want_same(made[STEP], ids, wanted, at, states)
