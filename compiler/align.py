"""Which node of one graph stands for which of another: by structure first, then by source, op, type and position; and
which of them are one value, computed in two ways (`counterparts`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

import sympy

from llmc.compiler.dims import Dim, dim_text
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops.linear import EXTRAS

Key = Callable[[Node], Hashable]


def align(a: Graph, b: Graph) -> dict[Node, Node]:
    """Node of `a` -> node of `b`. What is in neither has no partner in the other graph."""
    found = _Alignment(a, b)
    found.equal_parts()
    found.by_name()
    for key in (_place_and_type, _place, _kind):
        found.follow()
        found.in_order(key)
    found.constants_of_readers()
    return found.pairs


def _place_and_type(node: Node) -> Hashable:
    return node.op, node.source.path, _constant(node), str(node.type)


def _place(node: Node) -> Hashable:
    return node.op, node.source.path, _constant(node)


def _kind(node: Node) -> Hashable:
    """Of another frontend, which names places in its own way. Constants are told apart by what reads them."""
    return ("constant", node) if node.op == "constant" else (node.op, str(node.type))


def _constant(node: Node) -> str:
    return str(node.attributes["value"].name) if node.op == "constant" else ""


class _Alignment:
    """The pairs so far, and who is left."""

    def __init__(self, a: Graph, b: Graph) -> None:
        self.a, self.b = a, b
        self.pairs: dict[Node, Node] = {}
        self.taken: set[Node] = set()

    def pair(self, a: Node, b: Node) -> None:
        if a not in self.pairs and b not in self.taken:
            self.pairs[a] = b
            self.taken.add(b)

    def left(self) -> tuple[list[Node], list[Node]]:
        return (
            [n for n in self.a.nodes if n not in self.pairs],
            [n for n in self.b.nodes if n not in self.taken],
        )

    def equal_parts(self) -> None:
        """Nodes that compute the same from the same, whatever they are called; of several, those of one source."""
        numbers = Numbers()
        for exact in (True, False):
            places: dict[Hashable, list[Node]] = defaultdict(list)
            rest, others = self.left()
            for node in others:
                places[numbers.of(node), exact and node.source.path].append(node)
            for node in rest:
                if twins := places[numbers.of(node), exact and node.source.path]:
                    self.pair(node, twins.pop(0))

    def by_name(self) -> None:
        """Inputs and states."""
        known = {(n.op, n.attributes["name"]): n for n in (*self.b.inputs, *self.b.states)}
        for node in (*self.a.inputs, *self.a.states):
            if twin := known.get((node.op, node.attributes["name"])):
                self.pair(node, twin)

    def follow(self) -> None:
        """Nodes of the same op on inputs that are paired already."""
        for node in self.a.nodes:
            if node in self.pairs or not node.inputs or not all(i in self.pairs for i in node.inputs):
                continue
            inputs = tuple(self.pairs[i] for i in node.inputs)
            users = self.b.users[inputs[0]]
            twin = next(
                (n for n in users if n not in self.taken and (n.op, n.inputs) == (node.op, inputs)), None
            )
            if twin is not None:
                self.pair(node, twin)

    def in_order(self, key: Key) -> None:
        """Nodes of equal keys, in the longest runs that have them in the same order."""
        rest, others = self.left()
        for a, b in _matches(list(map(key, rest)), list(map(key, others))):
            self.pair(rest[a], others[b])

    def constants_of_readers(self) -> None:
        """Constants that paired nodes read at the same place."""
        for node, twin in list(self.pairs.items()):
            for a, b in zip(node.inputs, twin.inputs, strict=False):
                if a.op == b.op == "constant":
                    self.pair(a, b)


def _matches(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]


class Numbers:
    """Equal numbers for nodes that compute the same from the same."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._done: dict[Node, int] = {}

    def of(self, node: Node) -> int:
        """Its inputs come first in a graph's list of nodes, so that this need not go deep."""
        if node not in self._done:
            attributes = tuple(sorted((k, self.plain(v)) for k, v in node.attributes.items()))
            inputs = tuple(map(self.of, node.inputs))
            self._done[node] = self._number((node.op, inputs, attributes, str(node.type)))
        return self._done[node]

    def plain(self, value: Any) -> str:
        """A text that is equal for equal values."""
        if isinstance(value, Weight):
            return value.digest
        if isinstance(value, Graph):
            roots = (f"{name}:{self.of(node)}" for name, node in value.outputs.items())
            return f"graph({[*map(self.of, value.nodes)]}, {[*roots]})"
        if isinstance(value, tuple):
            return f"({', '.join(map(self.plain, value))})"
        return dim_text(value) if isinstance(value, sympy.Expr) else repr(value)

    def _number(self, key: Hashable) -> int:
        return self._known.setdefault(key, len(self._known))


