"""What must hold of an ONNX file before it is imported: names are made once, and nothing depends on itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from llmc.errors import LlmcError

MOST_NODES = 200_000  # after local functions and bodies are written out
MOST_DEPTH = 60  # of bodies within bodies, and of functions that call functions
_DAMAGED = "the file is damaged: export it again"


def want_sense(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a file whose graph means nothing, or whose functions have no end."""
    if not all(isinstance(text, str) for text in _texts(model)):
        raise LlmcError("a name in the file is no text", at=str(path), hint=_DAMAGED)
    _want_once((o.name for o in model.graph.output), "two outputs are called", path)
    _want_once((t.name for t in model.graph.initializer), "two weights are called", path)
    _want_once(_made(model.graph.node), "two nodes make", path)
    _want_once((i.name for i in model.graph.input), "two inputs are called", path)
    taken = {named.name for named in (*model.graph.input, *model.graph.initializer)}
    if again := next((name for name in _made(model.graph.node) if name in taken), None):
        raise LlmcError(f"a node makes {again!r}, which is an input or a weight", at=str(path), hint=_DAMAGED)
    if model.graph.sparse_initializer:
        raise LlmcError("the file has sparse weights", at=str(path), hint="export them dense")
    count = _Counter(model, path).graph(model.graph.node, 0)
    if count > MOST_NODES:
        raise LlmcError(
            f"the graph has more than {MOST_NODES} nodes",
            at=str(path),
            found=f"{count} with all functions written out",
            hint="functions that call functions many times grow without end",
        )


def _texts(model: onnx.ModelProto) -> Iterable[Any]:
    """All names; what is no UTF-8 protobuf hands over as bytes."""
    graph = model.graph
    for named in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        yield named.name
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)
    yield from (o.domain for o in model.opset_import)
    yield from (model.producer_name, model.producer_version, graph.name)
    for nodes in (graph.node, *(f.node for f in model.functions)):
        yield from _of_nodes(nodes)


def _of_nodes(nodes: Iterable[Any]) -> Iterable[Any]:
    for node in nodes:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (text for a in node.attribute for text in (a.name, a.ref_attr_name))
        for body in bodies_of(node):
            yield from (named.name for named in (*body.input, *body.output, *body.initializer))
            yield from _of_nodes(body.node)


def _made(nodes: Iterable[Any]) -> Iterable[str]:
    return (name for node in nodes for name in node.output if name)


def _want_once(names: Iterable[str], words: str, path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise LlmcError(f"{words} {name!r}", at=str(path), hint=_DAMAGED)
        seen.add(name)


class _Counter:
    """Counts nodes with functions written out, each function once."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self.path = path
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.known: dict[tuple[str, str], int] = {}
        self.pending: set[tuple[str, str]] = set()

    def graph(self, nodes: Sequence[Any], depth: int) -> int:
        if depth > MOST_DEPTH:
            raise LlmcError(
                f"bodies and functions lie more than {MOST_DEPTH} deep", at=str(self.path), hint=_DAMAGED
            )
        return sum(self.node(node, depth) for node in nodes)

    def node(self, node: Any, depth: int) -> int:
        bodies = sum(self.graph(body.node, depth + 1) for body in bodies_of(node))
        key = (node.domain, node.op_type)
        return 1 + bodies + (self.function(key, depth) if key in self.functions else 0)

    def function(self, key: tuple[str, str], depth: int) -> int:
        if key in self.pending:
            raise LlmcError(
                f"the function {key[1]!r} calls itself",
                at=str(self.path),
                hint="functions cannot be recursive",
            )
        if key not in self.known:
            self.pending.add(key)
            self.known[key] = self.graph(self.functions[key].node, depth + 1)
            self.pending.remove(key)
        return self.known[key]


def bodies_of(node: Any) -> list[Any]:
    """The graphs in a node's attributes."""
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else ()), *a.graphs)]


def read_names(node: Any) -> set[str]:
    """What a node reads, what its bodies read from around them included; of a Gradient what it differentiates, too."""
    names = {name for name in node.input if name}
    if node.op_type == "Gradient":
        names |= {a.s.decode(errors="ignore") for a in node.attribute if a.name == "y"}
    for body in bodies_of(node):
        names |= outer_names(body)
    return names


def outer_names(body: Any) -> set[str]:
    """What a body reads from around it."""
    own = {*(i.name for i in body.input), *(t.name for t in body.initializer), *_made(body.node)}
    read = {name for node in body.node for name in read_names(node)}
    return (read | {o.name for o in body.output}) - own


def in_order(nodes: Sequence[Any], wanted: Iterable[str], at: str) -> list[Any]:
    """The nodes that `wanted` names depend on, each behind those it reads.

    Raises:
        LlmcError: they depend on themselves.
    """
    makers = {name: node for node in nodes for name in node.output if name}
    order: list[Any] = []
    state: dict[int, bool] = {}  # id of a node -> whether it is done
    stack = [(makers[name], False) for name in reversed(list(wanted)) if name in makers]
    while stack:
        node, ready = stack.pop()
        if ready:
            state[id(node)] = True
            order.append(node)
        elif id(node) not in state:
            state[id(node)] = False
            stack.append((node, True))
            stack += _before(node, makers, state, at)
    return order


def _before(
    node: Any, makers: Mapping[str, Any], state: Mapping[int, bool], at: str
) -> list[tuple[Any, bool]]:
    found = []
    for name in sorted(read_names(node), reverse=True):
        other = makers.get(name)
        if other is None or state.get(id(other)):
            continue
        if id(other) in state:
            raise LlmcError(
                f"the graph of the file makes no sense: {name!r} depends on itself", at=at, hint=_DAMAGED
            )
        found.append((other, False))
    return found
