"""A pass of one's own: it makes the op of swiglu.py, which must be loaded too, of its parts."""

from llmc import Extension
from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import close
from llmc.compiler.rewrite import Decline, RewritePass


def from_halves(node: Node) -> Node | Decline | None:
    """mul(silu(slice(x, 0, k)), slice(x, k, 2 k)) -> swiglu(x)"""
    match node:
        case Node("mul", (Node("silu", (Node("slice", (x,), left),)), Node("slice", (y,), right))) if x is y:
            k, last = node.shape[-1], x.type.rank - 1
            halves = [(a["axis"], a["start"], a["stop"], a["step"]) for a in (left, right)]
            if halves == [(last, 0, k, 1), (last, k, 2 * k, 1)] and x.shape[-1] == 2 * k:
                return make("swiglu", (x,), node.source)
            return Decline("the slices are not the two halves of the last axis")


class ToSwiglu(RewritePass):
    """Recognise swiglu in its parts."""

    name, keeps, rules = "to_swiglu", close(1e-6), (from_halves,)


extension = Extension("to_swiglu", passes=(ToSwiglu,))
