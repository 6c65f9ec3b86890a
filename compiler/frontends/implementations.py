"""How a model's attention is exported: whole where that is right, else as transformers writes it.

llmc's own ways (`masks`) keep attention in one op and its mask small. They serve every model whose attention follows
transformers' interface, and lose the mask's causal half in some that do not (BLOOM, CLIP's text tower). No list says
which: each way is tried, and the first that gives transformers' own numbers on a padded sample is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmc.compiler.frontends.masks import ADDED, WHOLE, longest, register
from llmc.compiler.frontends.reference import TOLERANCE, Values, farthest

EAGER = "eager"  # the definition: scores, mask, softmax and product, one after the other
WAYS = (WHOLE, ADDED, "sdpa", EAGER)


def choose(
    model: Any,
    run: Callable[[], Values],
    wanted: Values,
    values: Values,
    max_seq: int,
    ways: Sequence[str] = (),
) -> str:
    """Set the first way that is right, and name it.

    Args:
        model: loaded with `EAGER`.
        run: runs it on `values`.
        wanted: what it gave then.
        max_seq: the longest row: windows that are wider mask nothing.
        ways: to be tried, the last of them if no other is right; by default `WAYS`.
    """
    ways = ways or WAYS
    register()
    longest.set(max_seq)
    for way in ways[:-1]:
        set_way(model, way)
        try:
            found = run()
        except Exception:  # whatever a model raises that cannot do with this way
            continue
        if farthest(found, wanted, values)[1] <= TOLERANCE / 10:
            return way
    set_way(model, ways[-1])
    return ways[-1]


def set_way(model: Any, way: str) -> None:
    """Make all parts of a model read their attention from `way`; transformers' own setter skips older models."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = way
    for part in _parts(model.config):
        part._attn_implementation_internal = way


def _parts(config: Any) -> list[Any]:
    """A configuration and those of its towers."""
    found = [config]
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            found += _parts(part)
    return found
