"""What a pass is, and its text form: `prune{sparsity=0.5,pattern="2:4"}`, joined by commas to a pipeline."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from llmc.compiler.graph import Graph
from llmc.compiler.modules import load_point
from llmc.errors import LlmcError

ENTRY_POINTS = "llmc.passes"


@dataclass(frozen=True)
class Keeps:
    """What a pass promises about the outputs: `exact` bit for bit, `close` within a tolerance, or `lossy`.

    Args:
        kind: "exact", "close" or "lossy".
        tolerance: largest difference as a share of the output's largest magnitude; only for "close".
    """

    kind: str
    tolerance: float = 0.0

    def __str__(self) -> str:
        return f"close({self.tolerance:g})" if self.kind == "close" else self.kind


EXACT = Keeps("exact")
LOSSY = Keeps("lossy")


def close(tolerance: float) -> Keeps:
    """Equal up to rounding: differences stay below `tolerance` times the output's largest magnitude."""
    return Keeps("close", tolerance)


@dataclass(frozen=True)
class Pass(ABC):
    """A change `Graph -> Graph`. Its dataclass fields are its options, checked in `__post_init__`.

    `name` is the name in pipelines (default: the class's name in lower case), `keeps` what it promises,
    `wants_samples` says that it works on samples of the model's inputs: `given().samples(graph)`.
    """

    name: ClassVar[str]
    keeps: ClassVar[Keeps] = EXACT
    wants_samples: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    @abstractmethod
    def run(self, graph: Graph) -> Graph:
        """The changed graph, or `graph` itself when there is nothing to do."""

    def enters(self) -> bool:
        """Whether it changes the bodies of loops and branches as it changes graphs."""
        return True

    def __str__(self) -> str:
        return self.name + self.options_text()

    def options_text(self) -> str:
        """`{option=value,...}` for the options that differ from their defaults, or nothing."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        changed = [f"{f.name}={_value_text(value)}" for f, value in values if value != f.default]
        return "{" + ",".join(changed) + "}" if changed else ""


def near(name: str, known: Iterable[str]) -> str:
    """A hint that offers the known names close to `name`, or all of them."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(found)}?" if found else f"there is: {', '.join(names) or 'none'}"


@dataclass(frozen=True)
class PassText:
    """One parsed element of a pipeline text."""

    name: str
    options: Mapping[str, Any]


