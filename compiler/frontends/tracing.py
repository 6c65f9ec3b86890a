"""`torch.export` of a module: what it prints is kept, what it raises is told with the line of the model's code."""

from __future__ import annotations

import inspect
import io
import re
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import PurePath
from typing import Any

import torch
from torch.export import ExportedProgram

from llmc.compiler.frontends import exporters, packed, size_guards
from llmc.compiler.frontends.joint import ANY, Joint
from llmc.errors import LlmcError, first_line

# Folders of files that are not the model's: torch's own, and these.
NOT_THEIRS = tuple(str(PurePath(inspect.getfile(m)).parent) for m in (torch, packed))


def trace(
    module: torch.nn.Module,
    sample: tuple[Any, ...],
    axes: tuple[Any, ...],
    asserted: bool = False,
    joint: Joint = ANY,
) -> ExportedProgram:
    """`torch.export` of a module.

    Args:
        module: in eval mode.
        sample: one tensor for each input.
        axes: for each input, position of a dynamic axis -> `torch.export.Dim`.
        asserted: whether what holds of the sizes may be asserted in the program instead of proved: see `guards`.
        joint: sizes that are never as large as their own bounds all at once.

    Raises:
        LlmcError: the module does something the tracer cannot follow, with the line that does it; or its code takes
            something for granted of several sizes that does not hold for all of them.
    """
    try:
        printed = io.StringIO()  # the failed graph
        quiet = redirect_stdout(printed), redirect_stderr(printed)
        with packed.exportable(module), exporters.patched(module), quiet[0], quiet[1]:
            program = _exported(
                module,
                sample,
                dynamic_shapes=(axes,) if _variadic(module) else axes,
                prefer_deferred_runtime_asserts_over_guards=asserted,
            )
    except Exception as error:  # torch.export raises many kinds, all about the module's code
        frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        theirs = [f for f in frames if not f.startswith((*NOT_THEIRS, "<"))]
        raise LlmcError(
            f"torch.export cannot trace the model: {_reason(error)}",
            at=PurePath(theirs[-1]).name if theirs else None,
            found=type(error).__name__,
            hint="control flow on tensor values, or on sizes beyond the dynamic ones, cannot be compiled",
        ) from error
    size_guards.want_held(program, module, sample, axes, joint)
    return program


def _exported(*given: Any, **options: Any) -> ExportedProgram:
    """`torch.export` without its table of what ops gave before: its keys hold symbolic sizes, dearer than the ops."""
    from torch._dynamo import config

    with config.patch(fake_tensor_cache_enabled=False):
        return torch.export.export(*given, **options)


def _reason(error: Exception) -> str:
    """What stood in the way, in one line."""
    fixed = _FIXED.findall(str(error))
    if not fixed:
        return first_line(error)
    names = ", ".join(sorted({name for name, _ in fixed}))
    return f"its code holds for one size of {names} only, as a loop in Python over that axis does"


_FIXED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_SUGGESTED = re.compile(r"^\s*(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)\s*$", re.MULTILINE)


def is_unproved(error: LlmcError) -> bool:
    """Whether an export was refused for nothing but what torch cannot prove of the sizes."""
    cause = error.__cause__
    unsolved = isinstance(cause, AssertionError) and _is_solving(cause)
    return ("satisfy the generated guard" in str(cause) or unsolved) and not _FIXED.search(str(cause))


def _is_solving(error: BaseException) -> bool:
    """Whether torch itself failed at saying for which sizes an export would hold."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "produce_guards_and_solve_constraints" for frame in frames)


def narrower(error: LlmcError, bounds: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The bounds within which torch says that a refused export would hold; the same where it says nothing."""
    found = dict(bounds)
    for name, low, high in _SUGGESTED.findall(str(error.__cause__)):
        if name in found:
            found[name] = max(found[name][0], int(low or 0)), min(found[name][1], int(high or found[name][1]))
    return found


def _variadic(module: torch.nn.Module) -> bool:
    """Whether forward is `forward(self, *values)`: then torch wants the axes as one entry."""
    return any(p.kind == p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
