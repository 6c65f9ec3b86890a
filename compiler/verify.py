"""The verifier: what every graph and module must satisfy, checked after import and after each pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import sympy

from llmc.compiler.counted import counted_dim
from llmc.compiler.equality import same_type
from llmc.compiler.graph import DTYPES, Graph, Node, Results, Weight
from llmc.compiler.module import Module
from llmc.compiler.ops import OPS
from llmc.compiler.verify_dims import check_dims
from llmc.compiler.verify_states import broken, check_functions, check_states
from llmc.errors import LlmcError

_IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")
SCALARS = (str, bool, int, float, type(None), Weight, Graph)


def verify(graph: Graph) -> None:
    """Check `graph`. The invariants, in the order they are checked:

    - There is at least one output or next value of a state; they are nodes, their names non-empty strings.
    - No node reads its own result, directly or through others.
    - Every op is declared.
    - Every node has exactly the attributes of its op; each is a str, bool, int, float, None, dim, Weight, Graph
      or a tuple of these, so it is hashable and can be printed.
    - A constant's array has the dtype and shape of its type.
    - Every node's type is the one its op infers from its inputs.
    - No output is a node with several results, and each result is picked by one `result` node at most.
    - A body satisfies all of this by itself; its inputs have neither default nor range, it has no dims of its own, no
      states, and no dim is counted in it.
    - `Graph.inputs` are `input` nodes with distinct names, and every `input` node is listed there once; likewise
      `Graph.states` and `state` nodes.
    - An input's default lies within its `low` and `high`.
    - Every symbol is one of `dims.symbol`, so that equal names mean equal dims.
    - Every dim in use has bounds with 1 <= low <= high, and a name the text form can hold. The dim of a growing axis
      of a state has low = 0: a session begins with nothing. One that only inputs which nothing reads have may be 0, and
      one along which inputs are joined with more before anything is computed of them.
    - Every dim in use is the whole size of an axis of a required input or of a state, so its run-time size is known;
      or it is counted from a mask, which is an input and the same wherever that dim is counted.
    - Next values are of states in `Graph.states` and have their types, but for the size of the axis that grows.
    - An `append` is to a state whose first axis grows, and is its next value.
    - A dim that grows is nowhere else in the shape of a state, and states that share it come to the same length.
    - A slice of what grows lies inside while states are empty and other dims as small as they may be.

    Raises:
        LlmcError: an invariant is broken; the message names the node and its source.
    """
    _check_outputs(graph)
    _check_acyclic(graph)
    for node in graph.nodes:
        _check_node(node)
    _check_results(graph)
    _check_leaves(graph, "input", graph.inputs)
    _check_leaves(graph, "state", graph.states)
    for node in graph.inputs:
        _check_default(node)
    check_dims(graph)
    check_states(graph)


def verify_module(module: Module) -> None:
    """Check `module`: there is a function, each is valid and has a C identifier as name, dims have the same bounds and
    states the same type in all functions, what holds for states that share a dim holds for all of the module's, and
    some function's inputs give each other dim of a state.

    Raises:
        LlmcError: an invariant is broken; the message names the function.
    """
    if not module.functions:
        raise LlmcError("invalid module: it has no function")
    for name, graph in module.functions.items():
        if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
            raise LlmcError(
                f"invalid module: {name!r} cannot be the name of a function", hint="use a C identifier"
            )
        try:
            verify(graph)
        except LlmcError as error:
            at = f"function {name}" + (f", {error.at}" if error.at else "")
            raise LlmcError(error.problem, at=at, found=error.found, hint=error.hint) from None
    check_functions(module)


def _check_outputs(graph: Graph) -> None:
    if not graph.roots:
        raise broken("it has no outputs")
    for what, roots in (("output", graph.outputs), ("update", graph.updates)):
        for name, node in roots.items():
            if not isinstance(name, str) or not name:
                raise broken(f"the {what} name {name!r} is not a non-empty string")
            if not isinstance(node, Node):
                raise broken(f"{what} {name!r} is a {type(node).__name__}, not a node")


def _check_acyclic(graph: Graph) -> None:
    """Depth-first search without recursion; a node met again while it is open closes a cycle."""
    open_nodes: set[Node] = set()
    done: set[Node] = set()
    for root in (*graph.inputs, *graph.states, *graph.roots):
        stack: list[tuple[Node, Iterator[Node]]] = [(root, iter(root.inputs))] if root not in done else []
        open_nodes.update([root] if stack else [])
        while stack:
            node, pending = stack[-1]
            following = next((i for i in pending if i not in done), None)
            if following is None:
                stack.pop()
                open_nodes.discard(node)
                done.add(node)
            elif following in open_nodes:
                raise broken("a node reads its own result", following)
            else:
                open_nodes.add(following)
                stack.append((following, iter(following.inputs)))


def _check_node(node: Node) -> None:
    _check_op(node)
    _check_attributes(node)
    _check_constant(node)
    _check_type(node)
    _check_bodies(node)


def _check_op(node: Node) -> None:
    if node.op not in OPS:
        raise broken(f"there is no op {node.op!r}", node)


def _check_attributes(node: Node) -> None:
    expected = OPS[node.op].defaults.keys()
    if node.attributes.keys() != expected:
        difference = ", ".join(sorted(node.attributes.keys() ^ expected))
        raise broken(f"missing or unknown attributes: {difference}", node)
    for name, value in node.attributes.items():
        if not _is_value(value):
            raise broken(
                f"attribute {name} has no allowed value", node, found=f"{type(value).__name__} {value!r}"
            )


def _is_value(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_value, value))
    # exact types: a NumPy scalar would print and compare in its own way
    return type(value) in SCALARS or isinstance(value, sympy.Expr)


def _check_constant(node: Node) -> None:
    if node.op != "constant":
        return
    array = node.attributes["value"].array
    if array.dtype != DTYPES[node.dtype] or array.shape != node.shape:
        raise broken(
            "the constant's array differs from its type", node, found=f"{array.dtype}{list(array.shape)}"
        )


def _check_type(node: Node) -> None:
    inferred = OPS[node.op].infer(tuple(i.type for i in node.inputs), node.attributes, node.source)
    if not same_type(inferred, node.type):
        raise broken(f"the type is {node.type}, the op gives {inferred}", node)


def _check_results(graph: Graph) -> None:
    picked: set[tuple[Node, int]] = set()
    for node in graph.nodes:
        if node.op != "result":
            continue
        key = (node.inputs[0], node.attributes["index"])
        if key in picked:
            raise broken(f"result {key[1]} of a node is picked twice", node)
        picked.add(key)
    for what, roots in (("output", graph.outputs), ("update", graph.updates)):
        for name, node in roots.items():
            if isinstance(node.type, Results):
                raise broken(
                    f"{what} {name!r} is a node with several results", node, hint="pick one with result"
                )


def _check_bodies(node: Node) -> None:
    for body in node.bodies:
        try:
            _check_body(body)
        except LlmcError as error:
            at = f"{error.at or 'the graph'}, in a body of {node!r}"
            raise LlmcError(error.problem, at=at, found=error.found, hint=error.hint) from None


def _check_body(body: Graph) -> None:
    """What `verify` checks, but for the dims: they are those of the graph around the body, which counts them in."""
    _check_outputs(body)
    _check_acyclic(body)
    for node in body.nodes:
        _check_node(node)
        if counted_dim(node):
            raise broken("a dim is counted inside a body", node)
        if node.op in ("state", "append"):
            raise broken("a state is read or written inside a body", node)
    _check_results(body)
    _check_leaves(body, "input", body.inputs)
    for node in body.inputs:
        if any(node.attributes[k] is not None for k in ("default", "low", "high")):
            raise broken("an input of a body has a default or a range", node)
    if body.dims:
        raise broken("a body has dims of its own", found=", ".join(body.dims))
    if body.states or body.updates:
        raise broken("a body has states")


def _check_leaves(graph: Graph, op: str, listed: tuple[Node, ...]) -> None:
    """The inputs, or the states: of that op, with names of their own, and all that are used."""
    names: set[str] = set()
    for node in listed:
        if node.op != op:
            raise broken(f"a graph {op} is not {'an' if op == 'input' else 'a'} `{op}` node", node)
        name = node.attributes["name"]
        if name in names:
            raise broken(f"two {op}s are called {name!r}", node)
        names.add(name)
    known = set(listed)
    for node in graph.nodes:
        if node.op == op and node not in known:
            raise broken(f"{op} {node.attributes['name']!r} is used and not listed in Graph.{op}s", node)


def _check_default(node: Node) -> None:
    default, low, high = (node.attributes[k] for k in ("default", "low", "high"))
    if default is None:
        return
    if (low is not None and default < low) or (high is not None and default > high):
        raise broken(f"the default {default} is not within {low}..{high}", node)
