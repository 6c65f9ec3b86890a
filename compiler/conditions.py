"""Tests in the code of a rule: which part decided, of which node it spoke, and in which words that is told."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any

from llmc.compiler.graph import Node, Weight
from llmc.compiler.rewrite import Context, Miss

Helper = Callable[[Callable[..., Any], tuple[Any, ...]], Miss | None]

_LONGEST = 60  # letters of a value in a reason


class Asked:
    """The names that the code of a rule sees, and their values.

    Args:
        names: name -> value.
        root: the node that the rule was tried at.
        helper: why a function of the rule came to nothing.
    """

    def __init__(self, names: dict[str, Any], root: Node, helper: Helper) -> None:
        self.names, self.root, self.helper = names, root, helper
        self.made_by: dict[str, ast.expr] = {}  # a name assigned before -> what was assigned

    def value(self, expression: ast.expr) -> Any:
        """What an expression of the rule is."""
        code: CodeType = compile(ast.Expression(expression), "<rule>", "eval")
        return eval(code, self.names)

    def run(self, statement: ast.stmt) -> None:
        """A statement that is neither a test nor a return."""
        if isinstance(statement, ast.Assign):
            for name in (n for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name)):
                self.made_by[name.id] = statement.value
        exec(compile(ast.Module([statement], []), "<rule>", "exec"), self.names)

    def assign(self, target: ast.expr, value: Any) -> None:
        self.names["_item"] = value
        made = ast.Assign([target], ast.Name("_item", ast.Load()))
        exec(compile(ast.fix_missing_locations(ast.Module([made], [])), "<rule>", "exec"), self.names)

    def node(self, expression: ast.expr) -> Node:
        """The node that an expression speaks of: the first it names, if it is not the root alone."""
        values = [self.names.get(n.id) for n in ast.walk(expression) if isinstance(n, ast.Name)]
        nodes = [v for v in values if isinstance(v, Node)]
        return next((n for n in nodes if n is not self.root), self.root)


def why(asked: Asked, test: ast.expr, holds: bool) -> Miss:
    """The part of `test` that made it what it is, true if `holds`, and why that part was so."""
    match test:
        case ast.UnaryOp(ast.Not(), inner):
            return why(asked, inner, not holds)
        case ast.BoolOp(op, parts) if isinstance(op, ast.Or) == holds:
            return why(asked, next(p for p in parts if bool(asked.value(p)) == holds), holds)
        case ast.Name(name) if (made := asked.made_by.get(name)) is not None:
            return why(asked, made, holds) if _is_plain(asked, made, holds) else _told(asked, made, holds)
        case ast.Compare(ast.Name(name), [ast.Is() as op], [ast.Constant(None)]):
            return _nothing(asked, test, name, isinstance(op, ast.Is) == holds, holds)
        case ast.Compare(ast.Name(name), [ast.IsNot()], [ast.Constant(None)]):
            return _nothing(asked, test, name, not holds, holds)
        case ast.Call(ast.Name("isinstance"), [ast.Name(name), ast.Name("Miss")]) if holds:
            return _said(asked, name)
        case ast.Call() if not holds:
            return _call(asked, test)
        case ast.Compare(_, [_], [_]):
            return _compared(asked, test, holds)
    return _told(asked, test, holds)


def _is_plain(asked: Asked, made: ast.expr, holds: bool) -> bool:
    """Whether what a name was made by is as true as the name: a loop may have assigned it again."""
    return isinstance(made, (ast.BoolOp, ast.Compare, ast.Call)) and bool(asked.value(made)) == holds


def _told(asked: Asked, test: ast.expr, holds: bool) -> Miss:
    text = ast.unparse(test)
    return Miss(asked.node(test), text if holds else f"not so: {text}")


def _said(asked: Asked, name: str) -> Miss:
    value = asked.names[name]
    return value if isinstance(value, Miss) else Miss(asked.root, f"{name} is {shown(value)}")


def _nothing(asked: Asked, test: ast.expr, name: str, is_none: bool, holds: bool) -> Miss:
    """A value is None: why the helper that was to find it came to nothing."""
    made = asked.made_by.get(name)
    if is_none and isinstance(made, ast.Call) and asked.value(made) is None:
        return _call(asked, made)
    return _told(asked, test, holds)


def _call(asked: Asked, call: ast.Call) -> Miss:
    """Why a function came to nothing."""
    function = asked.value(call.func)
    plain = not call.keywords and not any(isinstance(a, ast.Starred) for a in call.args)
    if not plain or _built_in(function):
        return _told(asked, call, False)
    arguments = tuple(asked.value(a) for a in call.args)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, Context) and isinstance(arguments[0], Node):
        return _uses(owner, function.__name__, arguments[0], _told(asked, call, False))
    found = function(*arguments)
    if isinstance(found, Miss):
        return found
    if function.__name__ in _WORDS and arguments and isinstance(arguments[0], Node):
        return Miss(arguments[0], _WORDS[function.__name__](arguments))
    told = asked.helper(function, arguments)
    return _told(asked, call, False) if told is None else told


def _built_in(function: Any) -> bool:
    inner = getattr(function, "__func__", function)
    return not isinstance(inner, FunctionType) or getattr(builtins, inner.__name__, None) is inner


def _uses(context: Context, asked: str, node: Node, otherwise: Miss) -> Miss:
    if asked == "single":
        return Miss(node, f"is read {context.uses(node)} times")
    return otherwise


def _number(node: Node) -> str:
    """The number that a node is everywhere, or its op."""
    while node.op in ("expand", "reshape"):
        node = node.inputs[0]
    value = node.attributes.get("value")
    if node.op == "constant" and isinstance(value, Weight):
        array = value.array
        return f"{array.item():.7g}" if array.size == 1 else f"a tensor {list(node.shape)}"
    return node.op


# Helpers of `passes/match.py`, whose question is told better than their code.
_WORDS: Mapping[str, Callable[[tuple[Any, ...]], str]] = {
    "is_scalar": lambda given: f"is {_number(given[0])}, not {' or '.join(f'{v:g}' for v in given[1:])}",
    "scalar": lambda given: f"is {_number(given[0])}, not one number",
    "weight": lambda given: f"is {given[0].op}, not constant",
}


def _compared(asked: Asked, test: ast.Compare, holds: bool) -> Miss:
    """A comparison, with what it found."""
    left, op, right = test.left, test.ops[0], test.comparators[0]
    node, a, b = asked.node(test), asked.value(left), asked.value(right)
    text = ast.unparse(left)
    if isinstance(op, (ast.Is, ast.IsNot)) and isinstance(a, Node) and isinstance(b, Node):
        other = "the same value as" if a is b else "another value than"
        return Miss(node, f"{text} is {other} {ast.unparse(right)}")
    if isinstance(left, ast.Constant):
        return Miss(node, f"{ast.unparse(right)} is {shown(b)}, with{'' if a in b else 'out'} {shown(a)}")
    found = "is" if isinstance(left, ast.Attribute) and left.attr == "op" else f"{text} is"
    return Miss(node, f"{found} {shown(a)}{_beside(op, b, holds)}")


def _beside(op: ast.cmpop, value: Any, holds: bool) -> str:
    """How what was found differs from what it was compared with."""
    match op:
        case ast.Eq() | ast.NotEq():
            return "" if isinstance(op, ast.Eq) == holds else f", not {shown(value)}"
        case ast.In() | ast.NotIn():
            return "" if isinstance(op, ast.In) == holds else f", none of {shown(value)}"
    sign = {"Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">="}.get(type(op).__name__, "against")
    return f", {'' if holds else 'not '}{sign} {shown(value)}"


def shown(value: Any) -> str:
    """A value in a reason, on one line and not long."""
    if isinstance(value, Node):
        return value.op
    if isinstance(value, str):
        return value
    inside = ", ".join(map(shown, value)) if isinstance(value, tuple) else ""
    text = f"({inside})" if inside else " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
