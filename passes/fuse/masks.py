"""Attention masks: what depends on the key alone (`keys` of `mha`) and what is added to scores (`bias`)."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmc.compiler.graph import Node
from llmc.compiler.ops import OPS, make
from llmc.compiler.rewrite import Decline
from llmc.passes.match import reshaped, scalar, through_views, without_ones

_NEVER = -1e30  # a score this low has weight exp(-1e30) = 0


class Masks(NamedTuple):
    """The keys `[b, t]` and the bias of `mha`, and whether a query without keys takes all values evenly."""

    keys: Node | None = None
    bias: Node | None = None
    evenly: bool = False


def keys_and_bias(core: Node) -> Masks | Decline:
    """The mask of an `attention` as `mha` has it."""
    if not core.attributes["has_mask"]:
        return Masks()
    mask, batch, length = core.inputs[3], core.shape[0], core.inputs[1].shape[2]
    mask = reshaped(mask, (1,) * (4 - mask.type.rank) + mask.shape)
    if mask.dtype == "bool":
        keys = _as_keys(mask, batch, length)
        return Masks(keys) if keys else Decline("the mask is boolean and differs between queries or heads")
    return _split_bias(mask, batch, length)


def _as_keys(mask: Node, batch: object, length: object) -> Node | None:
    """A bool mask `[1|b, 1, 1, t]` as `[b, t]`."""
    if mask.shape[1:] != (1, 1, length) or mask.shape[0] not in (1, batch):
        return None
    flat = reshaped(mask, (mask.shape[0], length))
    if flat.shape == (batch, length):
        return flat
    return make("expand", (flat,), mask.source, shape=(batch, length))


def _split_bias(mask: Node, batch: object, length: object) -> Masks:
    """Addends that are 0 or very low, and the same for all queries and heads, become keys; the rest is bias.

    Where at least one key is attended to, a score lowered so far has weight 0 either way. Where none is, a finite
    addend swallows all scores, and they are equal.
    """
    keys: Node | None = None
    bias: Node | None = None
    evenly = True
    terms = _terms(mask)
    if _lowers_twice(terms):
        return Masks(bias=mask)
    for term in terms:
        flags = _as_flags(term)
        found = _as_keys(flags, batch, length) if flags is not None else None
        if found is None:
            bias = term if bias is None else make("add", (bias, term), mask.source)
        else:
            keys = found if keys is None else make("and", (keys, found), mask.source)
            evenly = evenly and _is_finite(term)
    bias = None if bias is None else reshaped(bias, (1,) * (4 - bias.type.rank) + bias.shape)
    return Masks(keys, bias, evenly and keys is not None)


def _lowers_twice(terms: list[Node]) -> bool:
    """Whether a score may be lowered by a finite addend and another: where every key is, those lowered once count."""
    low = [term for term in terms if holds_low(term)]
    return len(low) > 1 and any(_as_flags(term) is not None and _is_finite(term) for term in low)


def _is_finite(term: Node) -> bool:
    """Whether a term that is 0 or very low is low by a finite number."""
    term = through_views(term)
    return all(math.isfinite(scalar(x)) for x in term.inputs if is_low(x))


def _terms(node: Node) -> list[Node]:
    if node.op == "add":
        return [*_terms(node.inputs[0]), *_terms(node.inputs[1])]
    return [node]


def _as_flags(term: Node) -> Node | None:
    """True where the term is 0, if everywhere else it is very low."""
    found = _two_valued(term)
    if found is not None and found.type.rank <= 4:
        return reshaped(found, (1,) * (4 - found.type.rank) + found.shape)


def _two_valued(term: Node) -> Node | None:
    match term:
        case Node("reshape", (x,)) if (inner := _two_valued(x)) is not None:
            same = without_ones(inner.shape) == without_ones(term.shape)
            return reshaped(inner, term.shape) if same else None
        case Node("where", (c, zero, low)) if _is(zero, 0) and is_low(low):
            return c
        case Node("where", (c, low, zero)) if _is(zero, 0) and is_low(low):
            return make("not", (c,), term.source)
        case Node("mul", (a, low)) if is_low(low) and math.isfinite(scalar(low)):  # 0 * -inf is NaN
            return _zero_one(a, term)
        case Node("mul", (low, a)) if is_low(low) and math.isfinite(scalar(low)):
            return _zero_one(a, term)


def _zero_one(node: Node, term: Node) -> Node | None:
    """True where `node` is 0, if it is 1 everywhere else."""
    match node:
        case Node("cast", (c,)) if c.dtype == "bool":
            return make("not", (c,), term.source)
        case Node("sub", (one, Node("cast", (m,)))) if _is(one, 1):
            return _ones(m, term)


def _ones(mask: Node, term: Node) -> Node | None:
    """True where an integer mask, declared by its input to be 0 or 1, is 1."""
    root = through_views(mask)
    if root.op == "input" and (root.attributes["low"], root.attributes["high"]) == (0, 1):
        return make("cast", (mask,), term.source, dtype="bool")


def _is(node: Node, value: float) -> bool:
    return scalar(node) is not None and scalar(node) == value


def is_low(node: Node) -> bool:
    """Whether a score of this value has weight 0 beside any other."""
    return scalar(node) is not None and scalar(node) <= _NEVER


def holds_low(term: Node) -> bool:
    """Whether a term may have very low values: a constant that low is worked into it."""
    pending, seen = [term], set[Node]()
    while pending:
        node = pending.pop()
        if is_low(node):
            return True
        if node not in seen and (OPS[node.op].elementwise or OPS[node.op].moves):
            seen.add(node)
            pending += node.inputs
    return False
