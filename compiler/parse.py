"""The text form of a graph read back: `text.py` says what it looks like."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from llmc.compiler.dims import Bounds, parse_dim
from llmc.compiler.equality import same_type
from llmc.compiler.graph import Graph, Node, Results, Source, TensorType, Weight
from llmc.compiler.ops import OPS, make
from llmc.compiler.text import DIGITS, array_of
from llmc.errors import LlmcError

_STRING = r'"(?:[^"\\]|\\["\\bfnrtu])*"'
_TENSOR = r"\w+\[[^\]]*\]"
_LINE = re.compile(
    r"%(?P<name>\w+) = (?P<op>\w+)\((?P<inputs>[^()]*)\)"
    rf"(?: \{{(?P<attributes>(?:[^\"'\\{{}}]|{_STRING})*)\}})?"
    rf"(?: : (?P<type>{_TENSOR}|\((?:{_TENSOR}(?:, )?)*\)))?(?:  # (?P<source>.*))?"
)
_SOURCE = re.compile(r"(?P<path>.*?)(?:(?:^| )\((?P<line>[^()]*)\))?")
_NAMED = rf"\{{((?:[^\"{{}}]|{_STRING})*)\}}"
_RETURN = re.compile(rf"return {_NAMED}(?: update {_NAMED})?")
_OUTPUT = re.compile(rf"\s*(?P<name>{_STRING}): %(?P<node>\w+)\s*(?:,|$)")


def parse_graph(text: str, weights: Mapping[str, Weight] | None = None) -> Graph:
    """The graph written by `print_graph`.

    Args:
        text: the text form.
        weights: digest -> Weight, for constants that are not written out.

    Raises:
        LlmcError: the text is malformed, a type rule refuses, a stated type is wrong or a weight is missing;
            the message has the line number.
    """
    parser = Parser.of(weights)
    read_lines(text, parser.line)
    return parser.graph()


def read_lines(text: str, take: Callable[[str], None]) -> None:
    """Hand every line of a text that says something to `take`; what it raises gets the line's number."""
    absent = dict[str, str]()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            absent |= _absent(line)
            continue
        try:
            take(line)
        except LlmcError as error:
            for op in absent:
                if re.search(rf"\b{op}\b", line):
                    problem, hint = f"op {op} is of {absent[op]}, which is not loaded", "use --extension FILE"
                    raise LlmcError(problem, at=f"line {number}", found=line, hint=hint) from None
            raise LlmcError(
                error.problem, at=f"line {number}", found=error.found or line, hint=error.hint
            ) from None


def _absent(comment: str) -> dict[str, str]:
    """The op, and its extension, that a comment of `_origins` says to be needed, if it is not there."""
    match = re.fullmatch(r"# op (\w+) is of (.+)", comment)
    return {match[1]: match[2]} if match and match[1] not in OPS else {}


class Parser:
    """What the lines so far have defined."""

    def __init__(self, weights: Mapping[str, Weight], bodies: dict[int, Graph]) -> None:
        self.weights = weights  # first digits of the digest -> Weight
        self.bodies = bodies
        self.within: tuple[int, Parser] | None = None  # the body whose lines these are
        self.nodes: dict[str, Node] = {}
        self.inputs: list[Node] = []
        self.states: list[Node] = []
        self.outputs: dict[str, Node] | None = None
        self.updates: dict[str, Node] = {}
        self.dims: dict[str, Bounds] = {}

    @staticmethod
    def of(weights: Mapping[str, Weight] | None) -> Parser:
        return Parser({digest[:DIGITS]: weight for digest, weight in (weights or {}).items()}, {})

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
        self.within = int(text), Parser(self.weights, self.bodies)

    def _body_line(self, number: int, body: Parser, line: str) -> None:
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
            case ast.Call(func=ast.Name(id="weight"), args=[name]):
                return self._weight_of_name(self._value(name))
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
        return found if found.name == name else found.named(name)

    def _weight_of_name(self, name: str) -> Weight:
        """What hand-written text has no digest for."""
        found = [weight for weight in self.weights.values() if weight.name == name]
        if len(found) != 1:
            known = [weight.name for weight in self.weights.values()]
            close = " or ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
            hint = "write its digest as well" if found else f"did you mean {close}?" if close else None
            raise LlmcError(f"{len(found) or 'no'} weights are called {name!r}", hint=hint)
        return found[0]


def _tensor(name: str, dtype: str, shape: tuple[int, ...], values: tuple[Any, ...]) -> Weight:
    try:
        return Weight(array_of(dtype, shape, values), name)
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
