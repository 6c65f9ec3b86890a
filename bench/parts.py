"""What `--matmul int8x3` costs on MiniLM in accuracy, and in time where there is no AMX: for docs/numerics.md.

    python bench/parts.py

For each product its error, root mean square against float64 as a share of the result's, beside PyTorch's sums of
float32; then the largest difference of `last_hidden_state` to float64. Last, for each instruction set that this
machine runs, the time of an artifact of int8x3 over one of fma: medians of 40 runs each in turns, 128 tokens, one
thread.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch

import llmc
from llmc.compiler.ops import OPS
from llmc.compiler.ops.split import split_weights

RUNS = 40
PRODUCTS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
Array = np.ndarray[Any, Any]


def error(found: Array, exact: Array) -> float:
    """Root mean square of the difference, as a share of the result's."""
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def products(model: Any, ids: torch.Tensor) -> None:
    """One line for each product of the layers."""
    caught = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(PRODUCTS):
            keep = lambda m, i, o, name=name: caught.__setitem__(name, (i[0][0].numpy(), m.weight.numpy()))  # noqa: E731
            module.register_forward_hook(keep)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for name, (x, w) in caught.items():
        exact = x.astype(np.float64) @ w.T.astype(np.float64)
        parts = OPS["split_linear"].reference(OPS["split_rows"].reference(x), *split_weights(w), epilogue=())
        summed = (torch.from_numpy(x) @ torch.from_numpy(w).T).numpy()
        peak = float(np.mean(np.abs(x).max(-1) / np.sqrt(np.mean(x**2, -1))))
        print(
            f"{name:<42} largest / rms {peak:5.1f}   {error(parts, exact):.1e}   float32 {error(summed, exact):.1e}"
        )


def outputs(model: Any, ids: torch.Tensor, artifacts: dict[str, Path]) -> None:
    """The largest differences of last_hidden_state."""
    mask = torch.ones_like(ids)
    plain = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    exact = model.double()(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    model.float()
    found = {"pytorch": plain}
    for name, path in artifacts.items():
        with llmc.load(path) as made:
            found[name] = np.array(
                made(input_ids=ids.numpy(), attention_mask=mask.numpy())["last_hidden_state"]
            )
    print(", ".join(f"{name} {np.abs(value - exact).max():.1e}" for name, value in found.items()))


def times(ids: Array, artifacts: dict[str, Path]) -> None:
    """int8x3 over fma for each instruction set; that of fma is the one whose code for it is the best below."""
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    plain = [v.name for v in llmc.runtime.read_manifest(artifacts["fma"]).variants]
    with llmc.load(artifacts["int8x3"]) as model:
        names = [v.name for v in model.manifest.variants]
        names = names[names.index(model.variant) :]
    for name in names:
        base = next(other for other in plain if name.startswith(other))
        pair = [llmc.load(artifacts[m], threads=1, variant=v) for m, v in (("int8x3", name), ("fma", base))]
        seconds: list[list[float]] = [[], []]
        for _ in range(RUNS):
            for model, taken in zip(pair, seconds, strict=True):
                begin = time.perf_counter()
                model(**inputs)
                taken.append(time.perf_counter() - begin)
        ours, fma = (float(np.median(taken[5:])) for taken in seconds)
        print(f"{name:<12} int8x3 / fma {ours / fma:.2f}")


@torch.no_grad()
def main() -> None:
    """Print all."""
    from transformers import AutoModel

    home = models.fetch("minilm")
    model = AutoModel.from_pretrained(home).eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 20000, (2, 128)))
    products(model, ids[:1])
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {name: Path(folder) / f"{name}.llmc" for name in ("fma", "int8x3")}
        for name, path in artifacts.items():
            llmc.compile(home, path, target="x86", matmul=name)
        outputs(model, ids, artifacts)
        times(ids.numpy()[:1], artifacts)


if __name__ == "__main__":
    main()
