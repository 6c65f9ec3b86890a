"""Chains of comparisons: what holds is what was compared, however deep."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_lab import Lab, check

from llmc.compiler.dims import symbol
from llmc.compiler.ops import constant, input_, make

SEQ = symbol("seq")


@pytest.mark.parametrize("last", ["and", "or", "xor", "eq", "not"])
def test_conditions_of_conditions(kernels: Lab, last: str) -> None:
    """Up to eight steps of flags, and what is chosen by them: three held always, whatever they said."""
    x, low, high = input_("x", "i64", (SEQ,)), input_("low", "i64", ()), input_("high", "i64", ())
    flags, y = input_("flags", "bool", (SEQ,)), input_("y", "f32", (SEQ,))
    compared = [("ge", (0, 1), ()), ("lt", (0, 2), ()), ("and", (-1, -2), ())]
    nodes = {}
    for more in range(6):
        steps = [(last, (-3 - i, 3) if last != "not" else (-3 - i,), ()) for i in range(more)]
        body = (*compared, *steps)
        nodes[f"flag{more}"] = make("chain", (x, low, high, flags), body=body)
        chosen = (*body, ("where", (-len(body), 4, 5), ()), ("mul", (-len(body) - 1, 4), ()))
        nodes[f"chosen{more}"] = make("chain", (x, low, high, flags, y, constant(np.float32(7))), body=chosen)
    rng = np.random.default_rng(3)
    for size in (1, 16, 37):
        given = {"x": rng.integers(-9, 9, size), "low": np.array(-4), "high": np.array(4)}
        given |= {"flags": rng.random(size) < 0.5, "y": rng.normal(size=size).astype(np.float32)}
        check(kernels, nodes, given)
