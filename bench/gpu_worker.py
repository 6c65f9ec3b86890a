"""One artifact in a process of its own, for bench/gpu.py: what breaks a GPU's context breaks nothing else.

    python3 gpu_worker.py check ARTIFACT [REPEATS]    every case of cases.npz, and the self-test
    python3 gpu_worker.py once ARTIFACT BATCH SEQ     two runs, for ncu
    python3 gpu_worker.py profile ARTIFACT BATCH SEQ  time of each kernel
    python3 gpu_worker.py variants ARTIFACT           the self-test of every variant this CPU can run

Each prints one line of JSON, the last.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import llmc
from llmc.runtime import Model

Array = np.ndarray[Any, Any]
# Largest difference from the interpreter, of the largest number of an output (of 1, if that is less).
LIMITS = {
    **dict.fromkeys(("fp32", "w8", "w4", "bf16"), 1e-4),
    "fp16": 5e-3,
    **dict.fromkeys(("int8", "w4a8"), 2e-2),
    "integers": 0.0,
    "blocks": 0.0,
}


def limit(artifact: Path) -> float:
    """Of an artifact's outputs: by the last part of its name that says a precision, else that of one kernel."""
    parts = [part for part in artifact.name.split("-") if part in LIMITS]
    return LIMITS[parts[-1]] if parts else 2e-5


def read_cases(path: Path) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """Inputs and expected outputs; none where the self-test has all."""
    if not path.exists():
        return []
    cases: dict[int, tuple[dict[str, Array], dict[str, Array]]] = defaultdict(lambda: ({}, {}))
    with np.load(path) as file:
        for key in file.files:
            number, side, name = key.split("/", 2)
            cases[int(number)][side == "out"][name] = file[key]
    return [cases[number] for number in sorted(cases)]


def difference(found: Array, expected: Array) -> float:
    """The largest difference as a share of the largest number; inf where one is NaN or infinite and the other not."""
    if not expected.size:
        return 0.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    scale = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    return float(np.where(np.isnan(gap), np.inf, gap).max()) / scale


def check(artifact: Path, repeats: int = 3) -> dict[str, Any]:
    """Differences by output and case; whether runs of one input gave the same bits."""
    outputs: dict[str, float] = defaultdict(float)
    unsteady, wrong, most = [], [], limit(artifact)
    with llmc.load(artifact) as model:
        tested = model.selftest()
        for number, (inputs, expected) in enumerate(read_cases(artifact / "cases.npz")):
            runs = [model.run(inputs) for _ in range(repeats)]
            for name, answer in expected.items():
                error = difference(runs[0][name], answer)
                outputs[name] = max(outputs[name], error)
                exact = answer.dtype.kind != "f" and error > 0
                if error > most or exact or runs[0][name].shape != answer.shape:
                    wrong.append(f"case {number}, {name}: off by {error:.3g}")
                if any(run[name].tobytes() != runs[0][name].tobytes() for run in runs[1:]):
                    unsteady.append(f"case {number}, {name}")
    return {
        "limit": most,
        "error": max(outputs.values(), default=tested.largest_error),
        "outputs": dict(outputs),
        "wrong": wrong,
        "unsteady": unsteady,
        "selftest": {"error": tested.largest_error, "failures": list(tested.failures)},
        "load_seconds": model.load_seconds,
    }


def example(model: Model, batch: int, seq: int) -> dict[str, Array]:
    """Token ids; whatever else the model takes has a default."""
    return {"input_ids": np.random.default_rng(0).integers(5, 4000, (batch, seq))}


def once(artifact: Path, batch: int, seq: int) -> dict[str, Any]:
    """Two runs."""
    with llmc.load(artifact) as model:
        for _ in range(2):
            model.run(example(model, batch, seq))
    return {}


def profile(artifact: Path, batch: int, seq: int) -> dict[str, Any]:
    """Seconds, FLOP and calls of a run by kernel; a wait for the GPU after each is in the seconds."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    with llmc.load(artifact) as model:
        report = model.benchmark(duration=0.5, profile=True, batch=batch, seq=seq)
    for step in report.steps or ():
        entry = found[step.kernel]
        entry[0], entry[1], entry[2] = entry[0] + step.seconds, entry[1] + step.flops, entry[2] + 1
    kernels = {name: dict(zip(("seconds", "flops", "calls"), e, strict=True)) for name, e in found.items()}
    return {"p50": report.latency.p50, "steps": len(report.steps or ()), "kernels": kernels}


def variants(artifact: Path) -> dict[str, Any]:
    """What each variant's self-test found, or why it does not run here."""
    found = {}
    for variant in llmc.load(artifact).manifest.variants:
        try:
            with llmc.load(artifact, variant=variant.name) as model:
                result = model.selftest()
                found[variant.name] = f"error {result.largest_error:.2g}" + "; ".join(result.failures)
        except llmc.LlmcError as error:
            found[variant.name] = f"not run: {error.problem}"
    return {"variants": found, "best": llmc.load(artifact).variant}


def main() -> None:
    command, artifact, *rest = sys.argv[1:]
    commands = {"check": check, "once": once, "profile": profile, "variants": variants}
    try:
        result = commands[command](Path(artifact), *map(int, rest))
    except Exception as error:  # whatever it is, the report of the whole run must have it
        result = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
