"""A table whose rows are looked up and which a product has by panels is stored once: the look-up reads the panels.

So it is with the embedding of a language model whose output head has the same weights. Both kernels read the same
numbers from either layout, so no bit of a result depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from llmc.compiler.calls import Call, Operand, Packed, Region, every_call

Steps = tuple[Call | Region, ...]


def store_once(functions: Mapping[str, Iterable[Call | Region]]) -> dict[str, Steps]:
    """The calls of a module's functions, where look-ups read what products have stored."""
    calls = [call for steps in functions.values() for call in every_call(steps)]
    panels = {packed.weight.digest: packed for packed in _panels(calls)}
    spread = {key: packed for key, packed in panels.items() if key not in _plain(calls)}
    return {name: _changed(steps, lambda call: _reading(call, spread)) for name, steps in functions.items()}


def _panels(calls: Iterable[Call]) -> Iterable[Packed]:
    return (o for call in calls for o in call.operands if isinstance(o, Packed) and o.panels is not None)


def _plain(calls: Iterable[Call]) -> Collection[str]:
    """The weights that a call can only read as they are."""
    return {digest for call in calls if call.laid is None for digest in map(_digest, call.operands) if digest}


def _digest(operand: Operand) -> str:
    """Of a weight that is stored as it is; else empty."""
    if isinstance(operand, Packed) or operand.op != "constant":
        return ""
    return str(operand.attributes["value"].digest)


def _reading(call: Call, panels: Mapping[str, Packed]) -> Call:
    """`call`, with operands out of `panels` where they are there."""
    read = [panels.get(_digest(operand), operand) for operand in call.operands]
    found = [
        o.panels if isinstance(o, Packed) and o is not old else None
        for o, old in zip(read, call.operands, strict=True)
    ]
    if call.laid is None or not any(found):
        return call
    return replace(call.laid(found[:-1]), operands=tuple(read))


def _changed(steps: Iterable[Call | Region], change: Callable[[Call], Call]) -> Steps:
    """Those of regions' bodies too."""
    return tuple(
        change(step)
        if isinstance(step, Call)
        else Region(step.node, tuple(_changed(body, change) for body in step.bodies))
        for step in steps
    )
