"""Nodes of an ONNX graph, of its bodies and of functions, read in order into values.

An op is arithmetic on sizes, which is done now (`onnx_sizes.py`), or has a converter, or is written out as its
function: one of the file, or the one that the standard defines it by. A body sees the values around it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from llmc.compiler.dims import Dim
from llmc.compiler.frontends import onnx_functions, onnx_types
from llmc.compiler.frontends.onnx_agreed import Pair
from llmc.compiler.frontends.onnx_call import TABLE, Call, Result
from llmc.compiler.frontends.onnx_check import MOST_NODES, in_order
from llmc.compiler.frontends.onnx_file import OnnxFile
from llmc.compiler.frontends.onnx_scope import OWN, Scope, name_of, schema_of, version
from llmc.compiler.frontends.onnx_sizes import on_sizes
from llmc.compiler.frontends.onnx_source import place, source
from llmc.compiler.frontends.onnx_values import MOST_AXES, Attributes, Inputs, Items, Sizes, Value, want_room
from llmc.compiler.frontends.report import Problem, UnsupportedError
from llmc.compiler.graph import Node, Source
from llmc.errors import LlmcError

_SECONDS = 900  # for one file
NO_OP = "no such op in llmc"
ADVICE: Mapping[str, str] = {
    **dict.fromkeys(("NonZero", "Unique", "Compress"), "its shape depends on values: use masks and Where"),
    **dict.fromkeys(
        ("StringConcat", "StringSplit", "StringNormalizer", "RegexFullMatch"), "texts are no tensors in llmc"
    ),
}


class Reader:
    """Imports nodes; a name without a value could not be imported."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.functions = {(f.domain, f.name): f for f in file.model.functions}
        self.problems: list[Problem] = []
        self.trusted: dict[str, str] = {}  # node -> the numbers that it is given at run time
        self.sums: dict[Dim, Dim] = {}  # an open axis -> what it always is, in other axes
        self.empty: set[str] = set()  # dims that may be 0
        self.agreed: dict[str, set[Pair]] = {}  # node -> sizes that have to be the same number
        self.numbers: list[tuple[str, Node | None, int]] = []  # node, one of these, what it has to be
        self.began, self.count = time.monotonic(), 0
        self.last_kinds: dict[int, int] = {}  # of the results of the body that was read last

    @property
    def path(self) -> Path:
        return self.file.path

    def read_all(self, nodes: Sequence[NodeProto], wanted: Iterable[str], scope: Scope) -> None:
        """Those that something wanted depends on."""
        for node in in_order(nodes, wanted, str(self.path)):
            self.read(node, scope)

    def read(self, node: NodeProto, scope: Scope) -> None:
        """Import one node."""
        self._within_limits()
        at = source(node) if scope.at is None else scope.at
        lost = [name for name in node.input if name and not scope.has(name)]
        try:
            if lost:
                self._only_known(node, scope)
                return  # what it reads has been reported
            made = self._converted(node, scope, at)
            self._keep(node, made if isinstance(made, tuple) else (made,), scope)
        except UnsupportedError as problem:
            self._note(node, at, problem.reason, problem.advice)
        except LlmcError as error:
            self._note(node, at, error.problem.split(": ", 1)[-1], error.hint or "")
        except _NUMPYS as error:
            reason = f"inputs or attributes do not fit the op ({type(error).__name__}: {error})"
            self._note(node, at, reason, "is the file damaged?")

    def _within_limits(self) -> None:
        self.count += 1
        seconds = time.monotonic() - self.began
        if self.count > MOST_NODES or seconds > _SECONDS:
            reached = f"{MOST_NODES} nodes" if self.count > MOST_NODES else f"{_SECONDS} seconds"
            raise LlmcError(
                f"the graph is too large: reading it stopped after {reached}",
                at=str(self.path),
                hint="functions, loops and bodies are written out when they are read",
            )

    def _only_known(self, node: NodeProto, scope: Scope) -> None:
        """All ops that are not known are told at once."""
        key = (node.domain, node.op_type)
        if key not in self.functions and name_of(node) not in TABLE and not _is_function(node, scope):
            raise UnsupportedError(NO_OP, _advice(node))

    # --- one node

    def _converted(self, node: NodeProto, scope: Scope, at: Source) -> Result:
        key = (node.domain, node.op_type)
        if key in self.functions:
            return self._function(self.functions[key], self._call(node, scope, at), f"the function {key[1]}")
        if name_of(node) not in TABLE:
            return self._standard(node, scope, at, None)
        try:
            return self._by_table(node, scope, at)
        except UnsupportedError as problem:
            return self._standard(node, scope, at, problem)

    def _by_table(self, node: NodeProto, scope: Scope, at: Source) -> Result:
        call = self._call(node, scope, at)
        if node.domain in OWN and (sizes := on_sizes(call)) is not None:
            self._want_understood(node, call, scope)
            return sizes
        call = self._call(node, scope, at)
        made = TABLE[name_of(node)](call)
        self._want_understood(node, call, scope)
        return made

    def _standard(
        self, node: NodeProto, scope: Scope, at: Source, problem: UnsupportedError | None
    ) -> Result:
        """The function that the standard defines an op by, if it does."""
        call = self._call(node, scope, at)
        resolved = onnx_functions.resolved(node, scope.attributes)
        function = onnx_functions.of_standard(resolved, call)
        if function is None:
            raise problem or UnsupportedError(NO_OP, _advice(node))
        _want_standard(schema_of(node, scope), call, problem)
        count = len(self.problems)
        try:
            return self._function(function, call, "")
        except UnsupportedError as inner:
            del self.problems[count:]
            raise problem or inner from None

    def _function(self, function: Any, call: Call, name: str) -> Result:
        """A function written out. Of one of the file the nodes that cannot be imported are told as they are."""
        defaults = {a.name: a for a in function.attribute_proto}
        defaults |= {} if name else onnx_functions.defaults(call, function)
        given = {a.name: a for a in onnx_functions.attributes_of(call)}
        opsets = {**onnx_functions.NEWEST, **{o.domain: o.version for o in function.opset_import}}
        declared = dict(zip(function.output, call.declared, strict=False))
        known = {k: v for k, v in declared.items() if v is not None}
        scope = Scope(self, opsets, declared=known, attributes={**defaults, **given}, at=call.source)
        values_given = [*call.inputs, *[None] * (len(function.input) - len(call.inputs))]
        kinds = [*call.kinds, *[0] * len(function.input)]
        for formal, value, kind in zip(function.input, values_given, kinds, strict=False):
            scope.keep(formal, value, kind)
        problems = len(self.problems)
        wanted = [o if call.wants(i) else "" for i, o in enumerate(function.output[: call.outputs])]
        self.read_all(function.node, filter(None, wanted), scope)
        if name and len(self.problems) > problems:
            raise UnsupportedError(f"parts of {name} cannot be imported", "")
        return self.outputs(scope, wanted, problems)

    def outputs(self, scope: Scope, names: Sequence[str], problems: int) -> tuple[Value | None, ...]:
        """The values of some names; None of an empty one.

        Raises:
            UnsupportedError: what has been noted since there were `problems`.
        """
        if len(self.problems) > problems:
            first = self.problems[problems]
            del self.problems[problems:]
            raise UnsupportedError(f"{first.op} in its body: {first.reason}", first.advice)
        found = [scope.value(name) if name else None for name in names]
        lost = next((n for n, v in zip(names, found, strict=True) if n and v is None), None)
        if lost is not None:
            raise UnsupportedError(f"nothing makes the output {lost!r} of its body", "is the file damaged?")
        self.last_kinds = {i: scope.kind(name) for i, name in enumerate(names) if name}
        return tuple(found)

    def _call(self, node: NodeProto, scope: Scope, at: Source) -> Call:
        used = max((i + 1 for i, name in enumerate(node.output) if name), default=0)
        names = list(node.input)
        while names and not names[-1]:
            names.pop()
        self.last_kinds = {}
        return Call(
            node.op_type,
            Inputs([scope.value(name) if name else None for name in names]),
            self._attributes(node, scope),
            used,
            version(node, scope),
            at,
            tuple(scope.kind(name) if name else 0 for name in names),
            tuple(scope.declared.get(name) for name in node.output),
            scope,
            tuple(map(bool, node.output)),
        )

    def _attributes(self, node: NodeProto, scope: Scope) -> Attributes:
        protos = onnx_functions.resolved(node, scope.attributes).attribute
        return Attributes({a.name: onnx_types.plain(a, self.path, self.file.doubles) for a in protos}, protos)

    def _want_understood(self, node: NodeProto, call: Call, scope: Scope) -> None:
        """Refuse what a converter has not looked at."""
        schema = schema_of(node, scope)
        for name, value in dict.items(call.attributes):
            if name in call.attributes.read or _is_default(schema, name, value):
                continue
            raise UnsupportedError(f"the attribute {name}", "it would be left out without a word")
        for position in range(len(call.inputs)):
            if position not in call.inputs.read and tuple.__getitem__(call.inputs, position) is not None:
                raise UnsupportedError(f"its input {position}", "it would be left out without a word")

    def _keep(self, node: NodeProto, made: Sequence[Value | None], scope: Scope) -> None:
        names = list(node.output)
        if any(names[len(made) :]):
            raise UnsupportedError(f"{len(names)} outputs, of which llmc computes {len(made)}", "")
        kinds = onnx_types.result_kinds(node, schema_of(node, scope), scope, made, self.last_kinds)
        for name, value, kind in zip(names, made, kinds, strict=False):
            if name and value is not None:
                scope.keep(name, onnx_types.held(node, value, kind), kind)
                _want_sense(value)

    def _note(self, node: NodeProto, at: Source, reason: str, advice: str) -> None:
        self.problems.append(Problem(name_of(node), reason, advice, place(node, at)))


