"""Patterns of `match` statements compared with nodes part by part, so that the part that does not fit is known."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmc.compiler.conditions import shown
from llmc.compiler.graph import Node
from llmc.compiler.rewrite import Miss

if TYPE_CHECKING:
    from llmc.compiler.conditions import Asked


class Matching:
    """One pattern on one value: what it binds, and how many nodes fitted."""

    def __init__(self, asked: Asked, root: Node) -> None:
        self._asked, self._at = asked, root
        self.names: dict[str, Any] = {}
        self.count = 0

    def fits(self, pattern: ast.pattern, value: Any, what: str = "the value") -> Miss | None:
        """Why `value` does not fit `pattern`; None if it does."""
        match pattern:
            case ast.MatchAs(inner, name):
                if inner is not None and (miss := self.fits(inner, value, what)) is not None:
                    return miss
                self._bind(name, value)
                return None
            case ast.MatchValue(expected) | ast.MatchSingleton(expected):
                return self._equal(expected, value, what)
            case ast.MatchOr(patterns):
                return self._any(patterns, value, what)
            case ast.MatchClass():
                return self._class(pattern, value, what)
            case ast.MatchSequence():
                return self._sequence(pattern, value, what)
            case ast.MatchMapping():
                return self._mapping(pattern, value)
        return Miss(self._at, f"wants {ast.unparse(pattern)}")

    def _bind(self, name: str | None, value: Any) -> None:
        if name is not None:
            self.names[name] = value

    def _equal(self, expected: Any, value: Any, what: str) -> Miss | None:
        wanted = self._asked.value(expected) if isinstance(expected, ast.expr) else expected
        same = value is wanted if wanted is None or isinstance(wanted, bool) else value == wanted
        return None if same else Miss(self._at, f"{what} is {shown(value)}, not {shown(wanted)}")

    def _any(self, patterns: Sequence[ast.pattern], value: Any, what: str) -> Miss | None:
        """The first that fits, or else the miss of the one that came furthest."""
        best: tuple[int, Miss] | None = None
        for pattern in patterns:
            part = Matching(self._asked, self._at)
            miss = part.fits(pattern, value, what)
            if miss is None:
                self.names |= part.names
                self.count += part.count
                return None
            if best is None or part.count > best[0]:
                best = part.count, miss
        assert best is not None
        self.count += best[0]
        return best[1]

    def _class(self, pattern: ast.MatchClass, value: Any, what: str) -> Miss | None:
        kind = self._asked.value(pattern.cls)
        if not isinstance(value, kind):
            return Miss(self._at, f"{what} is {shown(value)}, no {kind.__name__}")
        if kind is Node:
            return self._node(pattern, value)
        inner = pattern.patterns[0] if pattern.patterns else None  # int(x)
        return None if inner is None else self.fits(inner, value, what)

    def _node(self, pattern: ast.MatchClass, node: Node) -> Miss | None:
        outer, self._at = self._at, node
        parts = dict(zip(Node.__match_args__, pattern.patterns, strict=False))
        parts |= dict(zip(pattern.kwd_attrs, pattern.kwd_patterns, strict=True))
        for at, (name, part) in enumerate(parts.items()):
            miss = self._op(part, node) if name == "op" else self.fits(part, getattr(node, name), name)
            if miss is not None:
                return miss
            self.count += not at
        self._at = outer
        return None

    def _op(self, pattern: ast.pattern, node: Node) -> Miss | None:
        if self.fits(pattern, node.op) is None:
            return None
        return Miss(node, f"is {node.op}, not {_alternatives(pattern)}")

    def _sequence(self, pattern: ast.MatchSequence, value: Any, what: str) -> Miss | None:
        patterns = pattern.patterns
        stars = [at for at, p in enumerate(patterns) if isinstance(p, ast.MatchStar)]
        least = len(patterns) - len(stars)
        if not any(isinstance(v, Node) for v in value) and len(value) != least:
            return Miss(self._at, f"{what} is {shown(value)}, not ({ast.unparse(pattern)[1:-1]})")
        if len(value) < least or (not stars and len(value) > least):
            return Miss(self._at, f"has {len(value)} {what}, not {least}{' or more' if stars else ''}")
        if stars:
            at = stars[0]
            end = len(value) - (len(patterns) - at - 1)
            star = patterns[at]
            assert isinstance(star, ast.MatchStar)
            self._bind(star.name, list(value[at:end]))
            patterns = [*patterns[:at], *patterns[at + 1 :]]
            value = [*value[:at], *value[end:]]
        pairs = zip(patterns, value, strict=True)
        return next((miss for p, v in pairs if (miss := self.fits(p, v, what)) is not None), None)

    def _mapping(self, pattern: ast.MatchMapping, value: Mapping[str, Any]) -> Miss | None:
        for key, part in zip(pattern.keys, pattern.patterns, strict=True):
            name = self._asked.value(key)
            if name not in value:
                return Miss(self._at, f"has no {name}")
            if (miss := self.fits(part, value[name], str(name))) is not None:
                return miss
        return None


def _alternatives(pattern: ast.pattern) -> str:
    match pattern:
        case ast.MatchValue(ast.Constant(value)):
            return str(value)
        case ast.MatchAs(ast.pattern() as inner):
            return _alternatives(inner)
        case ast.MatchOr(patterns):
            return " or ".join(map(_alternatives, patterns))
    return ast.unparse(pattern)
