"""Layers of a cache of transformers that begin with given tensors and take any number of tokens.

transformers' own ask whether they are empty, which torch.export would take as settled by the sample, and write into
their tensors, which are inputs here. A state that keeps its shape begins as zeros, and then is as after a prompt: what
a convolution sees of a sequence before its begin, and what a recurrence begins with, are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from llmc.compiler.frontends.scans import beginning

_GROW = frozenset({"keys", "values"})
_INDEXED = _GROW | {"indexer_keys"}
_KEEP = frozenset({"conv_states", "recurrent_states"})


class Nothing(getattr(cache_utils, "DummyLayer", object)):  # type: ignore[misc]  # which older versions have not
    """The place of a layer that keeps nothing."""


class Grown(DynamicLayer):  # type: ignore[misc]  # transformers says nothing of types
    """Holds `keys` and `values`, maybe of no token, and gets longer."""

    def __init__(self, keys: Any, values: Any) -> None:
        super().__init__()
        self._hold(keys, values)

    def _hold(self, keys: Any, values: Any) -> None:
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def get_seq_length(self) -> Any:
        """How many tokens it holds."""
        return self.keys.shape[-2]

    def get_mask_sizes(self, query_length: Any) -> tuple[Any, int]:
        """Keys there will be, and the number of the first of them."""
        return self.keys.shape[-2] + query_length, 0


class Indexed(Grown, DynamicIndexedLayer):  # type: ignore[misc]
    """Holds keys by which tokens are chosen, too."""

    def __init__(self, keys: Any, values: Any, indexer_keys: Any) -> None:
        DynamicIndexedLayer.__init__(self)
        self._hold(keys, values)
        self.indexer_keys, self.is_indexer_initialized = indexer_keys, True


class Kept(LinearAttentionLayer):  # type: ignore[misc]
    """Holds what a convolution sees of the past, and the states of a recurrence."""

    conv_states: dict[int, Any]
    recurrent_states: dict[int, Any]
    has_previous_state: dict[int, bool]

    def __init__(self, conv_states: Mapping[int, Any], recurrent_states: Mapping[int, Any]) -> None:
        super().__init__(number_of_states=max((*conv_states, *recurrent_states)) + 1)
        self._keep(conv_states, recurrent_states)

    def _keep(self, conv_states: Mapping[int, Any], recurrent_states: Mapping[int, Any]) -> None:
        self.conv_states = {**self.conv_states, **conv_states}
        self.recurrent_states = {**self.recurrent_states, **recurrent_states}
        self.has_previous_state = dict.fromkeys(self.has_previous_state, True)
        self.is_conv_states_initialized |= dict.fromkeys(conv_states, True)
        self.is_recurrent_states_initialized |= dict.fromkeys(recurrent_states, True)
        self.conv_kernel_size |= {key: state.shape[-1] for key, state in conv_states.items()}

    def update_conv_state(self, conv_states: Any, state_idx: int = 0, **_: Any) -> Any:
        """The new inputs of a convolution behind those held, and hold the last ones."""
        held = self.conv_states[state_idx]
        whole = torch.cat([held, conv_states], -1)
        self.conv_states[state_idx] = whole[..., whole.shape[-1] - held.shape[-1] :]
        beginning.set(_of_heads(self.recurrent_states[state_idx]))
        return whole

    def update_recurrent_state(self, recurrent_states: Any, state_idx: int = 0, **_: Any) -> Any:
        """Hold what a recurrence ends with."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


def _of_heads(state: Any) -> list[Any] | None:
    """What the scans of one layer begin with: of all of it, or of a head each, one after the other."""
    if state is None:
        return None
    return [state] if state.dim() == 3 else list(state.unbind(1))


class KeptAndGrown(Kept, Grown, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """Holds both."""

    def __init__(
        self, keys: Any, values: Any, conv_states: Mapping[int, Any], recurrent_states: Mapping[int, Any]
    ) -> None:
        count = max((*conv_states, *recurrent_states)) + 1
        LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states=count)
        self._hold(keys, values)
        self._keep(conv_states, recurrent_states)


_OWN = tuple(  # transformers' classes that the ones above stand for; older versions have not all
    getattr(cache_utils, name)
    for name in (
        *("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "LinearAttentionLayer"),
        *("LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer"),
    )
    if hasattr(cache_utils, name)
)


def usable(layer: Any, parts: Set[str]) -> bool:
    """Whether a layer of transformers with tensors in these attributes is one that `layer_of` makes."""
    grows, keeps = parts & _INDEXED, parts & _KEEP
    known = parts == grows | keeps and (not grows or grows >= _GROW) and not (keeps and grows > _GROW)
    return type(layer) in _OWN and known


def layer_of(parts: Mapping[str, Any]) -> Any:
    """A layer that holds these tensors."""
    keeps = {name: parts.get(name, {}) for name in _KEEP}
    if not parts.keys() & _KEEP:
        return (Indexed if "indexer_keys" in parts else Grown)(**parts)
    return KeptAndGrown(**{**parts, **keeps}) if parts.keys() & _GROW else Kept(**keeps)


def plain(layer: Any) -> Any:
    """A layer without a window, so that nothing falls out of it."""
    if type(layer) is DynamicSlidingWindowLayer:
        return DynamicLayer()
    if type(layer).__name__ == "LinearAttentionAndSlidingWindowAttentionLayer":
        return LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return layer