_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*")
        |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.:/]))
        |(?P<word>[^\s{}\[\]=,"]+)
        |(?P<mark>[{}\[\]=,]))""",
    re.VERBOSE,
)
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None}


def parse_texts(text: str) -> tuple[PassText, ...]:
    """The elements of a pipeline text; values are numbers, "text", words, true, false, none and [lists].

    Raises:
        LlmcError: the text does not follow `name{option=value,...},name,...`.
    """
    return tuple(_Reader(text).pipeline())


class _Reader:
    """Recursive descent over the tokens of a pipeline text."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.kind, self.token = "", ""
        self.advance()

    def advance(self) -> str:
        """Move to the next token and return the one left."""
        last = self.token
        if not self.text[self.position :].strip():
            self.kind, self.token = "end", ""
            return last
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise self.error("a closing quote")
        self.position, self.kind = match.end(), match.lastgroup or ""
        self.token = match.group(self.kind)
        return last

    def error(self, expected: str) -> LlmcError:
        found = self.token or "the end"
        return LlmcError(
            f"pipeline text: expected {expected}, found {found!r}",
            at=self.text,
            hint='write name{option=value,...},name,... such as simplify,prune{sparsity=0.5,pattern="2:4"}',
        )

    def take(self, mark: str) -> bool:
        if self.kind == "mark" and self.token == mark:
            self.advance()
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise self.error(repr(mark))

    def word(self, what: str) -> str:
        if self.kind != "word":
            raise self.error(what)
        return self.advance()

    def pipeline(self) -> Iterator[PassText]:
        while self.kind != "end":
            yield PassText(self.word("the name of a pass"), self.options())
            if self.kind != "end":
                self.expect(",")

    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if not self.take("{"):
            return found
        while not self.take("}"):
            name = self.word("an option")
            if name in found:
                raise LlmcError(f"option {name!r} is given twice", at=self.text)
            self.expect("=")
            found[name] = self.value()
            if not (self.kind == "mark" and self.token == "}"):
                self.expect(",")
        return found

    def value(self) -> Any:
        if self.take("["):
            return tuple(self.items())
        if self.kind == "text":
            return re.sub(r"\\(.)", r"\1", self.advance()[1:-1])
        if self.kind == "number":
            token = self.advance()
            return float(token) if re.search(r"[.eE]", token) else int(token)
        word = self.word("a value")
        return _WORDS.get(word, word)

    def items(self) -> Iterator[Any]:
        while not self.take("]"):
            yield self.value()
            if not (self.kind == "mark" and self.token == "]"):
                self.expect(",")


def _value_text(value: Any) -> str:
    """Text that `_Reader.value` reads back."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_value_text, value)) + "]"
    return repr(value)


def build(text: PassText, registry: Mapping[str, type[Pass]]) -> Pass:
    """The pass that `text` names, with its options.

    Raises:
        LlmcError: no such pass or option, or a value of the wrong type.
    """
    kind = find_pass(text.name, registry)
    known = {f.name: f for f in fields(kind)}
    hints = typing.get_type_hints(kind)
    options = {}
    for name, value in text.options.items():
        if name not in known:
            raise LlmcError(f"pass {text.name} has no option {name!r}", hint=near(name, known))
        options[name] = _checked(f"{text.name}{{{name}}}", value, hints[name])
    required = (f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING)
    for name in required:
        if name not in options:
            hint = f"write {text.name}{{{name}=...}}"
            raise LlmcError(f"pass {text.name} needs the option {name!r}", hint=hint)
    return kind(**options)


def _checked(place: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type; only plain types and unions of them are checked."""
    allowed = {typing.get_origin(h) or h for h in (typing.get_args(hint) if _is_union(hint) else (hint,))}
    if float in allowed and type(value) is int:
        return float(value)
    if allowed <= {int, float, str, bool, tuple, type(None)} and type(value) not in allowed:
        names = " or ".join(sorted(k.__name__ for k in allowed))
        raise LlmcError(f"option {place} takes {names}", found=_value_text(value))
    return value


def _is_union(hint: Any) -> bool:
    return hint.__class__.__name__ in ("UnionType", "Union") or typing.get_origin(hint) is typing.Union


def find_pass(name: str, registry: Mapping[str, type[Pass]]) -> type[Pass]:
    """The pass class called `name`: in the registry, of an extension, `file.py:Class`, or an installed entry point.

    `file.py:Class` runs that file's code, as importing it would.
    """
    from llmc.compiler import extensions

    added = extensions.passes()
    if name in registry and name in added:
        raise LlmcError(f"the pass {name!r} is llmc's own, and an extension's", hint="rename the extension's")
    if name in registry or name in added:
        return registry.get(name) or added[name]
    if ".py:" in name:
        return _from_file(*name.rsplit(":", 1))
    points = {p.name: p for p in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name in points:
        point = points[name]
        return _as_pass(load_point(point, f"the installed pass {name!r}", point.value), name)
    raise LlmcError(f"there is no pass {name!r}", hint=near(name, {*registry, *added, *points}))


def _from_file(path: str, class_name: str) -> type[Pass]:
    from llmc.compiler import extensions

    module = extensions.run(path, "pass").module
    if not hasattr(module, class_name):
        passes = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Pass)]
        raise LlmcError(f"the file has no pass {class_name!r}", at=path, hint=near(class_name, passes))
    if extensions.holds_extension(module):  # the ops that the pass makes
        extensions.load(path)
    return _as_pass(getattr(module, class_name), f"{path}:{class_name}")


def _as_pass(found: Any, name: str) -> type[Pass]:
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise LlmcError(
            f"{name} is not a pass", found=repr(found), hint="derive it from llmc.compiler.pipeline.Pass"
        )
    return found
