"""What torch.export takes for granted about several sizes at once, and says in no error: `(batch * seq) % 13 != 0`.

It refuses a program whose code asks something of one size that does not hold for all of it. Of several sizes it only
notes what came out on the sample, as a guard that the program would check when it is called. llmc's graphs check
nothing of the kind, so what does not hold for all sizes is an error here.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmc.compiler.frontends.joint import ANY, Joint
from llmc.errors import LlmcError

TRIED = 4096  # combinations of sizes, beside those of the ends
_SIZE = re.compile(r"L\['(\w+)'\](?:\[(\d+)\])?\.size\(\)\[(\d+)\]")
_SAME = re.compile(r"\(?(\w+)\)? == \(?(\w+)\)?")
_FUNCTIONS: Mapping[str, Any] = {
    "min": min,
    "max": max,
    "math": math,
    "torch": SimpleNamespace(sym_max=max, sym_min=min, sym_not=lambda value: not value),
}


def want_held(
    program: Any,
    module: Any,
    sample: Sequence[Any],
    axes: Sequence[Mapping[int, Any]],
    joint: Joint = ANY,
) -> None:
    """Refuse a program with a guard that does not hold for all sizes.

    Args:
        program: torch.export's.
        module: what was exported.
        sample, axes, joint: as of `tracing.trace`.

    Raises:
        LlmcError: a guard is false for some sizes, or cannot be understood.
    """
    for guard in getattr(program, "_guards_code", None) or ():
        text, bounds = _named(guard, _places(module), sample, axes)
        same = _SAME.fullmatch(text)
        if same and same[1] == same[2]:
            continue
        wrong = _counterexample(text, bounds, joint)
        if wrong is not None:
            raise LlmcError(
                "the model's code computes something else at some sizes, and its graph would not",
                at="torch.export",
                found=f"it holds for {text} only" + (f", not at {wrong}" if wrong else ""),
                hint="control flow on sizes beyond one dim of its own cannot be compiled",
            )


def _places(module: Any) -> list[str]:
    """The names of forward's parameters."""
    return list(inspect.signature(module.forward).parameters)


def _named(
    guard: str, places: Sequence[str], sample: Sequence[Any], axes: Sequence[Mapping[int, Any]]
) -> tuple[str, dict[str, tuple[int, int]]]:
    """A guard by the names of dims, and their bounds; sizes that are fixed are numbers."""
    bounds: dict[str, tuple[int, int]] = {}

    def name(match: re.Match[str]) -> str:
        number = int(match[2]) if match[2] else places.index(match[1]) if match[1] in places else -1
        if not 0 <= number < len(axes):
            return match[0]
        axis = int(match[3])
        known = axes[number].get(axis)
        if known is None:
            return str(int(sample[number].shape[axis]))
        bounds[known.__name__] = (int(known.min), int(known.max))
        return str(known.__name__)

    return _SIZE.sub(name, guard), bounds


def _counterexample(text: str, bounds: Mapping[str, tuple[int, int]], joint: Joint) -> str | None:
    """Sizes at which it is false, "" where it cannot be computed; None: it holds wherever it was tried."""
    try:
        code = compile(text, "guard", "eval")
        for sizes in _tried(bounds):
            if joint.allows(sizes) and not eval(code, {"__builtins__": {}, **_FUNCTIONS}, sizes):
                return ", ".join(f"{name} = {size}" for name, size in sizes.items())
    except Exception:  # something of torch's that is not known here
        return ""
    return None


def _tried(bounds: Mapping[str, tuple[int, int]]) -> Iterator[dict[str, int]]:
    """All ends of the bounds and what lies next to them, and random sizes within."""
    ends = [sorted({low, min(low + 1, high), max(high - 1, low), high}) for low, high in bounds.values()]
    rng = np.random.default_rng(0)
    drawn = zip(*(rng.integers(low, high + 1, TRIED).tolist() for low, high in bounds.values()), strict=True)
    for sizes in itertools.chain(itertools.product(*ends), drawn):
        yield dict(zip(bounds, sizes, strict=True))
