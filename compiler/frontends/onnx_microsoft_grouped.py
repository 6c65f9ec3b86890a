"""`GroupQueryAttention` of `com.microsoft`: the attention of decoders that were exported for ONNX Runtime GenAI."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.onnx_bounds import origin
from llmc.compiler.frontends.onnx_call import Call, Result, onnx_op
from llmc.compiler.frontends.onnx_microsoft import microsoft, rotated
from llmc.compiler.frontends.onnx_microsoft_attention import heads_of, merged, of_length
from llmc.compiler.frontends.onnx_values import known
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim

_LENGTHS, _TOTAL, _COSINE, _SINE, _PLACES, _BIAS, _SINK = 5, 6, 7, 8, 9, 10, 11  # inputs


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of a call stand.

    Args:
        before: i64 `[b, 1]`: how many keys of the past each sequence has.
        own: i64 `[b, s]`: the position of each token in its sequence.
        fault: f32 `[b, 1, 1]`: NaN where a caller says another length than a sequence can have, else 0.
    """

    before: Node
    own: Node
    fault: Node | None


@onnx_op(*microsoft("GroupQueryAttention"))
def _grouped(call: Call) -> Result:
    """Causal attention of fewer heads of keys than of queries, which stand behind those of a past.

    Sequences of a batch may be of different length: they are padded behind, and what a sequence has new lies behind
    what it has of its past, as `seqlens_k`, the index of its last key, says.
    """
    _refuse(call)
    heads, groups = call.attributes["num_heads"], call.attributes["kv_num_heads"]
    q, k, v = _parts(call, heads, groups)
    rows = _rows(call, q)
    if call.attribute("do_rotary", 0):
        q, k = (_turned(call, x, rows) for x in (q, k))
    if call.has(3):
        call.may_be_empty(call.node(3).shape[2])
        k, v = (_behind(call, call.node(i), new, rows) for i, new in ((3, k), (4, v)))
    k, v = (_of_total(call, x, at) for at, x in ((1, k), (2, v)))
    y = merged(call, _attended(call, q, k, v, rows))
    y = y if rows.fault is None else call.op("add", y, rows.fault)
    return (y, k, v)[: call.outputs]


def _refuse(call: Call) -> None:
    call.require(
        not call.wants(3) and not call.attribute("qk_output", 0),
        "a GroupQueryAttention that gives its scores",
    )
    for kind in ("k_quant_type", "v_quant_type"):
        call.require(
            call.attribute(kind, "NONE") == "NONE", "a GroupQueryAttention with quantised keys or values"
        )
    call.require(not call.has(12) and not call.has(13), "a GroupQueryAttention with quantised keys or values")
    call.without_meaning(
        "kv_cache_bit_width", *([] if call.attribute("do_rotary", 0) else ["rotary_interleaved"])
    )


def _parts(call: Call, heads: int, groups: int) -> list[Node]:
    """Queries `[b, heads, s, d]`, keys and values `[b, groups, s, d]`, of three inputs or of one."""
    x = call.node(0)
    call.require(groups > 0 and heads % groups == 0, f"{heads} heads of queries for {groups} of keys")
    if call.has(1):
        return [heads_of(call, call.node(i), n) for i, n in enumerate((heads, groups, groups))]
    width, rest = divmod(int(x.shape[2]), heads + 2 * groups)
    call.require(not rest, "packed queries, keys and values of another width")
    ends = [0, heads * width, (heads + groups) * width, (heads + 2 * groups) * width]
    cut = [call.sliced(x, 2, first, last) for first, last in pairwise(ends)]
    return [heads_of(call, part, n) for part, n in zip(cut, (heads, groups, groups), strict=True)]


def _rows(call: Call, q: Node) -> _Rows:
    """A prompt padded behind has fewer keys than tokens, and no past then: what is below 0 is 0."""
    batch, seq = q.shape[0], q.shape[2]
    last = call.reshape(call.cast(call.node(_LENGTHS), "i64"), (batch, 1))
    before = call.op("sub", last, call.op("dim", value=dim(seq - 1)))
    before = call.op("maximum", before, call.number(0, "i64"))
    given = origin(call.node(_LENGTHS), 0)[0].op == "input"  # else of a mask, which has as many places
    fault = _fault(call, last, seq) if given else None
    return _Rows(before, call.op("add", before, call.op("iota", length=seq)), fault)


def _fault(call: Call, last: Node, seq: Dim) -> Node:
    """What spoils the result of a sequence, for a call cannot be refused for numbers that sizes limit.

    ONNX Runtime refuses more keys in total than past and new ones, an index of a last key that is below 0 or beyond
    the total, and one that leaves out new tokens but in a prompt, whose tokens are all that there are.
    """
    past, zero = call.node(3).shape[2] if call.has(3) else 0, call.number(0, "i64")
    total = call.reshape(call.cast(call.node(_TOTAL), "i64"), ())
    new, all_keys = (call.op("dim", value=dim(d)) for d in (seq, past + seq))
    least = call.op("where", call.op("gt", total, new), call.op("sub", new, call.number(1, "i64")), zero)
    fits = call.op("and", call.op("ge", last, least), call.op("lt", last, total))
    fits = call.op("and", fits, call.op("le", total, all_keys))
    fault = call.op("where", fits, call.number(0, "f32"), call.number(float("nan"), "f32"))
    return call.reshape(fault, (last.shape[0], 1, 1))


