"""What an encoder-decoder of transformers is made of: its encoder, its decoder, and what the decoder's cache holds.

A decoder holds keys and values of its own tokens, which grow, and of the source, which stay. Which axis is whose is
found by trying two texts and two sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from llmc.compiler.dims import Dim, symbol
from llmc.compiler.frontends import caches
from llmc.compiler.frontends.inputs import TEXT, Input
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.frontends.stepping import KEPT, PAST, SEQ
from llmc.compiler.graph import Node
from llmc.compiler.ops import state_
from llmc.errors import first_line

SOURCE = "source"
_KINDS = {"layers": "self_attention_cache", "cross": "cross_attention_cache"}
_PARTS = ("keys", "values")
_TOKENS = 2  # the axis of keys and values that tokens are along
_SHORT, _LONG = 3, 8  # tokens of two sources
_PAST_MASK = "decoder_causal_mask"


@dataclass(frozen=True)
class Part:
    """One tensor of a cache.

    Args:
        kind: "layers": of the decoder's own tokens; "cross": of the source.
        layer: number of the layer.
        part: "keys" or "values".
        shape: its sizes [1, heads, tokens, features], a name for one that is not fixed.
        key: None: the part is a tensor (`caches`).
    """

    kind: str
    layer: int
    part: str
    shape: tuple[str | int, ...]
    key: None = None

    @property
    def name(self) -> str:
        """Of the state."""
        return f"{self.kind}.{self.layer}.{self.part}"

    @property
    def moving(self) -> dict[int, str]:
        """Axis -> name, of those that are not fixed."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """Its shape at these sizes of the dims."""
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)

    def state(self, dtype: str, computed: Mapping[str, Dim] = MappingProxyType({})) -> Node:
        """Of the graph; `computed` are sizes that follow from dims."""
        sizes = (computed.get(n, symbol(n)) if isinstance(n, str) else n for n in self.shape)
        shape: tuple[Dim, ...] = tuple(sizes)
        return state_(self.name, dtype, shape, grows=_TOKENS if PAST in self.shape else None)


@dataclass(frozen=True)
class Parts:
    """All of it.

    Args:
        source: the encoder's input; the axis of a text is `SOURCE`, of sound it has a name of its own.
        bounds: of the dims of source, step and states.
        own, cross: what the cache holds.
        width: of the encoder's vectors.
        start: the token that the decoder begins with.
    """

    source: Input
    bounds: Mapping[str, tuple[int, int]]
    own: tuple[Part, ...]
    cross: tuple[Part, ...]
    width: int
    start: int

    @property
    def span(self) -> str | None:
        """The axis of the source whose size is open."""
        return span_of(self.source)

    def nothing(self) -> list[Any]:
        """What is held of the decoder's own tokens at first."""
        return [torch.zeros(part.sized(past=0)) for part in self.own]


def span_of(source: Input) -> str | None:
    """The axis of a source whose size is open."""
    return next((axis for axis in source.axes if isinstance(axis, str)), None)


class Encoded(BaseModelOutput):  # type: ignore[misc]  # transformers says nothing of types
    """What an encoder gives: its vectors, and of all else that models look for, such as the choice of experts, None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def masked(model: Any) -> None:
    """A decoder that is told which tokens are the past, as FSMT's, and is not told with a cache, is told then too."""
    decoder = model.get_decoder()
    if _PAST_MASK in signature(decoder.forward).parameters:
        decoder.register_forward_pre_hook(_with_past, with_kwargs=True)


