"""The code of a rule as a tree, and the ops at its root: what a rule says of itself in its `match` statement."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import Any

Roots = frozenset[str] | None  # None: any op


def tree_of(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The definition of a Python function or method; None where its source is not to be had."""
    code = getattr(function, "__code__", None)
    return _tree(code) if isinstance(code, CodeType) else None


@cache
def _tree(code: CodeType) -> ast.FunctionDef | None:
    """What stands at the code's line today, unless the file was changed since it was imported."""
    found = _definitions(code.co_filename).get((code.co_name, code.co_firstlineno))
    if found is None or not _told(found) <= set(_constants(code)):
        return None
    return found


@cache
def _definitions(file: str) -> dict[tuple[str, int], ast.FunctionDef]:
    """Every function of a file, by its name and first line, decorators included."""
    try:
        whole = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    functions = (n for n in ast.walk(whole) if isinstance(n, ast.FunctionDef))
    return {(f.name, min((d.lineno for d in f.decorator_list), default=f.lineno)): f for f in functions}


def _told(function: ast.FunctionDef) -> set[str]:
    """The texts that its patterns name."""
    values = (n.value for n in ast.walk(function) if isinstance(n, ast.MatchValue))
    return {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}


def _constants(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _constants(value)
        elif isinstance(value, (tuple, frozenset)):
            yield from value
        else:
            yield value


def roots(rule: Callable[..., Any]) -> Roots:
    """The ops at which `rule` may apply: at all others it is known to return nothing, for its code begins so.

    Read are a `match` on the node, and tests of `node.op` before it. A rule that begins otherwise is tried everywhere.
    """
    code = getattr(rule, "__code__", None)
    return _roots(code, int(inspect.ismethod(rule))) if isinstance(code, CodeType) else None


@cache
def _roots(code: CodeType, first: int) -> Roots:
    function = _tree(code)
    name = code.co_varnames[first] if code.co_argcount > first else None
    return None if function is None or name is None else _of_block(function.body, name)


def _of_block(body: list[ast.stmt], name: str) -> Roots:
    for at, statement in enumerate(body):
        last = at == len(body) - 1
        match statement:
            case ast.Expr(ast.Constant()):
                continue
            case ast.Assign([ast.Name(target)]) if target != name:
                continue
            case ast.Match(ast.Name(told)) if told == name:
                return _of_cases(statement.cases, last)
            case ast.If(test, then, []) if _is_nothing(then):
                if (wanted := _where(test, name, holds=False)) is not None:
                    return wanted
            case ast.If(test, _, []) if last:
                return _where(test, name, holds=True)
            case _:
                return None
    return None


def _is_nothing(body: list[ast.stmt]) -> bool:
    """Whether a block is `return None`."""
    return len(body) == 1 and isinstance(body[0], ast.Return) and _is_none(body[0].value)


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _of_cases(cases: list[ast.match_case], last: bool) -> Roots:
    """The roots of all cases; what no case takes must come to nothing."""
    found: frozenset[str] = frozenset()
    for case in cases:
        if _takes_all(case) and _is_nothing(case.body):
            return found
        ops = _of_pattern(case.pattern)
        if ops is None:
            return None
        found |= ops
    return found if last else None


def _takes_all(case: ast.match_case) -> bool:
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None


def _of_pattern(pattern: ast.pattern) -> Roots:
    match pattern:
        case ast.MatchAs(ast.pattern() as inner):
            return _of_pattern(inner)
        case ast.MatchOr(patterns):
            parts = [_of_pattern(p) for p in patterns]
            return None if None in parts else frozenset().union(*(p for p in parts if p is not None))
        case ast.MatchClass(ast.Name("Node"), [op, *_]):
            return _texts(op)
    return None


def _texts(pattern: ast.pattern) -> Roots:
    match pattern:
        case ast.MatchValue(ast.Constant(str(op))):
            return frozenset({op})
        case ast.MatchAs(ast.pattern() as inner):
            return _texts(inner)
        case ast.MatchOr(patterns):
            parts = [_texts(p) for p in patterns]
            return None if None in parts else frozenset().union(*(p for p in parts if p is not None))
    return None


def _where(test: ast.expr, name: str, holds: bool) -> Roots:
    """The ops for which `test` may be `holds`, as far as it compares `node.op`."""
    match test:
        case ast.BoolOp(op, parts) if isinstance(op, ast.And if holds else ast.Or):
            return next((found for part in parts if (found := _where(part, name, holds)) is not None), None)
        case ast.Compare(ast.Attribute(ast.Name(told), "op"), [kind], [right]) if told == name:
            equal, among = (ast.Eq, ast.In) if holds else (ast.NotEq, ast.NotIn)
            values = _literal(right)
            if isinstance(kind, equal) and isinstance(values, str):
                return frozenset({values})
            if isinstance(kind, among) and isinstance(values, (tuple, set, list)):
                return frozenset(values)
    return None


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None
