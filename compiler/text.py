"""The text form of a graph: one line for each node, readable, and read back exactly.

    dims batch=1..8, seq=1..512
    %0 = input() {name="ids", dtype="i64", shape=(batch, seq)} : i64[batch, seq]
    %w0 = constant() {value=weight("embeddings.weight", "8c5f1e0a7d3b9f42")} : f32[30522, 384]
    %1 = embedding(%w0, %0) : f32[batch, seq, 384]  # embeddings (modeling_bert.py:101)
    return {"hidden": %1}

A body of a loop or branch stands before the graph, as `graph 0` and its lines up to `return`; the attribute names it:

    graph 0
      %0 = input() {name="x", dtype="f32", shape=(batch, 8)} : f32[batch, 8]
      %1 = tanh(%0) : f32[batch, 8]
      return {"x": %1}
    %1 = loop(%0) {body=graph(0), count=seq, carried=1} : (f32[batch, 8])

A function with states says in the last line which nodes are their next values: `return {...} update {"keys": %7}`.
In the text of a module each function begins with a line `function NAME`.

Attributes at their defaults are left out. Constants of up to 8 elements are written out, larger ones are
named by the first 16 digits of their digest. A `#` line is a comment; hand-written text may leave out types.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import sympy

from llmc.compiler.dims import Bounds, dim, dim_text, parse_dim
from llmc.compiler.graph import DTYPES, Graph, Node, Results, Source, TensorType, Weight, dtype_name
from llmc.compiler.module import FORWARD, Module
from llmc.compiler.ops import OPS, make
from llmc.errors import LlmcError

INLINE = 8  # elements of the largest constant that is written out
DIGITS = 16  # of a digest


def weights_of(graph: Graph) -> dict[str, Weight]:
    """digest -> Weight of every constant, as `parse_graph` wants them."""
    values = (value for node in graph.everywhere() for value in node.attributes.values())
    return {value.digest: value for value in values if isinstance(value, Weight)}


# --- printing


def print_graph(graph: Graph) -> str:
    """`graph` as text, ending in a newline."""
    dims = ", ".join(f"{name}={low}..{high}" for name, (low, high) in graph.dims.items())
    bodies: dict[Graph, int] = {}
    for body in _bodies(graph):
        bodies.setdefault(body, len(bodies))
    lines = [f"dims {dims}".rstrip()]
    for body, number in bodies.items():
        lines += [f"graph {number}", *(f"  {line}" for line in _lines(body, bodies))]
    return "\n".join([*lines, *_lines(graph, bodies), ""])


def _bodies(graph: Graph) -> Iterator[Graph]:
    """The bodies in `graph`, inner ones first."""
    for node in graph.nodes:
        for body in node.bodies:
            yield from _bodies(body)
            yield body


def _lines(graph: Graph, bodies: Mapping[Graph, int]) -> list[str]:
    """The nodes and the `return` of a graph."""
    names: dict[Node, str] = {}
    constants = 0
    for node in graph.nodes:
        is_constant = node.op == "constant"
        names[node] = f"%w{constants}" if is_constant else f"%{len(names) - constants}"
        constants += is_constant
    update = f" update {_named_nodes(graph.updates, names)}" if graph.updates else ""
    lines = [_node_line(node, names, bodies) for node in graph.nodes]
    return [*lines, f"return {_named_nodes(graph.outputs, names)}{update}"]


def print_module(module: Module) -> str:
    """All functions of `module` as text, each as a graph under a line `function NAME`."""
    return "\n".join(f"function {name}\n{print_graph(graph)}" for name, graph in module.functions.items())


def _named_nodes(nodes: Mapping[str, Node], names: Mapping[Node, str]) -> str:
    return f"{{{', '.join(f'{_quoted(name)}: {names[node]}' for name, node in nodes.items())}}}"


def _node_line(node: Node, names: Mapping[Node, str], bodies: Mapping[Graph, int]) -> str:
    declared = OPS.get(node.op)
    defaults = declared.defaults if declared else {}
    given = [
        (k, v) for k, v in node.attributes.items() if k not in defaults or not same_value(v, defaults[k])
    ]
    attributes = ", ".join(
        f"{k}={f'graph({bodies[v]})' if isinstance(v, Graph) else value_text(v)}" for k, v in given
    )
    arguments = ", ".join(names[i] for i in node.inputs)
    line = f"{names[node]} = {node.op}({arguments}){f' {{{attributes}}}' if given else ''} : {node.type}"
    source = " ".join(str(node.source).split())
    return f"{line}  # {source}" if source else line


def value_text(value: Any) -> str:
    """An attribute value as text in Python's syntax; `inf` and `nan` are names."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(value_text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Weight):
        return _weight_text(value)
    if isinstance(value, sympy.Expr):
        return dim_text(dim(value))
    return repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _weight_text(weight: Weight) -> str:
    array = weight.array
    if array.size <= INLINE:
        values = tuple(math.nan if v != v else v for v in array.ravel().tolist())
        if _array(dtype_name(array.dtype), array.shape, values).tobytes() == array.tobytes():
            parts = (weight.name, dtype_name(array.dtype), array.shape, values)
            return f"tensor({', '.join(map(value_text, parts))})"
    # a NaN with unusual bits has no text of its own
    return f"weight({_quoted(weight.name)}, {_quoted(weight.digest[:DIGITS])})"


