"""`bfloat16`: weights of products and tables as the upper halves of float32, which most language models come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.effects import tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.tables import changes, tables
from llmc.passes.compress.weights import left, products, rebuild, stored, values

Array = np.ndarray[Any, Any]
_SMALL = 4096  # bytes; a smaller matrix stays as it is


@dataclass(frozen=True)
class Bfloat16(Pass):
    """Store weights of products and embedding tables in 16 bits, the exponents of float32 and 8 digits of 24.

    Weights that came as bfloat16 stay what they are to the last bit; others are rounded to the nearest, half to even.

    Args:
        skip: patterns of module paths to leave alone.
        min_columns: products with fewer output columns stay float.
    """

    name = "bfloat16"
    keeps: ClassVar[Keeps] = LOSSY
    skip: tuple[str, ...] = ()
    min_columns: int = 16

    def run(self, graph: Graph) -> Graph:
        """Every weight once, however many read it."""
        made = self._made(graph)
        tell_weights(graph, made, lambda weight: self._left(graph, weight))
        return rebuild(graph, changes(graph, made))

    def finds(self, graph: Graph) -> bool:
        """Whether there is a weight to store."""
        return bool(self._made(graph))

    def _made(self, graph: Graph) -> dict[Node, Node]:
        """Weight -> what stands for it."""
        arrays = {p.weight: p.array for p in products(graph, self.skip)}
        looked_up = {t: values(t) for t in tables(graph) if t.op == "constant" and t not in arrays}
        arrays |= {t: array for t, array in looked_up.items() if array is not None}
        return {w: half for w, array in arrays.items() if self._fits(array) and (half := _stored(w, array))}

    def _fits(self, array: Array) -> bool:
        enough = array.dtype == np.float32 and array.ndim == 2 and len(array) >= self.min_columns
        return enough and array.nbytes > _SMALL

    def _left(self, graph: Graph, weight: Node) -> str:
        few = f"with fewer than {self.min_columns} output columns, of at most {_SMALL} bytes, or beyond the range"
        return left(graph, weight, self.skip) or few


def _stored(weight: Node, array: Array) -> Node | None:
    """What stands for a weight; None if a value would become infinite.

    Raises:
        LlmcError: one is not finite.
    """
    if not np.isfinite(array).all():
        raise LlmcError("a weight holds values that are not finite", at=str(weight.source))
    halves = upper_halves(array)
    if ((halves & 0x7F80) == 0x7F80).any():
        return None
    part = stored(halves.view(np.uint8), weight, ".bf16")
    return make("bfloat16", (part,), weight.source, columns=array.shape[1])


def upper_halves(array: Array) -> Array:
    """f32, finite -> u16: bfloat16 to the nearest, half to even."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    return np.asarray((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
