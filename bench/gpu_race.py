"""One model on one GPU: llmc and PyTorch in turns, host arrays in and host arrays out, for bench/gpu.py.

    python3 gpu_race.py FOLDER MODEL SECONDS [compile]

SECONDS are of one shape. `compile` races torch.compile too, which takes minutes. Prints one line of JSON, the last:
for each shape and racer the median seconds, and the difference from PyTorch's fp32 answers.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import PRECISIONS, RACES, SUBJECTS, Array, tokens, torch_model
from gpu_worker import difference

import llmc

Call = Callable[[], Array]
LEAST = 15  # turns


def eager(model: Any, ids: Array, tf32: bool = False) -> Call:
    """PyTorch as it comes; fp32 products by fp32 or, rounded, by tensor cores."""
    given = torch.from_numpy(ids)

    def call() -> Array:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        with torch.inference_mode():
            result: Array = model(input_ids=given.cuda()).logits.float().cpu().numpy()
        return result

    return call


def graphed(model: Any, ids: Array) -> Call:
    """PyTorch's kernels recorded once for this shape and launched together: a CUDA graph."""
    torch.backends.cuda.matmul.allow_tf32 = False
    given, held = torch.from_numpy(ids), torch.from_numpy(ids).cuda()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            model(input_ids=held)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.inference_mode(), torch.cuda.graph(graph):
        logits = model(input_ids=held).logits.float()

    def call() -> Array:
        held.copy_(given)
        graph.replay()
        result: Array = logits.cpu().numpy()
        return result

    return call


def compiled(model: Any, ids: Array) -> Call:
    """torch.compile for this shape, with CUDA graphs."""
    made = torch.compile(model, mode="reduce-overhead", dynamic=False)
    call = eager(made, ids)
    for _ in range(3):
        call()
    return call


class Field:
    """The model as PyTorch's, fp32 and fp16, and as llmc's artifacts; loaded once."""

    def __init__(self, folder: Path, name: str, with_compile: bool) -> None:
        self.subject, self.with_compile = SUBJECTS[name], with_compile
        self.full = torch_model(name, folder / "demo").cuda()
        self.half = copy.deepcopy(self.full).half()
        places = {p: folder / "models" / f"{name}-{p}" for p in PRECISIONS}
        self.artifacts = {p: llmc.load(place) for p, place in places.items() if place.is_dir()}

    def racers(self, ids: Array) -> dict[str, Callable[[], Call]]:
        """Each by name; making one may fail."""
        found: dict[str, Callable[[], Call]] = {
            "torch-fp32": lambda: eager(self.full, ids),
            "torch-tf32": lambda: eager(self.full, ids, tf32=True),
            "torch-fp16": lambda: eager(self.half, ids),
            "graph-fp32": lambda: graphed(self.full, ids),
            "graph-fp16": lambda: graphed(self.half, ids),
        }
        if self.with_compile:
            found["compile-fp32"] = lambda: compiled(self.full, ids)
            found["compile-fp16"] = lambda: compiled(self.half, ids)
        for precision, model in self.artifacts.items():
            found[f"llmc-{precision}"] = lambda model=model: lambda: model(input_ids=ids)["logits"]  # type: ignore[misc]
        return found


def race(calls: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    """Seconds of each, in turns, the order turned round each time."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end, turn = time.perf_counter() + seconds, 0
    while turn < LEAST or time.perf_counter() < end:
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            calls[name]()
            taken[name].append(time.perf_counter() - start)
        turn += 1
    return taken


def one_shape(field: Field, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """A row of the result."""
    ids = tokens(field.subject, *shape, padded=False)["input_ids"]
    calls, failed, apart = {}, {}, {}
    for racer, make in field.racers(ids).items():
        try:
            call = make()
            answer = call()
            for _ in range(3):
                call()
            calls[racer], apart[racer] = call, answer
        except Exception as error:  # a racer that cannot run is reported, the others race
            failed[racer] = f"{type(error).__name__}: {error}"[:300]
    expected = apart.get("torch-fp32", np.zeros((1, 1)))
    taken = race(calls, seconds)
    return {
        "shape": f"{shape[0]}x{shape[1]}",
        "seconds": {racer: statistics.median(times) for racer, times in taken.items()},
        "best": {racer: min(times) for racer, times in taken.items()},
        "turns": min((len(times) for times in taken.values()), default=0),
        "apart": {racer: difference(answer, expected) for racer, answer in apart.items()},
        "failed": failed,
    }


def main() -> None:
    folder, name, seconds, *more = sys.argv[1:]
    field = Field(Path(folder), name, bool(more))
    rows = []
    for shape in RACES[1:3] if more else RACES:
        try:
            rows.append(one_shape(field, shape, float(seconds)))
        except Exception as error:  # one shape may be too much for the memory, say
            rows.append({"shape": f"{shape[0]}x{shape[1]}", "failed": {"all": str(error)[:300]}})
        print(json.dumps({"rows": rows}), flush=True)


if __name__ == "__main__":
    main()
