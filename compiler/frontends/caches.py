"""What a decoder of transformers keeps between two calls: its cache, as tensors that come in and go out.

A cache is layers with tensors in them. Which of them grow with every token, and which keep their shape, is found by
trying: the model is run on two prompts, one of them a token longer. Layers with a sliding window are held whole here;
the window is in the mask.
"""

from __future__ import annotations

import inspect as signatures
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from llmc.compiler.frontends.cache_layers import Nothing, layer_of, plain, usable
from llmc.compiler.frontends.report import UnsupportedError

_PARAMETERS = ("past_key_values", "cache_params", "state")


@dataclass(frozen=True)
class Held:
    """One tensor of a cache.

    Args:
        layer: number of the layer of the cache; None where it is a list of tensors.
        part: the layer's attribute, such as "keys".
        index: of the tensor, where a layer has several of the kind; None where it has one.
        shape: its sizes, 0 for the axis that grows.
        key: of the tensor in the attribute, where that is a dictionary.
    """

    layer: int | None
    part: str
    shape: tuple[int, ...]
    index: int | None = None
    key: Any = None

    @property
    def name(self) -> str:
        """Of the state."""
        place = self.part if self.layer is None else f"layers.{self.layer}.{self.part}"
        return place if self.index is None else f"{place}.{self.index}"

    @property
    def grows(self) -> int | None:
        """The axis of tokens; None if the shape stays."""
        return self.shape.index(0) if 0 in self.shape else None


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
    if held[0].layer is None:
        return [tensor.clone() for tensor in tensors]  # models write into them
    by_layer: dict[int, dict[str, Any]] = {}
    for one, tensor in zip(held, tensors, strict=True):
        assert one.layer is not None
        parts = by_layer.setdefault(one.layer, {})
        if one.key is None:
            parts[one.part] = tensor
        else:
            parts.setdefault(one.part, {})[one.key] = tensor
    cache: Any = DynamicCache()
    cache.layer_class_to_replicate = None  # all layers are there
    cache.layers = [
        layer_of(by_layer[number]) if number in by_layer else Nothing() for number in range(max(by_layer) + 1)
    ]
    return cache


def parts_of(cache: Any, held: Sequence[Held]) -> list[Any]:
    """The tensors of a cache, in the order of `held`."""
    if isinstance(cache, list):
        return cache
    found = [getattr(cache.layers[one.layer], one.part) for one in held]
    return [part if one.key is None else part[one.key] for part, one in zip(found, held, strict=True)]


def held_by(model: Any) -> tuple[Held, ...]:
    """What the model's cache holds after a prompt.

    Raises:
        UnsupportedError: it keeps something that is not one tensor for all tokens, nor one for each.
    """
    name = parameter_of(model)
    if name == "state":
        return _listed(model)
    begin = _beginning(model, name)
    short, long = (_after(model, name, begin(), tokens) for tokens in (3, 4))
    found: list[Held] = []
    for number, (before, after) in enumerate(zip(short, long, strict=True)):
        found += _held_by_layer(number, before, after)
    if not found:
        raise UnsupportedError("its cache stays empty", "")
    return tuple(found)


def _listed(model: Any) -> tuple[Held, ...]:
    """What a model holds whose cache is a list of tensors."""
    ids = torch.ones((1, 3), dtype=torch.long)
    with torch.no_grad():
        short, long = (model(input_ids=i, use_cache=True, return_dict=True).state for i in (ids, ids[:, :2]))
    if [s.shape for s in short] != [s.shape for s in long]:
        raise UnsupportedError(f"{type(model).__name__} keeps a cache of its own kind", "")
    return tuple(Held(None, "state", tuple(s.shape), i, i) for i, s in enumerate(short))


def _beginning(model: Any, name: str) -> Callable[[], Any]:
    """Makes an empty cache that the model can use: of keys and values alone, or else as its configuration says."""

    def stated() -> Any:
        cache: Any = DynamicCache(config=model.config)
        cache.layers = [plain(layer) for layer in cache.layers]
        return cache

    try:
        _after(model, name, DynamicCache(), 3)
    except UnsupportedError:
        raise
    except Exception:  # whatever a model raises that looks for layers of another kind
        return stated
    return lambda: DynamicCache()


def _after(model: Any, name: str, cache: Any, tokens: int) -> list[Any]:
    """The layers of a cache after a prompt of so many tokens."""
    ids = torch.ones((1, tokens), dtype=torch.long)
    with torch.no_grad():
        result = model(input_ids=ids, use_cache=True, return_dict=True, **{name: cache})
    kept = getattr(
        result, name, None if hasattr(result, name) or not any(map(_tensors, cache.layers)) else cache
    )
    if kept is None:
        raise UnsupportedError(f"{type(model).__name__} keeps nothing from call to call", "")
    if kept is not cache:
        raise UnsupportedError(f"{type(model).__name__} keeps a cache of its own kind", "")
    return list(cache.layers)


def _held_by_layer(number: int, before: Any, after: Any) -> Iterator[Held]:
    old, new = _tensors(before), _tensors(after)
    if old.keys() != new.keys() or (old and not usable(before, {part for part, _ in old})):
        kind = type(before).__name__
        raise UnsupportedError(f"layer {number} of its cache is a {kind}, which is of no known kind", "")
    for part, key in old:
        several = sum(other == part for other, _ in old) > 1
        shapes = [tuple(tensors[part, key].shape) for tensors in (old, new)]
        yield Held(number, part, _grown(number, *shapes), key if several else None, key)


def _tensors(layer: Any) -> dict[tuple[str, Any], Any]:
    """The tensors of a layer, by attribute and, where that is a dictionary, by key."""
    found: dict[tuple[str, Any], Any] = {}
    for name, value in vars(layer).items():
        parts: Mapping[Any, Any] = value if isinstance(value, dict) else {None: value}
        found |= {(name, key): part for key, part in parts.items() if isinstance(part, torch.Tensor)}
    return found


def _grown(number: int, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(0 if a != b else a for a, b in zip(before, after, strict=True))
    by_one = all(a == b or (a, b) == (3, 4) for a, b in zip(before, after, strict=True))
    if shape.count(0) > 1 or not by_one or shape[0] != 1:
        raise UnsupportedError(f"layer {number} of its cache goes from {before} to {after} by one token", "")
    return shape
