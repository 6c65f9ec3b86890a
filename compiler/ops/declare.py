"""How an op is declared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler.dims import product
from llmc.compiler.graph import DECLARED, Node, Results, Source, TensorType
from llmc.compiler.ops.faults import Fault, fault_place, told_rule
from llmc.compiler.ops.rules import broadcast, same_dim, same_shape
from llmc.compiler.ops.traits import (
    ELEMENTWISE,
    Constraints,
    FirstAxis,
    Known,
    Partial,
    Rows,
    Sequences,
    all_inputs,
)
from llmc.errors import LlmcError

TypeRule = Callable[..., TensorType]
Reference = Callable[..., Any]

OPS: dict[str, Op] = DECLARED  # name -> declaration, filled by @op


@dataclass(frozen=True)
class Op:
    """One op.

    Args:
        name: as written in the text form.
        rule: type rule, called with one TensorType for each input and the attributes by keyword.
        reference: NumPy meaning, called with one array for each input, the attributes by keyword, and, if
            `symbolic`, `sizes` (dim name -> int), and, if it has `bodies`, `run` (body, operands, sizes) -> outputs.
            Returns an array, which may share memory with an input, or a tuple of them where there are several
            results; never warns.
        defaults: attribute -> default; `REQUIRED` where there is none.
        elementwise: each output element depends on the input elements at its (broadcast) index only.
        view: the output holds the input's elements in the same order, so no kernel is needed.
        moves: every element of the output is one of the first input: the op computes nothing.
        product: a product with a weight, as which most of a model's work is done.
        symbolic: attributes hold dims, so the reference needs their sizes.
        bodies: attributes are graphs, which whoever calls the reference runs for it.
        commutative: the first two inputs may be swapped.
        stored: its value is a weight that its inputs store in another form: no pass may compute it ahead of time.
        accuracy: "exact" results are compared bit for bit in tests, "close" ones with a tolerance.
        cost: work of an element of an element-wise op, in vector operations.
        partial: what is known of an element where some operands are not: called with an array `[]` or None for
            each input and the attributes; None: nothing. Without it, all operands must be known.
        rows: for an op that works on each row for itself. Element-wise ones do.
        sequences: for an op that works on each sequence for itself.
        first_axis: node -> positions of the operands of which each place of the first axis gives that place of the
            result, or one that all share, of size 1 or missing there; the others are read whole. Element-wise ops, and
            those with `rows` of two axes and more, need not say it. Not said: the op may mix the samples of a batch.
        constraints: what sizes must satisfy beyond the type rule, which sees no numbers: called as the rule, gives
            `AtMost`s. A call at sizes that do not is refused before it runs (constraints.py).
        counts: an attribute that names a dim: how many places of the first input, a mask, are kept (ragged.py).
        steps: `reference` in the kernels' own steps of float32, to the last bit: what the op means in a graph that
            rounds values to levels. Not said: the reference has these bits, or comes near enough.
        fusible: for an element-wise op: chains may hold it, for wherever there is a kernel there is one for values
            in registers. Not declared: it follows from the kernels.
        origin: the extension that declares it; empty for llmc's own.
    """

    name: str
    rule: TypeRule
    reference: Reference
    defaults: Mapping[str, Any]
    elementwise: bool = False
    view: bool = False
    moves: bool = False
    product: bool = False
    symbolic: bool = False
    bodies: bool = False
    commutative: bool = False
    stored: bool = False
    accuracy: str = "exact"
    cost: int = 1
    partial: Partial | None = None
    rows: Rows | None = None
    sequences: Sequences | None = None
    first_axis: FirstAxis | None = None
    constraints: Constraints | None = None
    counts: str = ""
    steps: Reference | None = None
    fusible: bool = True
    origin: str = ""

    def __post_init__(self) -> None:
        if self.elementwise and self.rows is None:
            object.__setattr__(self, "rows", ELEMENTWISE)

    def along_first(self, node: Node) -> Collection[int]:
        """Positions of the operands that a node reads place by place along the first axis; see `first_axis`."""
        if self.elementwise:
            return all_inputs(node)
        if self.first_axis is not None:
            return self.first_axis(node)
        return self.rows.positions(node) if self.rows is not None and node.type.rank > 1 else ()

    def complete(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """`attributes` with defaults filled in, in declaration order."""
        unknown = set(attributes) - set(self.defaults)
        if unknown:
            raise LlmcError(
                f"{self.name}: no attribute {sorted(unknown)[0]!r}",
                hint=f"it has: {', '.join(self.defaults) or 'none'}",
            )
        full = {k: attributes.get(k, v) for k, v in self.defaults.items()}
        missing = [k for k, v in full.items() if v is REQUIRED]
        if missing:
            raise LlmcError(f"{self.name}: attribute {missing[0]!r} is missing")
        return MappingProxyType(full)

    def known(self, arguments: Sequence[Known], attributes: Mapping[str, Any]) -> Known:
        """The value `[]` of an element-wise op where the operands have the values `arguments`."""
        found = self.partial(*arguments, **attributes) if self.partial is not None else None
        if found is not None or any(a is None for a in arguments):
            return found
        return np.asarray(self.reference(*arguments, **attributes)).reshape(())

    def infer(
        self, inputs: tuple[TensorType, ...], attributes: Mapping[str, Any], source: Source
    ) -> TensorType:
        """The output type; a refusal names the place and the input types."""
        if self.name != "result" and any(isinstance(i, Results) for i in inputs):
            raise LlmcError(
                f"{self.name}: an input is a node with several results",
                at=str(source),
                found=", ".join(map(str, inputs)),
                hint="pick one of them with result{index}",
            )
        try:
            result = self.rule(*inputs, **attributes)
            if self.origin:
                self._hold(inputs, result)
        except Fault as error:
            found = f"{error.found or ''} at the node {source}".strip()
            raise Fault(error.problem, at=error.at, found=found, hint=error.hint) from error.__cause__
        except LlmcError as error:
            found = error.found or ", ".join(map(str, inputs))
            raise LlmcError(
                f"{self.name}: {error.problem}", at=error.at or str(source), found=found, hint=error.hint
            ) from error.__cause__
        return result

    def _hold(self, inputs: tuple[TensorType, ...], result: TensorType) -> None:
        """Hold a declaration from outside to its traits, as far as types show them."""
        if self.elementwise and not same_shape(result.shape, broadcast(*(t.shape for t in inputs))):
            self._breach("elementwise", "the shape is not that of its inputs broadcast", result)
        if self.moves and result.dtype != inputs[0].dtype:
            self._breach("moves", "the dtype is not that of the first input", result)
        alike = self.constraints is not None or same_dim(product(inputs[0].shape), product(result.shape))
        if self.view and not alike:
            self._breach("view", "it has not as many elements as its input", result)

    def _breach(self, trait: str, problem: str, result: TensorType) -> None:
        raise Fault(
            f"{self.origin}: the type rule of {self.name} breaks its trait {trait}: {problem}",
            at=fault_place(self.rule),
            found=str(result),
        )


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


def _quiet(reference: Reference) -> Reference:
    """`reference` without NumPy's warnings, 0-d results as arrays: inf, NaN and wrapping are meant."""

    @wraps(reference)
    def run(*arrays: Any, **attributes: Any) -> Any:
        with np.errstate(all="ignore"):
            made = reference(*arrays, **attributes)
            return tuple(map(np.asarray, made)) if isinstance(made, tuple) else np.asarray(made)

    return run


