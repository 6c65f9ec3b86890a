"""An op of one's own, from end to end: softsign(x) = x / (1 + |x|).

llmc compile MODEL -x softsign.py --add-pass to_softsign -o m.llmc
"""

from typing import Any

import numpy as np

from llmc import Extension
from llmc.compiler.graph import Node, TensorType
from llmc.compiler.ops import make
from llmc.compiler.ops.declare import define
from llmc.compiler.ops.rules import want_dtype
from llmc.compiler.pipeline import close
from llmc.compiler.rewrite import RewritePass
from llmc.passes.match import is_scalar


def reference(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """In float64, rounded once: what the kernel is tested against."""
    wide = x.astype(np.float64)
    return np.asarray(wide / (1 + np.abs(wide))).astype(x.dtype)


@define("softsign", reference, traits={"elementwise": True, "accuracy": "close", "cost": 6})
def softsign(x: TensorType) -> TensorType:
    """The type rule: same dtype and shape."""
    want_dtype(x, {"f32", "f16"})
    return x


def emit(k: Any, dtype: str, x: Any) -> Any:
    """The kernel: TIR of values in registers. Chains, sizes, broadcasting and f16 are llmc's business."""
    from tvm import tirx

    from llmc.targets.tir.emit import lanes_of, splat

    one = splat(1.0, lanes_of(x))
    return x / k.let(one + tirx.abs(x))


def from_parts(node: Node) -> Node | None:
    """div(x, add(abs(x), 1)) -> softsign(x)"""
    match node:
        case Node("div", (x, Node("add", (a, b)))):
            size, one = (a, b) if a.op == "abs" else (b, a)
            if size.op == "abs" and size.inputs[0] is x and is_scalar(one, 1) and node.type == x.type:
                return make("softsign", (x,), node.source)


class ToSoftsign(RewritePass):
    """Recognise softsign in its parts."""

    name = "to_softsign"
    keeps = close(1e-6)
    rules = (from_parts,)


extension = Extension("softsign", ops=(softsign,), scalars={"cpu": {"softsign": emit}}, passes=(ToSoftsign,))
