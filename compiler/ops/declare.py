"""How an op is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler.graph import Results, Source, TensorType
from llmc.errors import LlmcError

TypeRule = Callable[..., TensorType]
Reference = Callable[..., Any]

OPS: dict[str, Op] = {}  # name -> declaration, filled by @op


@dataclass(frozen=True)
class Op:
    """One op.

    Args:
        name: as written in the text form.
        rule: type rule, called with one TensorType for each input and the attributes by keyword.
        reference: NumPy meaning, called with one array for each input, the attributes by keyword, and, if
            `symbolic`, `sizes` (dim name -> int). Returns an array, which may share memory with an input,
            or a tuple of them where there are several results; never warns.
        defaults: attribute -> default; `REQUIRED` where there is none.
        elementwise: each output element depends on the input elements at its (broadcast) index only.
        view: the output holds the input's elements in the same order, so no kernel is needed.
        symbolic: attributes hold dims, so the reference needs their sizes.
        commutative: the first two inputs may be swapped.
        stored: its value is a weight that its inputs store in another form: no pass may compute it ahead of time.
        accuracy: "exact" results are compared bit for bit in tests, "close" ones with a tolerance.
    """

    name: str
    rule: TypeRule
    reference: Reference
    defaults: Mapping[str, Any]
    elementwise: bool = False
    view: bool = False
    symbolic: bool = False
    commutative: bool = False
    stored: bool = False
    accuracy: str = "exact"

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
            return self.rule(*inputs, **attributes)
        except LlmcError as error:
            found = error.found or ", ".join(map(str, inputs))
            raise LlmcError(
                f"{self.name}: {error.problem}", at=error.at or str(source), found=found, hint=error.hint
            ) from None
        except (TypeError, ValueError, AttributeError) as error:
            problem, found = self._mismatch(inputs, attributes)
            raise LlmcError(f"{self.name}: {problem}", at=str(source), found=found) from error

    def _mismatch(self, inputs: tuple[TensorType, ...], attributes: Mapping[str, Any]) -> tuple[str, str]:
        """Why the rule could not even check `inputs` and `attributes`, and what was given."""
        try:
            signature(self.rule).bind(*inputs, **attributes)
        except TypeError:
            return "wrong number of inputs", ", ".join(map(str, inputs))
        return "an attribute has a value of the wrong kind", str(dict(attributes))


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


def op(
    name: str, reference: Reference, /, *, traits: Mapping[str, Any] | None = None, **defaults: Any
) -> Callable[[TypeRule], TypeRule]:
    """Declare the decorated type rule and the NumPy `reference` as the op `name`."""

    def declare(rule: TypeRule) -> TypeRule:
        assert name not in OPS, f"op {name} is declared twice"
        OPS[name] = Op(name, rule, _quiet(reference), MappingProxyType(defaults), **(traits or {}))
        return rule

    return declare
