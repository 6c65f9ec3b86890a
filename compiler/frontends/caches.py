"""What a decoder of transformers keeps between two calls: its cache, as tensors that come in and go out.

A cache is layers with tensors in them. Which of them grow with every token is found by trying: the model is run on two
prompts, one of them a token longer. Layers with a sliding window are held whole here; the window is in the mask.
"""

from __future__ import annotations

import inspect as signatures
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from llmc.compiler.frontends.report import UnsupportedError

_PARAMETERS = ("past_key_values", "cache_params")
_PARTS = ("keys", "values")


@dataclass(frozen=True)
class Held:
    """One tensor of a cache.

    Args:
        layer: number of the layer of the cache.
        part: "keys" or "values".
        shape: its sizes [1, heads, tokens, features], 0 for the axis that grows.
    """

    layer: int
    part: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the state."""
        return f"layers.{self.layer}.{self.part}"

    @property
    def grows(self) -> int:
        """The axis of tokens."""
        return self.shape.index(0)


class Grown(DynamicLayer):  # type: ignore[misc]  # transformers says nothing of types
    """A layer of a cache that holds `keys` and `values`, maybe of no token, and gets longer.

    transformers' own asks whether it is empty, which torch.export would take as settled by the sample.
    """

    def __init__(self, keys: Any, values: Any) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def get_seq_length(self) -> Any:
        """How many tokens it holds."""
        return self.keys.shape[-2]

    def get_mask_sizes(self, query_length: Any) -> tuple[Any, int]:
        """Keys there will be, and the number of the first of them."""
        return self.keys.shape[-2] + query_length, 0


def parameter_of(model: Any) -> str:
    """The argument of `forward` that is the cache.

    Raises:
        UnsupportedError: there is none.
    """
    takes = signatures.signature(model.forward).parameters
    for name in _PARAMETERS:
        if name in takes:
            return name
    raise UnsupportedError(f"{type(model).__name__} takes no cache", "")


def filled(held: Sequence[Held], tensors: Sequence[Any]) -> Any:
    """A cache that holds these tensors, one for each of `held`."""
    by_layer: dict[int, dict[str, Any]] = {}
    for one, tensor in zip(held, tensors, strict=True):
        by_layer.setdefault(one.layer, {})[one.part] = tensor
    cache: Any = DynamicCache()
    cache.layer_class_to_replicate = None  # all layers are there
    cache.layers = [Grown(**by_layer[number]) for number in sorted(by_layer)]
    return cache


def parts_of(cache: Any, held: Sequence[Held]) -> list[Any]:
    """The tensors of a cache, in the order of `held`."""
    return [getattr(cache.layers[one.layer], one.part) for one in held]


def held_by(model: Any) -> tuple[Held, ...]:
    """What the model's cache holds after a prompt.

    Raises:
        UnsupportedError: it keeps something else than keys and values, one for each token.
    """
    name = parameter_of(model)
    short, long = (_after(model, name, tokens) for tokens in (3, 4))
    found: list[Held] = []
    for number, (before, after) in enumerate(zip(short, long, strict=True)):
        _want_plain(before, number)
        for part in _PARTS:
            old, new = (tuple(getattr(layer, part).shape) for layer in (before, after))
            found.append(Held(number, part, _grown(number, old, new)))
    if not found:
        raise UnsupportedError("its cache stays empty", "")
    return tuple(found)


def _after(model: Any, name: str, tokens: int) -> list[Any]:
    """The layers of a new cache after a prompt of so many tokens."""
    cache: Any = DynamicCache()
    ids = torch.ones((1, tokens), dtype=torch.long)
    with torch.no_grad():
        result = model(input_ids=ids, use_cache=True, return_dict=True, **{name: cache})
    same = getattr(result, name, None) is cache
    if not same:
        raise UnsupportedError(f"{type(model).__name__} keeps a cache of its own kind", "")
    return list(cache.layers)


def _want_plain(layer: Any, number: int) -> None:
    keeps = [name for name, value in vars(layer).items() if isinstance(value, torch.Tensor)]
    if type(layer) is not DynamicLayer or sorted(keeps) != sorted(_PARTS):
        kind = type(layer).__name__
        raise UnsupportedError(f"layer {number} of its cache is a {kind}, not keys and values alone", "")


def _grown(number: int, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(0 if a != b else a for a, b in zip(before, after, strict=True))
    if shape.count(0) != 1 or len(shape) != 4 or shape[2] != 0 or shape[0] != 1:
        raise UnsupportedError(f"layer {number} of its cache goes from {before} to {after} by one token", "")
    return shape