# --- one value, computed in two ways

_SILENT = ("input", "state", "constant")
_MOVES = frozenset(
    {"reshape", "ensure_shape", "transpose", "expand", "slice"}
)  # what they give is compared before
_PRODUCTS = frozenset({"matmul", "split_linear"})  # and whatever has an epilogue
_ATTENTION, _NORM = "attention", "layer_norm"
_FAMILIES = {"mha": _ATTENTION, "ragged_mha": _ATTENTION, "embed_norm": _NORM, "add_norm": _NORM}
# What `fuse` makes of several nodes of one module, and rows that are looked up in stored ones: their value is the last.
_MADE = frozenset(
    {_ATTENTION, _NORM, "rms_norm", "gelu", "silu", "softmax", "rotary", "lstm_cell", "gru_cell"}
)
_DECODED = frozenset({"blockwise", "codebook", "bitmask", "dequantize", "dequantize_rows", "cast", "mul"})


def counterparts(a: Graph, b: Graph) -> dict[Node, Node]:
    """Node of `a` -> node of `b` that computes the same value, or would if its shape were the same; in `a`'s order."""
    ours, theirs = values(a), values(b)
    if not _paths(ours) & _paths(theirs):  # other frontends name places otherwise
        wanted = set(theirs)
        return {
            x: y
            for x, y in align(a, b).items()
            if y in wanted and x.op not in _MOVES and _work(x) == _work(y)
        }
    found = _Pairs(a, b, ours, theirs)
    found.outputs()
    for key in (_source_and_shape, _path_and_shape):
        found.in_order(key)
    found.across_epilogues()
    found.last_of_modules()
    for key in (_source_and_place, _path_and_work):
        found.in_order(key)
    return {node: found.pairs[node] for node in ours if node in found.pairs}


def is_value(node: Node) -> bool:
    """Whether a node is computed, and of real numbers."""
    return node.op not in _SILENT and node.type.dtype in ("f32", "f16")


def values(graph: Graph) -> list[Node]:
    """Those that are compared."""
    return [node for node in graph.nodes if is_value(node)]


def modules_of(graph: Graph) -> list[str]:
    """The modules that compute something, in order."""
    return [*dict.fromkeys(n.source.path for n in values(graph) if n.op not in _MOVES)]


def _paths(nodes: Sequence[Node]) -> set[str]:
    return {node.source.path for node in nodes}


def _work(node: Node) -> Hashable:
    """What a node is for, whatever it does it with."""
    if _is_product(node):
        return "product", _steps(node)
    if node.op == "chain":  # the op of its last step
        return str(node.attributes["body"][-1][0])
    return _family(node)


def _family(node: Node) -> str:
    return _FAMILIES.get(node.op, node.op)


def _is_product(node: Node) -> bool:
    return "epilogue" in node.attributes or node.op in _PRODUCTS


def _steps(node: Node) -> tuple[str, ...]:
    """What a product does to its sums; `gelu_poly` and `gelu_tanh` are gelu."""
    return tuple(step.partition("_")[0] for step in node.attributes.get("epilogue", ()))


def weak_shape(shape: Sequence[Dim]) -> tuple[str, ...]:
    """A shape without axes of 1 and with one axis for all leading dims that have names: packed rows look as others."""
    sides = ["?" if not isinstance(d, int) else dim_text(d) for d in shape if d != 1]
    named = next((i for i, side in enumerate(sides) if side != "?"), len(sides))
    return (*sides[:named][:1], *sides[named:])


def _source_and_shape(node: Node) -> Hashable:
    return str(node.source), _work(node), weak_shape(node.shape)


def _path_and_shape(node: Node) -> Hashable:
    return node.source.path, _work(node), weak_shape(node.shape)