_NUMPYS = (
    *(ValueError, TypeError, IndexError, KeyError, AttributeError, StopIteration, OverflowError),
    *(ZeroDivisionError, AssertionError, MemoryError, RecursionError),
)


def _is_function(node: NodeProto, scope: Scope) -> bool:
    """Whether the standard defines an op by a function."""
    found = schema_of(node, scope)
    return found is not None and (found.has_function or found.has_context_dependent_function)


def _want_standard(schema: Any, call: Call, problem: UnsupportedError | None) -> None:
    """Refuse attributes and inputs that the standard does not know: its function would leave them out."""
    strange = [name for name in dict.keys(call.attributes) if name not in schema.attributes]
    if strange and strange != ["consumed_inputs"]:
        raise problem or UnsupportedError(f"the attribute {strange[0]}", "the standard does not know it")
    if len(call.inputs) > schema.max_input:
        raise problem or UnsupportedError(f"its input {schema.max_input}", "the standard does not know it")


def _is_default(schema: Any, name: str, value: Any) -> bool:
    """Whether an attribute says what its absence would."""
    if name == "consumed_inputs":  # of opset 1: memory that may be written to
        return True
    stated = None if schema is None else schema.attributes.get(name)
    if stated is None or stated.default_value.type == AttributeProto.UNDEFINED:
        return False
    return bool(np.array_equal(onnx.helper.get_attribute_value(stated.default_value), _as_stated(value)))


def _as_stated(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _advice(node: NodeProto) -> str:
    if node.domain == "ai.onnx.ml":
        return "trees, scalers and encoders as of scikit-learn are outside llmc"
    return ADVICE.get(node.op_type, "replace it by ops of docs/onnx.md")


def _want_sense(value: Value) -> None:
    if isinstance(value, Items):
        return
    shape = value.array.shape if isinstance(value, Sizes) else value.shape
    want_room(shape)
    if len(shape) > MOST_AXES:
        raise UnsupportedError(f"a tensor of {len(shape)} axes", f"at most {MOST_AXES} are possible")
