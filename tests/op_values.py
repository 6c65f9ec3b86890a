"""Random arrays, and one op applied to them: for the tests of the ops' references."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import DTYPES, Graph, Weight
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, make

Array = np.ndarray[Any, Any]


class Random:
    """Random arrays from a seed of the test file's own, so that no other file changes them."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def floats(self, *shape: int) -> Array:
        return self.generator.normal(size=shape).astype(np.float32)

    def integers(self, *shape: int, low: int = -9, high: int = 9, dtype: str = "i64") -> Array:
        return self.generator.integers(low, high, shape).astype(DTYPES[dtype])

    def bools(self, *shape: int) -> Array:
        return self.generator.random(shape) < 0.5


def apply(op: str, *arrays: Array, **attributes: Any) -> Array:
    """One op on constants, through the interpreter, which checks dtype and shape against the type rule."""
    node = make(op, tuple(constant(Weight(a)) for a in arrays), **attributes)
    return run(Graph((), {"y": node}), {})["y"]
