"""The errors of the kernels' own functions against float64, as docs/numerics.md states them.

python tests/function_errors.py [STEP]      every STEP-th float32, default 1031: the table of the document
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel_lab import Lab, differing, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.targets.cpu.lower import LOWERINGS

Array = np.ndarray[Any, Any]


def from_torch(function: Callable[..., Any], **options: Any) -> Callable[[Array], Array]:
    def call(x: Array) -> Array:
        return np.asarray(function(torch.from_numpy(x), **options).numpy())

    return call


@dataclass(frozen=True)
class Function:
    """An op, its float64 reference, and where its error is stated: low <= x <= high, |result| >= least."""

    op: str
    reference: Callable[[Array], Array]
    low: float = -3e38
    high: float = 3e38
    least: float = 2.0**-100


gelu = torch.nn.functional.gelu
FUNCTIONS: Mapping[str, Function] = {
    "exp": Function("exp", np.exp, -87.3, 88.7),
    "tanh": Function("tanh", np.tanh),
    "erf": Function("erf", from_torch(torch.erf)),
    "sigmoid": Function("sigmoid", from_torch(torch.sigmoid), -87.3),
    "silu": Function("silu", from_torch(torch.nn.functional.silu), -87.3),
    "gelu": Function("gelu", from_torch(gelu), -1.0),
    "gelu, tanh form": Function("gelu_tanh", from_torch(gelu, approximate="tanh"), -1.0),
    "log": Function("log", np.log, 2.0**-126),
    "sin": Function("sin", np.sin, -1e5, 1e5),
    "cos": Function("cos", np.cos, -1e5, 1e5),
}


def samples(step: int) -> Array:
    """Every `step`-th float32 by bit pattern, infinities and NaN left out."""
    x = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return x[np.isfinite(x)]


def run_kernel(lab: Lab, op: str, x: Array) -> Array:
    """The op's kernel on f32[n]; every variant of this machine must give the same bits."""
    name, attributes = ("gelu", {"approximate": "tanh"}) if op == "gelu_tanh" else (op, {})
    value = input_("x", "f32", (symbol("n"),))
    graph = Graph((value,), {"y": make(name, (value,), **attributes)}, {"n": (1, 2**31)})
    results = [lab.run(graph, {"x": x}, {"n": len(x)}, cpu)["y"] for cpu in differing(["chain"])]
    assert all(same_bits(results[0], other) for other in results[1:]), (
        f"{op}: the bits differ between variants"
    )
    return results[0]


def errors(lab: Lab, function: Function, step: int) -> tuple[float, float]:
    """Largest error in ulp of the result where that is stated, and over all x as a share of max(1, |x|)."""
    x = samples(step)
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = function.reference(wide)
        fits = np.isfinite(exact.astype(np.float32))
    x, wide, exact = x[fits], wide[fits], exact[fits]
    apart = np.abs(run_kernel(lab, function.op, x).astype(np.float64) - exact)
    stated = (x >= function.low) & (x <= function.high) & (np.abs(exact) >= function.least)
    ulp = np.spacing(np.abs(exact[stated]).astype(np.float32)).astype(np.float64)
    scale = np.maximum(1, np.abs(exact) if function.op == "exp" else np.abs(wide))
    return float((apart[stated] / ulp).max()), float((apart / scale).max())


def main() -> None:
    torch.set_num_threads(1)
    step = int(sys.argv[1]) if len(sys.argv) > 1 else 1031
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), LOWERINGS)
        for name, function in FUNCTIONS.items():
            ulps, share = errors(lab, function, step)
            print(f"| {name} | {ulps:.2f} | {share:.1e} |")


if __name__ == "__main__":
    main()
