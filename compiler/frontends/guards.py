"""What an exported program takes for granted about its sizes: tried for all of them, where torch cannot prove it.

torch.export refuses a model where a comparison of sizes came out one way on the sample and its algebra cannot say that
it always does, such as `min(2048, seq) <= seq`. Sizes have bounds, so there are only so many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmc.compiler.frontends.inputs import Inputs
from llmc.compiler.frontends.joint import ANY, Joint

MOST = 1 << 24  # values that are tried at the most
Bounds = Mapping[str, tuple[int, int]]

_FUNCTIONS: Mapping[str, Any] = {
    "Eq": np.equal,
    "Ne": np.not_equal,
    "Mod": np.mod,
    "PythonMod": np.mod,
    "FloorDiv": np.floor_divide,
    "CleanDiv": np.floor_divide,
    "Min": lambda *values: _least(values),
    "Max": lambda *values: -_least([-v for v in values]),
    "And": lambda *values: np.logical_and.reduce(np.broadcast_arrays(*values)),
    "Or": lambda *values: np.logical_or.reduce(np.broadcast_arrays(*values)),
    "Not": np.logical_not,
}


def holding(program: Any, inputs: Inputs, sizes: Mapping[str, int], joint: Joint = ANY) -> Bounds | None:
    """The bounds around `sizes` within which all that a program asserts is true; None if nobody can say.

    Args:
        program: exported with guards as assertions.
        inputs: those of the program, with the bounds that are asked for.
        sizes: of each dim, for which it was traced.
        joint: sizes that are never as large as their own bounds all at once.
    """
    names, bounds = _names(program, inputs), dict(inputs.bounds)
    for claim in _claims(program):
        free = sorted(names.get(str(s), "") for s in claim.free_symbols)
        if "" in free or np.prod([bounds[n][1] - bounds[n][0] + 1.0 for n in free]) > MOST:
            return None
        true = _tried(claim, names, {n: bounds[n] for n in free}, joint)
        if true is None or (not true.all() and len(free) != 1):
            return None
        if len(free) == 1:
            bounds[free[0]] = _around(true, bounds[free[0]], sizes[free[0]])
    return bounds


def _names(program: Any, inputs: Inputs) -> dict[str, str]:
    """torch's symbol of each dynamic axis -> its name."""
    users = list(program.graph_signature.user_inputs)
    nodes = {n.name: n for n in program.graph.nodes}
    sizes = [
        (size, axis)
        for name, given in zip(users, inputs.given, strict=True)
        for size, axis in zip(nodes[name].meta["val"].shape, given.axes, strict=True)
    ]
    return {str(s.node.expr): axis for s, axis in sizes if isinstance(axis, str) and not isinstance(s, int)}


def _claims(program: Any) -> Iterator[Any]:
    """The expression of each assertion."""
    for node in program.graph.nodes:
        if "_assert_scalar" in str(node.target) and hasattr(node.args[0], "meta"):
            value = node.args[0].meta.get("val")
            expression = getattr(getattr(value, "node", None), "expr", None)
            if expression is not None:
                yield expression


def _tried(claim: Any, names: Mapping[str, str], bounds: Bounds, joint: Joint) -> Any:
    """Whether it is true for every value of its sizes, an axis each; None if it cannot be computed."""
    axes = [np.arange(low, high + 1) for low, high in bounds.values()]
    grid = dict(zip(bounds, np.meshgrid(*axes, indexing="ij", sparse=True), strict=True))
    known = {symbol: grid[name] for symbol, name in names.items() if name in grid}
    try:
        found = eval(str(claim), {"__builtins__": {}, **_FUNCTIONS}, known)
    except Exception:  # a function that is not among these
        return None
    return np.broadcast_to(found | np.logical_not(joint.allows(grid)), [len(a) for a in axes])


def _around(true: Any, bounds: tuple[int, int], size: int) -> tuple[int, int]:
    """The widest bounds around a size with nothing false in them."""
    low, high = bounds
    false = np.flatnonzero(~true) + low
    below, above = false[false < size], false[false > size]
    return (int(below[-1]) + 1 if below.size else low, int(above[0]) - 1 if above.size else high)


def _least(values: Any) -> Any:
    return np.minimum.reduce(np.broadcast_arrays(*values))
