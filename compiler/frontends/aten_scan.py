"""The op of `scans`: a recurrence over a sequence becomes a loop."""

from __future__ import annotations

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import input_, make, results


@aten("llmc.recurrence.default")
def _recurrence(call: Call) -> tuple[Node, ...]:
    """A loop over the tokens, which carries the matrix of each head."""
    names = ["decay", "value", "key", "query", *(["rate"] if call.get("rate") is not None else [])]
    scanned = [_tokens_first(call, call[name]) for name in names]
    parts = {name: input_(name, x.dtype, x.shape[1:]) for name, x in zip(names, scanned, strict=True)}
    first = call["first"]
    loop = call.op(
        "loop",
        *scanned,
        first,
        body=_body(call, parts, input_("state", first.dtype, first.shape)),
        count=scanned[0].shape[0],
        scanned=len(scanned),
        carried=1,
        reverse=False,
    )
    last, reads = results(loop)
    return call.op("transpose", reads, perm=(1, 0, 2, 3)), last


def _tokens_first(call: Call, x: Node) -> Node:
    return call.op("transpose", x, perm=(1, 0, *range(2, x.type.rank)))


def _body(call: Call, parts: dict[str, Node], state: Node) -> Graph:
    """h = decay * h + value key^T, y = h query; with a rate value is (value - h key) * rate, h decayed already."""

    def op(name: str, *operands: Node, **attributes: object) -> Node:
        return make(name, operands, call.source, **attributes)

    def shaped(name: str, row: bool) -> Node:
        x = parts[name]
        return op("reshape", x, shape=(*x.shape[:2], 1, *x.shape[2:]) if row else (*x.shape, 1))

    kept = op("mul", parts["decay"], state)
    value = shaped("value", row=False)
    if "rate" in parts:
        rate = parts["rate"]
        known = op("matmul", kept, shaped("key", row=False))
        value = op("mul", op("sub", value, known), op("reshape", rate, shape=(*rate.shape, 1, 1)))
    after = op("add", kept, op("mul", value, shaped("key", row=True)))
    read = op("matmul", after, shaped("query", row=False))
    output = op("reshape", read, shape=parts["value"].shape)
    return Graph((*parts.values(), state), {"state": after, "output": output})
