"""Element-wise ops and fused chains of them: what they compute, for every backend."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.compiler import extensions
from llmc.compiler.dims import Dim, dim
from llmc.compiler.graph import Node, TensorType
from llmc.compiler.ops import OPS
from llmc.compiler.ops.elementwise import Step, chain_value
from llmc.compiler.ops.rules import same_dim
from llmc.errors import LlmcError
from llmc.targets.tir.emit import Emitter, Expr
from llmc.targets.tir.scalar_ops import OPERATIONS, apply, in_register
from llmc.targets.tir.sums import is_product

_DEEP = 3  # steps of a chain that are one expression at most
OPS_OF_CHAINS = (*OPERATIONS, "cast", "chain")


@dataclass(frozen=True)
class Recipe:
    """All an element-wise kernel depends on.

    Args:
        body: steps as in `chain`.
        dtypes: of the inputs.
        result: dtype of the output.
        axes: for each merged axis, which inputs have it.
    """

    body: tuple[Step, ...]
    dtypes: tuple[str, ...]
    result: str
    axes: tuple[tuple[bool, ...], ...]


def merge_axes(shape: tuple[Dim, ...], inputs: list[tuple[Dim, ...]]) -> list[tuple[Dim, tuple[bool, ...]]]:
    """(extent, which inputs have the axis) for each run of axes that all inputs treat alike; at least one."""
    merged: list[tuple[Dim, tuple[bool, ...]]] = []
    for position, extent in enumerate(shape):
        if same_dim(extent, 1):
            continue
        back = position - len(shape)
        has = tuple(len(s) >= -back and not same_dim(s[back], 1) for s in inputs)
        if merged and merged[-1][1] == has:
            merged[-1] = (dim(merged[-1][0] * extent), has)
        else:
            merged.append((extent, has))
    return merged or [(1, (True,) * len(inputs))]


def body_of(node: Node) -> tuple[Step, ...]:
    """The steps of an element-wise node as a chain's body."""
    if node.op == "chain":
        body: tuple[Step, ...] = node.attributes["body"]
        return tuple(_known_exponent(node, step) for step in body)
    attributes = tuple(sorted(node.attributes.items()))
    return (_known_exponent(node, (node.op, tuple(range(len(node.inputs))), attributes)),)


def _known_exponent(node: Node, step: Step) -> Step:
    """`pow` by a constant 1, 2, 3 or 4 is a product."""
    op, refs, _ = step
    if op == "pow" and refs[1] >= 0 and node.inputs[refs[1]].op == "constant":
        array = node.inputs[refs[1]].attributes["value"].array
        if array.size == 1 and array.item() in (1, 2, 3, 4):
            return (op, refs, (("exponent", int(array.item())),))
    return step


def ops_of(body: tuple[Step, ...]) -> list[str]:
    """The ops of a chain, each once."""
    return list(dict.fromkeys(op for op, _, _ in body))


def family_of(body: tuple[Step, ...]) -> str:
    """Names a chain in a profile, with the ops in it that come from outside."""
    return "_".join(["chain", *(op for op in ops_of(body) if OPS[op].origin)])


def want_computable(backend: str, body: tuple[Step, ...]) -> None:
    """Refuse a chain with an op that has no code for `backend`: an extension may have left it out."""
    known = extensions.scalars(backend)
    missing = [op for op in ops_of(body) if op not in OPS_OF_CHAINS and op not in known]
    if missing:
        raise LlmcError(", ".join(missing))


def evaluate(k: Emitter, recipe: Recipe, inputs: list[Expr]) -> Expr:
    """The chain's value on vectors of its inputs.

    Ops name an operand up to three times (`relu`, `maximum`), and TVM's analyzer puts what a name is bound to into
    every expression that reads it: eight in a row would be 3^8. So what is nested deep goes through a register, but
    for products: what adds them has to see them (`float_sum`).
    """
    results: list[Expr] = []
    kinds: list[str] = []
    depths: list[int] = []
    for op, refs, attributes in recipe.body:
        dtypes = tuple(chain_value(r, recipe.dtypes, kinds) for r in refs)
        known = {name: value for name, value in attributes if op != "pow"}
        kinds.append(OPS[op].rule(*(TensorType(d, ()) for d in dtypes), **OPS[op].complete(known)).dtype)
        arguments = [chain_value(r, inputs, results) for r in refs]
        depth = 1 + max((depths[-1 - r] for r in refs if r < 0), default=0)
        if depth >= _DEEP and op == "mul":
            arguments, depth = [in_register(k, a) for a in arguments], 1
        extra = {} if op == "cast" else dict(attributes)
        value = apply(k, op, dtypes, kinds[-1], arguments, extra)
        if depth >= _DEEP and not is_product(k, value):
            value, depth = in_register(k, value), 0
        results.append(value)
        depths.append(depth)
    return results[-1]
