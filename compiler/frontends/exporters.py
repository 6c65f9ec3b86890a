"""What `transformers.exporters` changes in models while they are traced, without its cost for models that need none.

Its exporter replaces code that torch.export cannot follow (loops over chunks, `histc`, caches' counters) and clears
tensors that modules keep between calls. Entering all its patches imports some hundred modules of other models, which
takes seconds; only those of modules that are there already can matter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from llmc.compiler.frontends import followed
from llmc.compiler.frontends.griffin import METHODS
from llmc.compiler.frontends.scans import SCANS


@contextmanager
def patched(module: Any) -> Iterator[None]:
    """Patches of what is loaded, while a module is traced; nothing for models that are not transformers'."""
    if not any(type(m).__module__.startswith("transformers.") for m in module.modules()):
        yield
        return
    from transformers.exporters import exporter_dynamo as dynamo
    from transformers.exporters import utils

    with ExitStack() as stack:
        for place, attribute, change in utils._PATCHES.get("dynamo", ()):
            owner = _loaded(place)
            if owner is not None and hasattr(owner, attribute):
                stack.enter_context(utils.patch_attribute(owner, attribute, change))
        for owner, attribute, own in _our_own():
            stack.enter_context(utils.patch_attribute(owner, attribute, lambda _, own=own: own))
        stack.enter_context(dynamo.reset_model_state(module))
        yield


@contextmanager
def scanned() -> Iterator[None]:
    """Models run with the recurrences of `scans`, which go on from any state."""
    with ExitStack() as stack:
        for module, name, own in _scans():
            stack.enter_context(_set(module, name, own))
        yield


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _models() -> list[Any]:
    """The modules of transformers' models that are loaded."""
    return [
        m
        for name, m in sys.modules.items()
        if name.startswith("transformers.models.") and ".modeling_" in name
    ]


def _scans() -> Iterator[tuple[Any, str, Any]]:
    """Recurrences in the modules of models, and the methods of those that are no functions."""
    yield from _replaced(SCANS, METHODS)


def _replaced(functions: Mapping[str, Any], methods: Mapping[tuple[str, str], Any]) -> Iterator[Any]:
    """Functions of loaded models by their names, and methods by their classes'."""
    yield from ((m, name, own) for m in _models() for name, own in functions.items() if name in vars(m))
    yield from (
        (vars(m)[kind], name, own)
        for m in _models()
        for (kind, name), own in methods.items()
        if hasattr(vars(m).get(kind), name)
    )


def _our_own() -> Iterator[tuple[Any, str, Any]]:
    """What torch.export would unroll or read as something else: owner, name, and what stands there meanwhile.

    Positions that the model has made itself never belong to several texts packed into one row.
    """
    yield from _scans()
    yield from _replaced(followed.FUNCTIONS, followed.METHODS)
    yield from (
        (
            m,
            "make_padding_mask",
            lambda ids, padding_idx=1: ids.eq(padding_idx),
        )  # theirs is None where nothing pads
        for m in _models()
        if hasattr(m, "make_padding_mask")
    )
    masking = sys.modules.get("transformers.masking_utils")
    if masking is not None and hasattr(masking, "find_packed_sequence_indices"):
        yield masking, "find_packed_sequence_indices", lambda position_ids: None
    if masking is not None and hasattr(masking, "_vmap_expansion_sdpa"):
        yield masking, "_vmap_expansion_sdpa", _broadcast
        yield masking, "TransformGetItemToIndex", nullcontext  # what only `vmap` needs


def _broadcast(mask: Any) -> Any:
    """A mask of places that a model makes by its own rule: of all places at once, where theirs is of one by `vmap`."""

    def of_all(*places: Any) -> Any:
        shapes = [[-1 if axis == own else 1 for axis in range(len(places))] for own in range(len(places))]
        apart = (place.reshape(shape) for place, shape in zip(places, shapes, strict=True))
        return mask(*apart).expand([place.shape[0] for place in places])

    return of_all


def _loaded(place: Any) -> Any:
    """What a dotted path leads to, if its module has been imported; None otherwise."""
    if not isinstance(place, str):
        return place  # as older versions have it
    parts = place.split(".")
    count = max((n for n in range(len(parts) + 1) if ".".join(parts[:n]) in sys.modules), default=0)
    owner = sys.modules.get(".".join(parts[:count]))
    for name in parts[count:]:
        owner = vars(owner).get(name) if owner is not None else None  # a lazy module would import it
    return owner
