"""`qattention`: attention on int8."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from llmc.compiler.effects import Verdict, tell
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
        attentions = [node for node in graph.nodes if node.op in ("mha", "ragged_mha", "attention")]
        tell("attentions", (Verdict(n, 1, self._left(n)) for n in attentions))
        return graph.replace(lambda node: _on_int8(node) if self._wanted(node) else node)

    def _wanted(self, node: Node) -> bool:
        return node.op in ("mha", "ragged_mha") and not self._left(node)

    def _left(self, node: Node) -> str:
        """Why an attention stays float; empty if it does not."""
        if node.op == "attention":
            return "not one of heads between products"
        a = node.attributes
        reasons = {
            "with a bias": a["has_bias"],
            "on int8 before": a["int8"],
            "causal": a.get("causal", False) or a["scale"] <= 0,
            "whose heads are of another size": not supported(a["head_dim"]),
            "named by skip": any(fnmatchcase(node.source.path, pattern) for pattern in self.skip),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")


def _on_int8(node: Node) -> Node:
    return make(node.op, node.inputs, node.source, **{**node.attributes, "int8": True})
