"""How far a rule came at a node, and why it went no further: for `llmc explain`, never in a compile.

A rule is Python: a `match` statement, tests, helpers. Its code is walked here once more, statement by statement, with
the values that it had: patterns are compared node by node, so that the one that does not fit is known, and of a test
that was not passed the part that decided it. What a rule says itself, by `Miss` or `Decline`, goes before that.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from llmc.compiler.conditions import Asked, why
from llmc.compiler.graph import Node
from llmc.compiler.patterns import Matching
from llmc.compiler.rewrite import Context, Decline, Miss
from llmc.compiler.sources import tree_of

DEPTH = 6  # of helpers that call helpers
ROUNDS = 200  # of a loop in a rule


@dataclass(frozen=True)
class Stop:
    """Where a rule stopped.

    Args:
        node: the node that does not fit.
        reason: why.
        matched: how many nodes of the pattern were there before.
        declined: the pattern was there, and the rule said why it does not apply.
    """

    node: Node
    reason: str
    matched: int
    declined: bool = False

    @property
    def near(self) -> bool:
        """Whether more than the op at its root speaks for the rule."""
        return self.declined or self.matched > 1


class _Unknown(Exception):
    """The code does what is not followed here."""


def nearest(rule: Callable[..., Any], said: Decline | Miss | None, root: Node, context: Context) -> Stop:
    """Why `rule`, which said this, did not apply at `root`."""
    if isinstance(said, Decline):
        return Stop(said.node or root, said.reason, 1, declined=True)
    if isinstance(said, Miss):
        return _of_miss(said, root)
    given = (root, context)[: len(signature(rule).parameters)]
    found = follow(rule, given, root, 0)
    return Stop(root, "its code does not say why", 0) if found is None else _of_miss(found, root)


def _of_miss(miss: Miss, root: Node) -> Stop:
    return Stop(miss.node, miss.reason, max(miss.matched or 0, _above(root, miss.node)))


def _above(root: Node, node: Node) -> int:
    """How many nodes lie between `root` and what it is made of, `root` included; 0 if that is unknown."""
    level, seen, count = [root], {root}, 0
    while level and count < 16:
        if node in level:
            return count
        level = list(dict.fromkeys(i for n in level for i in n.inputs if i not in seen))
        seen.update(level)
        count += 1
    return 0


def follow(function: Callable[..., Any], arguments: tuple[Any, ...], root: Node, depth: int) -> Miss | None:
    """Why a function came to nothing, so far as its code tells."""
    tree = tree_of(function)
    if tree is None or depth > DEPTH:
        return None
    try:
        bound = signature(function).bind(*arguments)
        bound.apply_defaults()
        return _Walk(function, dict(bound.arguments), root, depth).run(tree)
    except Exception:  # whatever a rule's code does when it is taken apart
        return None


def _around(function: Callable[..., Any]) -> dict[str, Any]:
    """The names that a function sees from outside."""
    inner = getattr(function, "__func__", function)
    cells = zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True)
    own = {"self": function.__self__} if hasattr(function, "__self__") else {}
    return {**inner.__globals__, **{name: cell.cell_contents for name, cell in cells}, **own}


class _Walk:
    """One run through the code of a rule or helper."""

    def __init__(
        self, function: Callable[..., Any], arguments: Mapping[str, Any], root: Node, depth: int
    ) -> None:
        self.root, self.depth = root, depth
        self.asked = Asked({**_around(function), **arguments}, root, self._helper)
        self.matched = 0
        self.best: Miss | None = None

    def run(self, tree: ast.FunctionDef) -> Miss | None:
        returned = self._block(tree.body)
        return returned if isinstance(returned, Miss) else self.best

    def _helper(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Miss | None:
        return follow(function, arguments, self.root, self.depth + 1)

    def _remember(self, miss: Miss | None) -> None:
        """The nearest of those before the end; the first of equals."""
        if miss is not None:
            miss = Miss(miss.node, miss.reason, max(self._far(miss), self.matched))
            if self.best is None or (miss.matched or 0) > (self.best.matched or 0):
                self.best = miss

    def _far(self, miss: Miss) -> int:
        return max(miss.matched or 0, _above(self.root, miss.node))

    # --- statements: what they return is where the function returned, or None if it goes on

    def _block(self, body: list[ast.stmt]) -> Miss | bool | None:
        for statement in body:
            returned = self._statement(statement)
            if returned is not None:
                return returned
        return None

    def _statement(self, statement: ast.stmt) -> Miss | bool | None:
        match statement:
            case ast.Match():
                return self._match(statement)
            case ast.If():
                return self._if(statement)
            case ast.For(target, source, body, []):
                return self._for(target, source, body)
            case ast.Return(value):
                return self._return(value)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Expr() | ast.Pass() | ast.Assert():
                self.asked.run(statement)
                return None
        raise _Unknown

    def _return(self, value: ast.expr | None) -> Miss | bool:
        """True where the end tells nothing more than what came before it."""
        if value is None or (isinstance(value, ast.Constant) and not value.value):
            return True
        if isinstance(value, ast.IfExp):
            chosen = self.asked.value(value.test)
            branch = value.body if chosen else value.orelse
            if isinstance(branch, ast.Constant):
                return self._counted(why(self.asked, value.test, bool(chosen)))
            return self._return(branch)
        found = self.asked.value(value)
        if isinstance(found, Miss):
            return self._counted(found)
        return True if found else self._counted(why(self.asked, value, False))

    def _counted(self, miss: Miss) -> Miss:
        return Miss(miss.node, miss.reason, max(self.matched, self._far(miss)))

    def _if(self, statement: ast.If) -> Miss | bool | None:
        held = bool(self.asked.value(statement.test))
        if not held:
            if _returns(statement.body):
                self._remember(why(self.asked, statement.test, False))
            return self._block(statement.orelse)
        returned = self._block(statement.body)
        if returned is True and _is_refusal(statement.body):
            return self._counted(why(self.asked, statement.test, True))
        return returned

    def _for(self, target: ast.expr, source: ast.expr, body: list[ast.stmt]) -> Miss | bool | None:
        for count, item in enumerate(self.asked.value(source)):
            if count == ROUNDS:
                raise _Unknown
            self.asked.assign(target, item)
            returned = self._block(body)
            if returned is not None:
                return returned
        return None

    def _match(self, statement: ast.Match) -> Miss | bool | None:
        subject = self.asked.value(statement.subject)
        for case in statement.cases:
            matching = Matching(self.asked, self.root)
            if (miss := matching.fits(case.pattern, subject)) is not None:
                self._remember(Miss(miss.node, miss.reason, self.matched + matching.count))
                continue
            self.asked.names |= matching.names
            if case.guard is not None and not self.asked.value(case.guard):
                miss = why(self.asked, case.guard, False)
                self._remember(Miss(miss.node, miss.reason, self.matched + matching.count))
                continue
            self.matched += matching.count
            return self._block(case.body)
        return None


def _is_refusal(body: list[ast.stmt]) -> bool:
    """Whether a block is no more than a return of nothing."""
    return isinstance(body[-1], ast.Return) and isinstance(body[-1].value, ast.Constant | None)


def _returns(body: list[ast.stmt]) -> bool:
    return any(isinstance(n, ast.Return) for n in _inside(body))


def _inside(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for statement in body:
        yield from ast.walk(statement)