def _turned(call: Call, x: Node, rows: _Rows) -> Node:
    places = call.cast(call.node(_PLACES), "i64") if call.has(_PLACES) else rows.own
    total = dim(x.shape[2] + (call.node(3).shape[2] if call.has(3) else 0))
    # Of a table that is too short a call is refused, as ONNX Runtime refuses it.
    tables = (call.sliced(call.node(_COSINE), 0, 0, total), call.sliced(call.node(_SINE), 0, 0, total))
    return rotated(call, x, places, tables, int(x.shape[1]), bool(call.attribute("rotary_interleaved", 0)))


def _behind(call: Call, past: Node, new: Node, rows: _Rows) -> Node:
    """`[b, groups, past + s, d]`: of each sequence its own past, then what is new, then what nobody reads."""
    whole = call.op("concat", past, new, axis=2)
    batch, groups, length, width = whole.shape
    held = past.shape[2]
    place = call.op("iota", length=length)
    beyond = call.op("add", call.op("sub", place, rows.before), call.op("dim", value=held))
    beyond = call.op("minimum", beyond, call.op("dim", value=dim(length - 1)))
    source = call.op("where", call.op("lt", place, rows.before), place, beyond)  # [b, length]
    head = call.op("iota", length=dim(batch * groups))
    first = call.op("mul", head, call.op("dim", value=length))
    index = call.op("add", call.reshape(first, (batch, groups, 1)), call.reshape(source, (batch, 1, length)))
    return call.op("embedding", call.reshape(whole, (dim(batch * groups * length), width)), index)


def _of_total(call: Call, x: Node, position: int) -> Node:
    """Keys or values in as many places as the file says there are: `total_sequence_length`."""
    total = known(call.value(_TOTAL))
    if total is None:  # a number at run time
        if call.wants(position):
            call.trust("total_sequence_length")
        return x
    wanted = dim(total.reshape(-1)[0])
    if same_dim(wanted, x.shape[2]):
        return x
    call.is_sum(wanted, x.shape[2])  # as the mask's axis is, which the total is taken from
    return call.op("ensure_shape", x, shape=(*x.shape[:2], wanted, x.shape[3]))


def _attended(call: Call, q: Node, k: Node, v: Node, rows: _Rows) -> Node:
    scale = float(call.attribute("scale", 0.0)) or int(q.shape[3]) ** -0.5
    keep, cap = _keep(call, k, rows), float(call.attribute("softcap", 0.0))
    sinks = call.has(_SINK) or bool(call.attribute("smooth_softmax", 0))
    bias = of_length(call, call.node(_BIAS), 3, k.shape[2]) if call.has(_BIAS) else None
    if not (cap or sinks):
        mask = keep if bias is None else call.op("where", keep, bias, call.number(float("-inf"), "f32"))
        return call.op("attention", q, k, v, mask, scale=scale, has_mask=True)
    k, v = (_repeated(call, x, int(q.shape[1])) for x in (k, v))
    scores = call.op("matmul", q, call.transpose(k, (0, 1, 3, 2)))
    scores = call.op("mul", scores, call.number(scale, "f32"))
    if cap:
        limit = call.number(cap, "f32")
        scores = call.op("mul", call.op("tanh", call.op("div", scores, limit)), limit)
    scores = scores if bias is None else call.op("add", scores, bias)
    scores = call.op("where", keep, scores, call.number(float("-inf"), "f32"))
    return call.op("matmul", _softmax(call, scores, sinks), v)


def _keep(call: Call, k: Node, rows: _Rows) -> Node:
    """bool `[b, 1, s, keys]`: which keys a token sees, its own the last."""
    batch, seq = rows.own.shape
    own = call.reshape(rows.own, (batch, 1, seq, 1))
    place = call.op("iota", length=k.shape[2])
    keep = call.op("le", place, own)
    window = call.attribute("local_window_size", -1)
    if window < 0:
        return keep
    near = call.op("gt", place, call.op("sub", own, call.number(window, "i64")))
    return call.op("and", keep, near)


def _repeated(call: Call, x: Node, heads: int) -> Node:
    batch, groups, keys, width = x.shape
    wide = call.expand(
        call.reshape(x, (batch, groups, 1, keys, width)), (batch, groups, heads // int(groups), keys, width)
    )
    return call.reshape(wide, (batch, heads, keys, width))


def _softmax(call: Call, scores: Node, sinks: bool) -> Node:
    """Over the keys, and over one more score that has no value: a head's own, or 0."""
    if not sinks:
        return call.op("softmax", scores, axis=3)
    batch, heads, seq, keys = scores.shape
    sink = call.node(_SINK) if call.has(_SINK) else call.expand(call.number(0.0, "f32"), (heads,))
    column = call.expand(call.reshape(sink, (1, heads, 1, 1)), (batch, heads, seq, 1))
    weights = call.op("softmax", call.op("concat", scores, column, axis=3), axis=3)
    return call.sliced(weights, 3, 0, keys)
