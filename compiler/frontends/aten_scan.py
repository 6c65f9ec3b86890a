"""The op of `scans`: a linear recurrence over a sequence becomes a loop."""

from __future__ import annotations

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import input_, make, results


@aten("llmc.linear_scan.default")
def _linear_scan(call: Call) -> Node:
    """A loop over the steps, which carries the state: h' = factor * h + addend."""
    factor, addend = (call.op("transpose", call[name], perm=(2, 0, 1, 3)) for name in ("factor", "addend"))
    shape = addend.shape[1:]
    first = call.op("full", shape=shape, value=0, dtype=addend.dtype)
    f, a, h = (input_(name, addend.dtype, shape) for name in ("factor", "addend", "h"))
    after = make("add", (make("mul", (f, h), call.source), a), call.source)
    body = Graph((f, a, h), {"h": after, "output": after})
    loop = call.op(
        "loop", factor, addend, first, body=body, count=addend.shape[0], scanned=2, carried=1, reverse=False
    )
    _, states = results(loop)
    return call.op("transpose", states, perm=(1, 2, 0, 3))