def _array(dtype: str, shape: tuple[int, ...], values: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    return np.array(values, DTYPES[dtype]).reshape(shape)


# --- parsing

_STRING = r'"(?:[^"\\]|\\["\\bfnrtu])*"'
_TENSOR = r"\w+\[[^\]]*\]"
_LINE = re.compile(
    r"%(?P<name>\w+) = (?P<op>\w+)\((?P<inputs>[^()]*)\)"
    rf"(?: \{{(?P<attributes>(?:[^\"'\\{{}}]|{_STRING})*)\}})?"
    rf"(?: : (?P<type>{_TENSOR}|\((?:{_TENSOR}(?:, )?)*\)))?(?:  # (?P<source>.*))?"
)
_SOURCE = re.compile(r"(?P<path>.*?)(?: \((?P<line>[^()]*)\))?")
_NAMED = rf"\{{((?:[^\"{{}}]|{_STRING})*)\}}"
_RETURN = re.compile(rf"return {_NAMED}(?: update {_NAMED})?")
_OUTPUT = re.compile(rf"\s*(?P<name>{_STRING}): %(?P<node>\w+)\s*(?:,|$)")
_FUNCTION = re.compile(r"function (?P<name>\w+)")


def parse_graph(text: str, weights: Mapping[str, Weight] | None = None) -> Graph:
    """The graph written by `print_graph`.

    Args:
        text: the text form.
        weights: digest -> Weight, for constants that are not written out.

    Raises:
        LlmcError: the text is malformed, a type rule refuses, a stated type is wrong or a weight is missing;
            the message has the line number.
    """
    parser = _Parser.of(weights)
    for number, line in _said(text):
        with _at_line(number, line):
            parser.line(line)
    return parser.graph()


def parse_module(text: str, weights: Mapping[str, Weight] | None = None) -> Module:
    """The module written by `print_module`. A text without a line `function NAME` is one function, `forward`.

    Raises:
        LlmcError: as `parse_graph`; or two functions have one name.
    """
    parsers: dict[str, _Parser] = {}
    for number, line in _said(text):
        with _at_line(number, line):
            if match := _FUNCTION.fullmatch(line):
                if match["name"] in parsers:
                    raise LlmcError(f"function {match['name']} is defined twice")
                parsers[match["name"]] = _Parser.of(weights)
            else:
                parsers = parsers or {FORWARD: _Parser.of(weights)}
                list(parsers.values())[-1].line(line)
    if not parsers:
        raise LlmcError("the text has no function")
    return Module({name: parser.graph(name) for name, parser in parsers.items()})


def _said(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, each with its number."""
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return ((number, line) for number, line in lines if line and not line.startswith("#"))


@contextmanager
def _at_line(number: int, line: str) -> Iterator[None]:
    try:
        yield
    except LlmcError as error:
        raise LlmcError(
            error.problem, at=f"line {number}", found=error.found or line, hint=error.hint
        ) from None


class _Parser:
    """What the lines so far have defined."""

    def __init__(self, weights: Mapping[str, Weight], bodies: dict[int, Graph]) -> None:
        self.weights = weights  # first digits of the digest -> Weight
        self.bodies = bodies
        self.within: tuple[int, _Parser] | None = None  # the body whose lines these are
        self.nodes: dict[str, Node] = {}
        self.inputs: list[Node] = []
        self.states: list[Node] = []
        self.outputs: dict[str, Node] | None = None
        self.updates: dict[str, Node] = {}
        self.dims: dict[str, Bounds] = {}

    @staticmethod
    def of(weights: Mapping[str, Weight] | None) -> _Parser:
        return _Parser({digest[:DIGITS]: weight for digest, weight in (weights or {}).items()}, {})

    def line(self, line: str) -> None:
        if self.outputs is not None:
            raise LlmcError("text after the `return` line")
        if self.within is not None:
            self._body_line(*self.within, line)
        elif line.startswith("graph "):
            self._begin(line.removeprefix("graph ").strip())
        elif line == "dims" or line.startswith("dims "):
            self._dims(line.removeprefix("dims").strip())
        elif line.startswith("return "):
            self._return(line)
        else:
            self._node(line)

    def _begin(self, text: str) -> None:
        if not re.fullmatch(r"\d{1,9}", text):
            _malformed("the number of a body", "graph 0")
        if int(text) in self.bodies:
            raise LlmcError(f"graph {text} is defined twice")
        self.within = int(text), _Parser(self.weights, self.bodies)

    def _body_line(self, number: int, body: _Parser, line: str) -> None:
        if re.match(r"(dims|graph)\b", line):
            raise LlmcError(f"graph {number} has no `return` line before this one")
        body.line(line)
        if body.outputs is not None:
            self.bodies[number] = body.graph()
            self.within = None

    def _dims(self, text: str) -> None:
        for part in text.split(",") if text else []:
            match = re.fullmatch(r"\s*([A-Za-z_]\w*)=(\d+)\.\.(\d+)\s*", part)
            if not match:
                raise LlmcError("not a dim with bounds", found=part, hint="write name=low..high")
            self.dims[match[1]] = Bounds(int(match[2]), int(match[3]))

    def graph(self, function: str = "") -> Graph:
        """What all lines have said."""
        if self.outputs is None:
            raise LlmcError("the graph has no `return` line", at=f"function {function}" if function else None)
        return Graph(tuple(self.inputs), self.outputs, self.dims, tuple(self.states), self.updates)

    def _return(self, line: str) -> None:
        match = _RETURN.fullmatch(line)
        if not match:
            _malformed("a list of outputs", 'return {"name": %node, ...}, then update {...} for states')
        self.outputs, self.updates = self._named_nodes(match[1]), self._named_nodes(match[2] or "")

    def _named_nodes(self, text: str) -> dict[str, Node]:
        nodes, position = {}, 0
        while position < len(text):
            match = _OUTPUT.match(text, position)
            if not match:
                _malformed("a list of outputs", '{"name": %node, ...}')
            nodes[self._value(_syntax_tree(match["name"]))] = self._named(match["node"])
            position = match.end()
        return nodes

    def _node(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if not match:
            _malformed("a node", "%name = op(%input, ...) {attribute=value, ...} : dtype[dims]  # source")
        if match["name"] in self.nodes:
            raise LlmcError(f"%{match['name']} is defined twice")
        inputs = [self._named(i.strip().removeprefix("%")) for i in match["inputs"].split(",") if i.strip()]
        source = _SOURCE.fullmatch(match["source"] or "")
        assert source is not None
        origin = Source(source["path"], source["line"] or "")
        node = make(match["op"], inputs, origin, **self._attributes(match["attributes"] or ""))
        if match["type"] and not same_type(_parse_type(match["type"]), node.type):
            raise LlmcError(f"the type is {node.type}, not {match['type']}")
        self.nodes[match["name"]] = node
        if node.op == "input":
            self.inputs.append(node)
        if node.op == "state":
            self.states.append(node)

    def _named(self, name: str) -> Node:
        if name not in self.nodes:
            raise LlmcError(f"%{name} is not defined above")
        return self.nodes[name]

    def _attributes(self, text: str) -> dict[str, Any]:
        call = _syntax_tree(f"_({text})")
        if not isinstance(call, ast.Call) or call.args:
            _malformed("a list of attributes", "name=value, ...")
        return {str(k.arg): self._value(k.value) for k in call.keywords}

    def _value(self, tree: ast.expr) -> Any:
        match tree:
            case ast.Constant(value=str() | int() | float() | None as value):
                return value
            case ast.Tuple(elts=elements):
                return tuple(map(self._value, elements))
            case ast.Name(id="inf" | "nan" as name):
                return float(name)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf" | "nan" as name)):
                return -float(name)
            case ast.Call(func=ast.Name(id="graph"), args=[ast.Constant(value=int(number))]):
                return self._body(number)
            case ast.Call(func=ast.Name(id="weight"), args=[name, digest]):
                return self._weight(self._value(name), self._value(digest))
            case ast.Call(func=ast.Name(id="tensor"), args=[name, dtype, shape, values]):
                return _tensor(*map(self._value, (name, dtype, shape, values)))
        return parse_dim(ast.unparse(tree))

    def _body(self, number: int) -> Graph:
        if number not in self.bodies:
            raise LlmcError(f"graph {number} is not defined above")
        return self.bodies[number]

    def _weight(self, name: str, digest: str) -> Weight:
        found = self.weights.get(digest)
        if found is None:
            raise LlmcError(f"no weight with digest {digest} is given for {name!r}", hint="pass weights=")
        return found if found.name == name else Weight(found.array, name)


def _tensor(name: str, dtype: str, shape: tuple[int, ...], values: tuple[Any, ...]) -> Weight:
    try:
        return Weight(_array(dtype, shape, values), name)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise LlmcError("not a tensor", hint="write tensor(name, dtype, shape, values)") from error


def _parse_type(text: str) -> TensorType:
    """The type written by `str(TensorType)`."""
    if text.startswith("("):
        return Results(map(_parse_type, re.findall(_TENSOR, text)))
    dtype, _, dims = text.rstrip("]").partition("[")
    tree = _syntax_tree(f"_({dims})")
    assert isinstance(tree, ast.Call)
    return TensorType(dtype, tuple(parse_dim(ast.unparse(d)) for d in tree.args))


def _syntax_tree(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LlmcError("not an expression", found=text) from error


def _malformed(what: str, form: str) -> NoReturn:
    raise LlmcError(f"not {what}", hint=f"write {form}")


# --- comparing


def same_value(a: Any, b: Any) -> bool:
    """Whether two attribute values are the same: 1, 1.0 and True differ, NaN equals NaN, -0.0 is not 0.0."""
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return bool(dim(a - b) == 0)
    if type(a) is not type(b):
        return False
    if isinstance(a, Graph):
        return equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    return repr(a) == repr(b) if isinstance(a, float) else bool(a == b)


def same_type(a: TensorType, b: TensorType) -> bool:
    """Whether two types are equal for all sizes of their dims."""
    if isinstance(a, Results) and isinstance(b, Results):
        return len(a.types) == len(b.types) and all(map(same_type, a.types, b.types))
    return a == b or (a.dtype == b.dtype and a.rank == b.rank and all(map(same_value, a.shape, b.shape)))


def equal(a: Graph, b: Graph, *, sources: bool = False) -> bool:
    """Whether two graphs have equal structure: dims, inputs, outputs, and nodes' ops, attributes and types.

    Sharing counts: `add(x, x)` of one node differs from `add` of two equal ones. `sources` compares sources.
    """
    if a.dims != b.dims or _names(a) != _names(b) or len(a.nodes) != len(b.nodes):
        return False
    # the order of nodes follows from the structure, so equal graphs list theirs in the same order
    twin = dict(zip(a.nodes, b.nodes, strict=True))
    return (
        [twin[i] for i in a.inputs] == list(b.inputs)
        and [twin[s] for s in a.states] == list(b.states)
        and [twin[root] for root in a.roots] == list(b.roots)
        and all(_equal_nodes(x, y, twin, sources) for x, y in twin.items())
    )


def _names(graph: Graph) -> tuple[list[str], list[str]]:
    return list(graph.outputs), list(graph.updates)


def _equal_nodes(a: Node, b: Node, twin: Mapping[Node, Node], sources: bool) -> bool:
    return (
        a.op == b.op
        and same_type(a.type, b.type)
        and [twin[i] for i in a.inputs] == list(b.inputs)
        and a.attributes.keys() == b.attributes.keys()
        and all(same_value(v, b.attributes[k]) for k, v in a.attributes.items())
        and (not sources or a.source == b.source)
    )