def define(
    name: str, reference: Reference, /, *, traits: Mapping[str, Any] | None = None, **defaults: Any
) -> Callable[[TypeRule], Op]:
    """The decorated type rule and the NumPy `reference` as the op `name`, which is not in `OPS` yet.

    Args:
        traits: fields of `Op` from `elementwise` on.
        defaults: attribute -> default, or `REQUIRED`.

    Raises:
        LlmcError: the declaration is wrong: what, and in which file.
    """
    traits = traits or {}

    def declare(rule: TypeRule) -> Op:
        place = fault_place(rule)
        _check_traits(name, traits, defaults, place)
        _check_parameters(name, "type rule", rule, defaults, place)
        extra = {**defaults, "sizes": None} if traits.get("symbolic") else defaults
        extra = {**extra, "run": None} if traits.get("bodies") else extra
        _check_parameters(name, "reference", reference, extra, place)
        return Op(name, told_rule(name, rule), _quiet(reference), MappingProxyType(defaults), **traits)

    return declare


_TRAITS: Mapping[str, tuple[str, Callable[[Any], bool]]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("elementwise", "view", "moves", "product", "symbolic", "bodies", "commutative", "stored"),
            ("true or false", lambda value: isinstance(value, bool)),
        ),
        "accuracy": ('"exact" or "close"', lambda value: value in ("exact", "close")),
        "cost": ("a positive integer", lambda value: type(value) is int and value > 0),
        "partial": ("a function", callable),
        "rows": ("a llmc.compiler.ops.traits.Rows", lambda value: isinstance(value, Rows)),
        "sequences": (
            "a llmc.compiler.ops.traits.Sequences",
            lambda value: isinstance(value, Sequences),
        ),
        "first_axis": ("a function", callable),
        "constraints": ("a function", callable),
        "counts": ("the name of an attribute", lambda value: isinstance(value, str)),
        "steps": ("a function", callable),
    }
)


def _check_traits(name: str, traits: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise LlmcError(f"{name!r} cannot be the name of an op", at=place, hint="use letters, digits and _")
    for trait, value in traits.items():
        if trait not in _TRAITS:
            raise LlmcError(
                f"op {name}: there is no trait {trait!r}", at=place, hint=f"it may have: {', '.join(_TRAITS)}"
            )
        kind, fits = _TRAITS[trait]
        if not fits(value):
            raise LlmcError(f"op {name}: the trait {trait} is {value!r}, not {kind}", at=place)
    if traits.get("counts", "") not in {"", *defaults}:
        raise LlmcError(
            f"op {name}: the trait counts names no attribute of it", at=place, found=traits["counts"]
        )


def _check_parameters(
    name: str, what: str, function: Callable[..., Any], keywords: Mapping[str, Any], place: str
) -> None:
    """Whether `function` can be called with these keywords; how many inputs it takes is its own business."""
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):  # a ufunc has no signature, and takes no attributes
        return
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return
    known = {
        p.name for p in parameters if p.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    }
    missing = [k for k in keywords if k not in known]
    if missing:
        raise LlmcError(f"op {name}: its {what} takes no {missing[0]!r}, which it declares", at=place)
    extra = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty]
    unknown = [k for k in extra if k not in keywords]
    if unknown:
        raise LlmcError(f"op {name}: its {what} wants {unknown[0]!r}, which it does not declare", at=place)


def op(
    name: str, reference: Reference, /, *, traits: Mapping[str, Any] | None = None, **defaults: Any
) -> Callable[[TypeRule], TypeRule]:
    """Declare the decorated type rule and the NumPy `reference` as llmc's own op `name`."""
    made = define(name, reference, traits=traits, **defaults)

    def declare(rule: TypeRule) -> TypeRule:
        assert name not in OPS, f"op {name} is declared twice"
        OPS[name] = made(rule)
        return rule

    return declare