def _source_and_place(node: Node) -> Hashable:
    """Another op in the place of one: `sigmoid` for `tanh`."""
    steps = tuple(step in EXTRAS for step in _steps(node)) if _is_product(node) else ()
    kind = "product" if _is_product(node) else _family(node) if _family(node) in _MADE else "value"
    return str(node.source), weak_shape(node.shape), kind, steps


def _path_and_work(node: Node) -> Hashable:
    return node.source.path, _work(node)


def _path_of_product(node: Node) -> Hashable:
    return node.source.path, weak_shape(node.shape)


class _Pairs:
    """The pairs so far."""

    def __init__(self, a: Graph, b: Graph, ours: Sequence[Node], theirs: Sequence[Node]) -> None:
        self.a, self.b, self.ours, self.theirs = a, b, ours, theirs
        self.pairs: dict[Node, Node] = {}
        self._taken: set[Node] = set()

    def pair(self, a: Node, b: Node) -> None:
        if a not in self.pairs and b not in self._taken:
            self.pairs[a] = b
            self._taken.add(b)

    def outputs(self) -> None:
        """Outputs of one name are one value."""
        for name, node in self.a.outputs.items():
            twin = self.b.outputs.get(name)
            if twin is not None and is_value(node) and is_value(twin):
                self.pair(node, twin)

    def in_order(self, key: Key) -> None:
        """Nodes of equal keys, where both graphs have as many of them."""
        ours, theirs = self._left(key)
        for name, nodes in ours.items():
            if len(nodes) == len(others := theirs.get(name, ())):
                for a, b in zip(nodes, others, strict=True):
                    self.pair(a, b)

    def _left(self, key: Key) -> tuple[dict[Hashable, list[Node]], dict[Hashable, list[Node]]]:
        return (
            _grouped((n for n in self.ours if n not in self.pairs and n.op not in _MOVES), key),
            _grouped((n for n in self.theirs if n not in self._taken and n.op not in _MOVES), key),
        )

    def across_epilogues(self) -> None:
        """A product that has more fused in stands for what follows the other one."""
        ours, theirs = (
            _grouped(filter(_is_product, nodes), _path_of_product) for nodes in (self.ours, self.theirs)
        )
        for name, nodes in ours.items():
            if len(nodes) != len(others := theirs.get(name, ())):
                continue
            for a, b in zip(nodes, others, strict=True):
                more, fewer = _steps(b)[len(_steps(a)) :], _steps(a)[len(_steps(b)) :]
                x, y = _after(self.a, a, more), _after(self.b, b, fewer)
                same = (*_steps(a), *more) == (*_steps(b), *fewer)
                if same and x is not None and y is not None:
                    self.pair(x, y)

    def last_of_modules(self) -> None:
        """The last value of a module, where one graph has made one node of what gives it in the other."""
        ours, theirs = (_by_module(nodes) for nodes in (self.ours, self.theirs))
        for path in (path for path in ours if path in theirs):
            a, b = ours[path][-1], theirs[path][-1]
            if weak_shape(a.shape) != weak_shape(b.shape) or _is_product(a) or _is_product(b):
                continue
            if a.op in _MOVES and b.op in _MOVES:
                made = _made(ours[path]) != _made(theirs[path])
            else:
                made = bool(_made([a])) != bool(_made([b]))
            looked_up = {a.op, b.op} - _DECODED == {"embedding"} and a.op != b.op
            if made or looked_up:
                self.pair(a, b)


def _by_module(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.source.path:
            found[node.source.path].append(node)
    return found


def _made(nodes: Iterable[Node]) -> set[str]:
    return {_family(node) for node in nodes} & _MADE


def _grouped(nodes: Iterable[Node], key: Key) -> dict[Hashable, list[Node]]:
    groups: dict[Hashable, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[key(node)].append(node)
    return groups


def _after(graph: Graph, node: Node | None, steps: Sequence[str]) -> Node | None:
    """What the steps of an epilogue make of a node where they are nodes of their own; None: they are not."""
    for step in steps:
        users = graph.users[node] if node is not None else ()
        op = "add" if step in EXTRAS else step
        node = users[0] if len(users) == 1 and users[0].op == op else None
    return node
