"""Telling when an in-place op may be read as a plain one.

torch.export keeps `x.add_(y)`. It means `z = x + y` if nothing reads x's memory afterwards, be it through a
view taken of it; that is so for accumulators such as `scores += bias`. Functionalisation by torch settles
every case but runs the whole model again, which takes many seconds for a large one.
"""

from __future__ import annotations

from typing import Any

HARMLESS = frozenset({"aten::detach_"})


def mutates(node: Any) -> bool:
    """Whether a call writes into an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and schema.name not in HARMLESS


def plain(graph: Any) -> bool:
    """Whether every in-place op of an FX graph may be read as the op that returns a new tensor."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    return all(_is_last_reader(node, order) for node in graph.nodes if mutates(node))


def plain_name(name: str) -> str:
    """`aten.add_.Tensor` -> `aten.add.Tensor`"""
    namespace, op, overload = name.split(".")
    return f"{namespace}.{op.rstrip('_')}.{overload}"


def _is_last_reader(node: Any, order: dict[Any, int]) -> bool:
    """No other name of the memory `node` writes to is read after it, except through its own result."""
    owner = node.args[0]
    while owner.op == "call_function" and _aliases(owner):
        owner = owner.args[0]
    if owner.op != "call_function":
        return False  # a weight or an input
    pending = [owner]
    while pending:
        for user in pending.pop().users:
            if user is not node and order[user] > order[node]:
                return False
            if user is not node and _aliases(user):
                pending.append(user)
    return True


def _aliases(node: Any) -> bool:
    """Whether the result may share memory with the first argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)
