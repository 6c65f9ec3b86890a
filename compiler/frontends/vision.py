"""A model of images and text as two functions: `see` makes rows of images, `step` reads tokens, some of which are rows.

`see` leaves its rows in states that `step` reads and never changes. The image tokens of a text take them one after the
other: how many have come before is counted along with what is held of each token, so a prompt may be cut anywhere, and
a next token reads no row. Image tokens for which there is no row are tokens like all others, as in transformers.
Both functions are checked by transformers' own numbers for images and text at once, without a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    seeing,
    stepping,
)
from llmc.compiler.frontends import step_attention as step_attentions
from llmc.compiler.frontends.caches import Held
from llmc.compiler.frontends.eyes import COUNTED, MARKS, PLACES, SEEN, Eyes
from llmc.compiler.frontends.heads import ROOT
from llmc.compiler.frontends.implementations import choose
from llmc.compiler.frontends.inputs import KEEP, TEXT, Input, Inputs
from llmc.compiler.frontends.masks import ADDED
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.frontends.stepping import KEPT, LOGITS, PAST, SEQ, STEP
from llmc.compiler.frontends.torch_export import to_graph
from llmc.compiler.frontends.tracing import trace
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import state_

SEE, HIDDEN = "see", "image_embeds"
_WAYS = (step_attentions.STEP, ADDED, "sdpa", "eager")
_LOOKS = ("sdpa", "eager")
_TEXT = (3, 2, 9)  # tokens before, between and behind the images of a sample
_COUNT = Held(None, MARKS, (0,))


class StepHead(nn.Module):
    """`forward(input_ids, logits_to_keep, *held, marks, *seen)` -> logits, what is held then, marks.

    Args:
        eyes: of the model; what they give is `seen`: rows, their count and maybe places.
        held: what the model's cache holds.
    """

    def __init__(self, eyes: Eyes, held: Sequence[Held]) -> None:
        super().__init__()
        self.eyes, self.model, self.held = eyes, eyes.model, tuple(held)
        self.name = caches.parameter_of(self.model)

    def forward(self, *values: Any) -> tuple[Any, ...]:
        ids, kept, *tensors = values
        held, (marks, rows, counted, *places) = tensors[: len(self.held)], tensors[len(self.held) :]
        cache = caches.filled(self.held, held)
        are, row = self._rows(ids, marks, counted)
        rows = rows.flatten(0, 1)
        at = torch.minimum(row.clamp(min=0), torch.full_like(row, rows.shape[0] - 1)).long()
        seen = torch.nn.functional.embedding(at, rows)
        words = self.model.get_input_embeddings()(torch.where(are, 0, ids[0]) if self._is_beyond else ids[0])
        embeds = torch.where(are[:, None], seen, words)
        new = self._marked(are, row)
        options = self._placed(are.float(), at, row + 1, marks, places)
        if self.eyes.together:
            seeing.groups.set(self._groups(new, marks))
            embeds = self._whole(embeds, are, row)
        with scans.from_zeros():
            result = self.model(
                inputs_embeds=embeds[None],
                use_cache=True,
                return_dict=True,
                **{KEEP: kept, self.name: cache},
                **options,
            )
        return result.logits, *caches.parts_of(cache, self.held), torch.cat([marks, new])

    @property
    def _is_beyond(self) -> bool:
        """Whether the token of images has no row in the table of words."""
        return bool(self.eyes.token >= self.model.get_input_embeddings().weight.shape[0])

    def _rows(self, ids: Any, marks: Any, counted: Any) -> tuple[Any, Any]:
        """Which tokens are rows of images, and the row of each; of others that of the last before."""
        are = ids[0] == self.eyes.token
        row = (marks > 0).float().sum() + are.float().cumsum(0) - 1
        return are & (row < counted), row

    def _marked(self, are: Any, row: Any) -> Any:
        """What is held of each token: 0 of a word, else the number of its image, or of all of them 1."""
        number = self.eyes.groups(row) if self.eyes.together == "image" else torch.ones_like(row)
        return torch.where(are, number, 0.0)

    def _placed(
        self, marks: Any, at: Any, counted: Any, before: Any, places: Sequence[Any]
    ) -> dict[str, Any]:
        if not places:
            return {}
        return {"position_ids": self.eyes.positions(marks, at, counted, before.shape[0], places[0])}

    def _groups(self, new: Any, marks: Any) -> Any:
        if self.eyes.together == "image":
            return torch.cat([marks, new])
        first = (torch.ones_like(marks).sum() == 0).float()  # a prompt is run at once
        return torch.cat([torch.zeros_like(marks), torch.ones_like(new) * first])

    def _whole(self, embeds: Any, are: Any, row: Any) -> Any:
        """No numbers where an image is cut: its first tokens have not seen the others."""
        if self.eyes.together == "prompt":
            return embeds
        cut = are[:1] & (row[:1] % self.eyes.tokens != 0)
        return torch.where(cut[:, None], float("nan"), embeds)


def functions(
    eyes: Eyes, max_seq: int, at: str, whole: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Graph]:
    """The graphs of `see` and `step`.

    Args:
        eyes: of a model with transformers' own attention, which it loses.
        max_seq: how many tokens a text may have.
        at: its config.json.
        whole: what transformers' forward takes -> logits of all tokens, as it computes them without a cache.

    Raises:
        UnsupportedError, LlmcError: as `huggingface.load`.
    """
    seeing.register()
    step_attentions.register()
    model, values = eyes.model, eyes.sample()
    ids = text(eyes, values, max_seq)
    prompt = next(stepping.calls(ids.shape[1])).stop
    wanted = {LOGITS: whole(eyes.asked(ids, values, prompt))}
    eyes.prepare()
    with torch.no_grad():
        rows = {str(i): part.numpy() for i, part in enumerate(eyes(*values))}
    head = StepHead(eyes, _held(model)).eval()
    _look(eyes, values, rows, max_seq)
    ways = (seeing.TOGETHER, "eager") if eyes.together else _WAYS
    seen = [torch.from_numpy(part) for part in rows.values()]
    choose(_reader(model), functools.partial(_played, head, ids, seen), wanted, {}, max_seq, ways)
    forward.whole(model)
    forward.one_pass(model, max_seq)
    see = _see(eyes)
    with torch.no_grad():
        traced = eyes(*eyes.traced())
    with long_tables.endless(model):
        made = {SEE: see, STEP: _step(head, ids, traced, max_seq)}
    _want_same(made, eyes, values, ids, wanted, at)
    return made


def _reader(model: Any) -> Any:
    """The part that reads text, and that asks its own configuration how."""
    inner = model.model
    found = next(getattr(inner, n) for n in ("language_model", "text_model") if hasattr(inner, n))
    return found


def _held(model: Any) -> tuple[Held, ...]:
    found = stepping.held_of(model)
    if not found or any(one.grows is None for one in found):
        raise UnsupportedError("its cache is more than keys and values of each token", "")
    return found


def text(eyes: Eyes, values: tuple[Any, ...], max_seq: int) -> Any:
    """Tokens i64 [1, n] with the images of a sample."""
    spans = eyes.spans(values)
    words = [*_TEXT[: len(spans)], _TEXT[-1]]
    drawn = Inputs((Input(TEXT, (1, SEQ)),), (), {SEQ: (1, max_seq)})
    count = sum(words) + sum(spans)
    if count > max_seq:
        raise UnsupportedError(f"an image of {spans[0]} tokens leaves no room in {max_seq}", "")
    sizes = {**reference.SIZES, SEQ: count}
    ids = reference.sample(drawn, eyes.model.config, sizes)[TEXT]
    ids = np.where(ids == eyes.token, (ids + 1) % 2 if eyes.token > 1 else 2, ids)
    at = 0
    for before, span in zip(words, spans, strict=False):
        at += before
        ids[0, at : at + span] = eyes.token
        at += span
    return torch.from_numpy(ids)


def _look(eyes: Eyes, values: Any, wanted: Mapping[str, Any], max_seq: int) -> None:
    """The first way of attention for the parts that see that is right."""

    def run() -> dict[str, Any]:
        with torch.no_grad():
            return {str(i): part.numpy() for i, part in enumerate(eyes(*values))}

    for part in eyes.vision:
        if hasattr(part, "config"):
            choose(part, run, wanted, {}, max_seq, _LOOKS)


def _played(head: StepHead, ids: Any, seen: Sequence[Any]) -> dict[str, Any]:
    """All logits of a text, call by call."""
    held = [torch.zeros(one.shape) for one in (*head.held, _COUNT)]
    found = []
    with torch.no_grad(), exporters.scanned():
        for part in stepping.calls(ids.shape[1]):
            logits, *held = head(ids[:, part], torch.arange(part.stop - part.start), *held, *seen)
            found.append(logits.numpy())
    return {LOGITS: np.concatenate(found, 1)}


def _names(seen: Sequence[Any]) -> list[str]:
    return [SEEN, COUNTED, PLACES][: len(seen)]


def _see(eyes: Eyes) -> Graph:
    values = eyes.traced()
    dims = {eyes.dim: torch.export.Dim(eyes.dim, min=eyes.bounds[0], max=eyes.bounds[1])}
    axes = tuple({0: dims[eyes.dim]} for _ in eyes.inputs)
    with torch.no_grad():
        program = trace(eyes, values, axes)
        names = _names(eyes(*values))
    graph = to_graph(program, eyes.inputs, names, {eyes.dim: eyes.bounds}, ROOT)
    states = tuple(state_(name, graph.outputs[name].dtype, graph.outputs[name].shape) for name in names)
    return replace(graph, outputs={HIDDEN: graph.outputs[SEEN]}, states=states, updates=dict(graph.outputs))


def _step(head: StepHead, ids: Any, seen: Sequence[Any], max_seq: int) -> Graph:
    eyes, held = head.eyes, (*head.held, _COUNT)
    bounds = {SEQ: (1, max_seq), KEPT: (1, max_seq), PAST: (0, max_seq), eyes.dim: eyes.bounds}
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items()}
    moving = [{} if len(part.shape) == 1 and part.shape[0] == 1 else {0: dims[eyes.dim]} for part in seen]
    axes = ({1: dims[SEQ]}, {0: dims[KEPT]}, *({one.grows: dims[PAST]} for one in held), *moving)
    states = [*(stepping.sized(one, torch.randn, 5) for one in head.held), torch.zeros(5)]
    inputs = [
        Input(TEXT, (1, SEQ), low=0, high=_largest(head)),
        Input(KEEP, (KEPT,), low=0, high=max_seq - 1),
    ]
    inputs += [Input(one.name, tuple(PAST if n == 0 else n for n in one.shape)) for one in held]
    names = [one.name for one in held]
    for name, part, moves in zip(_names(seen), seen, moving, strict=True):
        inputs.append(Input(name, tuple(eyes.dim if i in moves else n for i, n in enumerate(part.shape))))
    sample = (ids[:, :7], torch.arange(3), *states, *seen)
    program = stepping.program_of(head, Inputs(tuple(inputs), (), bounds), sample, axes)
    corners = [{**c, eyes.dim: n} for c in stepping.corners(_without(bounds, eyes.dim)) for n in eyes.bounds]
    graph = to_graph(program, inputs, (LOGITS, *names), bounds, ROOT, corners=corners)
    made: dict[str, Callable[[Node], Node]] = {
        one.name: functools.partial(stepping.state_of, one) for one in held
    }
    made |= {name: functools.partial(_read, name, eyes.dim) for name in _names(seen)}
    return stepping.with_states(graph, made, names)


def _largest(head: StepHead) -> int:
    """The largest number that is a token's."""
    return max(int(head.model.get_input_embeddings().weight.shape[0]) - 1, head.eyes.token)


def _without(bounds: Mapping[str, tuple[int, int]], name: str) -> dict[str, tuple[int, int]]:
    return {n: bound for n, bound in bounds.items() if n != name}


def _read(name: str, dim: str, node: Node) -> Node:
    return state_(name, node.dtype, (symbol(dim), *node.shape[1:]) if name != COUNTED else node.shape)


def _want_same(made: Mapping[str, Graph], eyes: Eyes, values: Any, ids: Any, wanted: Any, at: str) -> None:
    """Refuse graphs that compute something else than the model, call by call.

    Raises:
        LlmcError: they do.
    """
    from llmc.compiler.interpret import step

    given = {one.name: value.numpy() for one, value in zip(eyes.inputs, values, strict=True)}
    _, states = step(made[SEE], given, {})
    stepping.want_same(made[STEP], ids, wanted, at, states)
