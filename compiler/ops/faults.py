"""Faults of a declaration, told apart from inputs and attributes that it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Signature, signature, unwrap
from typing import Any

from llmc.compiler.graph import TensorType
from llmc.errors import LlmcError, in_a_line


class Fault(LlmcError):
    """A fault of a declaration, not of what it was given."""


def told_rule(name: str, rule: Callable[..., TensorType]) -> Callable[..., TensorType]:
    """`rule`, whose own faults are told as such: apart from inputs and attributes that it refuses."""
    wanted = signature(rule)

    @wraps(rule)
    def run(*inputs: TensorType, **attributes: Any) -> TensorType:
        try:
            result = rule(*inputs, **attributes)
        except LlmcError:
            raise
        except Exception as error:
            raise _rule_fault(name, rule, wanted, error, inputs, attributes) from error
        if not isinstance(result, TensorType):
            problem = f"the type rule of {name} returns {result!r}, not a TensorType"
            raise Fault(problem, at=fault_place(rule))
        return result

    return run


def _rule_fault(
    name: str,
    rule: Callable[..., TensorType],
    wanted: Signature,
    error: Exception,
    inputs: tuple[TensorType, ...],
    attributes: Mapping[str, Any],
) -> LlmcError:
    types = ", ".join(map(str, inputs))
    try:
        wanted.bind(*inputs, **attributes)
    except TypeError:
        return LlmcError("wrong number of inputs", found=types)
    given = f"inputs {types or 'none'}; attributes {dict(attributes)}" if attributes else types
    problem = f"the type rule of {name} fails: {in_a_line(error)}"
    hint = "an attribute of the wrong kind, or a fault of the declaration" if attributes else None
    return Fault(problem, at=fault_place(rule, error), found=given, hint=hint)


def fault_place(function: Callable[..., Any], error: BaseException | None = None) -> str:
    """`file:line` of `function`, or of the last of its file's lines on the way to `error`."""
    code = getattr(unwrap(function), "__code__", None)
    if code is None:
        return repr(function)
    line, trace = code.co_firstlineno, error.__traceback__ if error is not None else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == code.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{code.co_filename}:{line}"
