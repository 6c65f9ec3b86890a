"""`qattention`: attention on int8."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.ops.int8_attention import supported
from llmc.compiler.pipeline import LOSSY, Keeps, Pass


@dataclass(frozen=True)
class Qattention(Pass):
    """Multiply queries, keys, weights and values of attention as integers: mha(...) -> mha{int8=True}(...)

    The scales are found as the values come; `compiler/ops/int8_attention.py` says how. Causal attention and attention
    with a bias stay float, as do heads whose size is not a multiple of 16 up to 128.

    Args:
        skip: patterns of module paths to leave alone, such as "encoder.layer.0.*".
    """

    name = "qattention"
    keeps: ClassVar[Keeps] = LOSSY
    skip: tuple[str, ...] = ()

    def run(self, graph: Graph) -> Graph:
        """One walk."""
        return graph.replace(lambda node: _on_int8(node) if self._wanted(node) else node)

    def _wanted(self, node: Node) -> bool:
        if node.op not in ("mha", "ragged_mha") or node.attributes["has_bias"] or node.attributes["int8"]:
            return False
        a = node.attributes
        plain = not a.get("causal", False) and a["scale"] > 0 and supported(a["head_dim"])
        return plain and not any(fnmatchcase(node.source.path, pattern) for pattern in self.skip)


def _on_int8(node: Node) -> Node:
    return make(node.op, node.inputs, node.source, **{**node.attributes, "int8": True})