def _with_past(decoder: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    cache = named.get("past_key_values")
    if named.get(_PAST_MASK) is not None or cache is None:
        return given, named
    past, tokens = cache.get_seq_length(), given[0].shape[1]
    hidden = torch.arange(past + tokens)[None] > torch.arange(tokens)[:, None] + past
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    return given, {**named, _PAST_MASK: mask}


def encoded(model: Any, source: Any, masked: bool = False) -> Any:
    """The encoder's vectors [1, source, width]; `masked`: it is told that all tokens are the source's."""
    given = {"attention_mask": torch.ones(source.shape[:2], dtype=torch.long)} if masked else {}
    return model.get_encoder()(source, return_dict=True, **given).last_hidden_state


def decoded(model: Any, hidden: Any, ids: Any, cache: Any) -> Any:
    """What the decoder makes of tokens."""
    given = {"encoder_outputs": Encoded(last_hidden_state=hidden), "decoder_input_ids": ids}
    return model(**given, past_key_values=cache, use_cache=True, return_dict=True)


class Unset(DynamicLayer):  # type: ignore[misc]  # transformers says nothing of types
    """A layer of a cache that holds nothing, and then what it is given."""

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Hold these."""
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states

    def get_seq_length(self) -> int:
        """None: the decoder is to compute what it needs."""
        return 0


def unset(layers: int) -> Any:
    """A cache of such layers."""
    cache: Any = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [Unset() for _ in range(layers)]
    return cache


class EncodeHead(nn.Module):
    """`forward(source)` -> the encoder's vectors, and the decoder's keys and values of them.

    Attributes:
        masked: whether the encoder is given a mask, which some make themselves only where they are not traced.
    """

    masked = False

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.model, self.parts = model, parts
        self.register_buffer("start", torch.tensor([[parts.start]]), persistent=False)

    def forward(self, source: Any) -> tuple[Any, ...]:
        hidden = encoded(self.model, source, self.masked)
        own = caches.filled(self.parts.own, self.parts.nothing())  # type: ignore[arg-type]  # it reads layer and part
        cross = unset(len(own.layers))
        decoded(self.model, hidden, self.start, EncoderDecoderCache(own, cross))
        return hidden, *_tensors(cross, self.parts.cross)


class StepHead(nn.Module):
    """`forward(input_ids, logits_to_keep, *own, *cross)` -> logits of the tokens asked for, and what is held then."""

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.model, self.parts = model, parts

    def forward(self, *values: Any) -> tuple[Any, ...]:
        ids, kept, *tensors = values
        count = len(self.parts.own)
        own = caches.filled(self.parts.own, tensors[:count])  # type: ignore[arg-type]
        cross = caches.filled(self.parts.cross, tensors[count:])  # type: ignore[arg-type]
        hidden = torch.zeros(
            1, tensors[count].shape[_TOKENS], self.parts.width
        )  # but its length, none of it is read
        result = decoded(self.model, hidden, ids, EncoderDecoderCache(own, cross))
        return result.logits[:, kept], *_tensors(own, self.parts.own)


def _tensors(cache: Any, parts: Sequence[Part]) -> list[Any]:
    return [getattr(cache.layers[part.layer], part.part) for part in parts]


def parts_of(model: Any, source: Input, bounds: Mapping[str, tuple[int, int]], start: int) -> Parts:
    """What the model is made of.

    Args:
        bounds: of the source's open axis, where it has one, and of `SEQ`: the decoder's tokens.

    Raises:
        UnsupportedError: its decoder keeps something else than keys and values of tokens and of the source.
    """
    try:
        return _found(model, source, bounds, start)
    except UnsupportedError:
        raise
    except Exception as error:  # anything that a model of transformers raises
        raise UnsupportedError(f"its cache cannot be used: {first_line(error)}", "") from error


def _found(model: Any, source: Input, bounds: Mapping[str, tuple[int, int]], start: int) -> Parts:
    most = bounds[SEQ][1]
    span = span_of(source)
    low, high = bounds[span] if span else (1, 1)
    longer = min(max(_LONG, 2 * low), high)
    hidden, short = _after(model, _plain(source, min(max(_SHORT, low), longer)), 1, start)
    _, long = _after(model, _plain(source, longer), 2, start)
    kept = {
        kind: tuple(
            _part(kind, n, part, short, long)
            for n in range(len(short.self_attention_cache.layers))
            for part in _PARTS
        )
        for kind in _KINDS
    }
    for part in (*kept["layers"], *kept["cross"]):
        _want_plain(part, span is not None)
    if not kept["layers"]:
        raise UnsupportedError("its cache stays empty", "")
    dims = {**bounds, KEPT: (1, most), PAST: (0, most)}
    return Parts(source, dims, kept["layers"], kept["cross"], int(hidden.shape[2]), start)


def _plain(source: Input, tokens: int) -> Any:
    shape = tuple(tokens if isinstance(axis, str) else axis for axis in source.axes)
    return torch.ones(shape, dtype=torch.long) if source.name == TEXT else torch.zeros(shape)


def _after(model: Any, source: Any, tokens: int, start: int) -> tuple[Any, Any]:
    """The encoder's vectors, and the caches after so many tokens."""
    cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad():
        hidden = encoded(model, source)
        result = decoded(model, hidden, torch.full((1, tokens), start), cache)
    if getattr(result, "past_key_values", None) is not cache:
        raise UnsupportedError(f"{type(model).__name__} keeps a cache of its own kind", "")
    return hidden, cache


def _part(kind: str, number: int, part: str, short: Any, long: Any) -> Part:
    layers = [getattr(cache, _KINDS[kind]).layers[number] for cache in (short, long)]
    if any(type(layer) is not DynamicLayer for layer in layers):
        raise UnsupportedError(f"layer {number} of its cache is a {type(layers[0]).__name__}", "")
    before, after = (tuple(getattr(layer, part).shape) for layer in layers)
    name = SOURCE if kind == "cross" else PAST
    return Part(kind, number, part, tuple(name if a != b else a for a, b in zip(before, after, strict=True)))


def _want_plain(part: Part, has_length: bool) -> None:
    """Keys and values [1, heads, tokens, features]."""
    moves = [_TOKENS] if part.kind == "layers" or has_length else []
    if len(part.shape) != 4 or part.shape[0] != 1 or list(part.moving) != moves:
        raise UnsupportedError(f"{part.name} of its cache has the shape {part.shape}", "")
