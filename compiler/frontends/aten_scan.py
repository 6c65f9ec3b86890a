"""The ops of `scans`: a recurrence over a sequence becomes a loop."""

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


_WKV = ("key", "value", "above", "below", "most", "decay", "bonus")


@aten("llmc.wkv.default")
def _wkv(call: Call) -> tuple[Node, ...]:
    """A loop over the tokens, which carries the mean's numerator, its denominator and their exponent."""
    operands = [call[name] for name in _WKV]
    scanned = [call.op("transpose", x, perm=(1, 0, 2)) for x in operands[:2]]
    inputs = [
        input_(name, x.dtype, x.shape[1:] if i < 2 else x.shape)
        for i, (name, x) in enumerate(zip(_WKV, (*scanned, *operands[2:]), strict=True))
    ]
    loop = call.op(
        "loop",
        *scanned,
        *operands[2:],
        body=_wkv_body(call, inputs),
        count=scanned[0].shape[0],
        scanned=2,
        carried=3,
        reverse=False,
    )
    *after, means = results(loop)
    return call.op("transpose", means, perm=(1, 0, 2)), *after


def _wkv_body(call: Call, inputs: list[Node]) -> Graph:
    key, value, above, below, most, decay, bonus = inputs

    def op(name: str, *operands: Node) -> Node:
        return make(name, operands, call.source)

    def mixed(before: Node, now: Node) -> tuple[Node, Node, Node]:
        """Numerator and denominator with a token more, and their exponent."""
        top = op("maximum", before, now)
        old, new = (op("exp", op("sub", x, top)) for x in (before, now))
        added = op("add", op("mul", old, above), op("mul", new, value))
        return added, op("add", op("mul", old, below), new), top

    upper, lower, _ = mixed(most, op("add", key, bonus))
    after = mixed(op("add", most, decay), key)
    names = ("above", "below", "most", "output")
    return Graph(tuple(inputs), dict(zip(names, (*after, op("div", upper, lower)), strict=True)))
