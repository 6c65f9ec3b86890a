"""What `model.encode` takes for many texts of mixed lengths, beside batches made by hand and sentence-transformers.

    python bench/encode.py ARTIFACT [--texts 5000] [--threads 1] [--rounds 3] [--against FOLDER] [--seed 0]

In turns in one process, medians (and the best) in texts a second, and the processor's seconds, which other processes of
the machine do not change:

    encode       model.encode(texts)
    by hand      texts sorted by their number of characters, run_text on 32 at a time, put back in order
    as they come run_text on 32 at a time
    peer         sentence-transformers' encode of the FOLDER that the artifact was compiled of, on as many threads

The texts are words of the artifact's own vocabulary, 1 to 200 of them, most of them short. All answers are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import llmc

Array = np.ndarray[Any, Any]
ROWS = 32


def mixed(artifact: Path, count: int, seed: int) -> list[str]:
    """Texts of log-normal length."""
    vocabulary = json.loads((artifact / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(2.9, 0.8, count), 1, 200).astype(int)
    return [" ".join(rng.choice(words, length)) for length in lengths]


def in_batches(model: Any, texts: list[str], order: Array) -> Array:
    """Rows in the order of the texts, of batches that follow `order`."""
    parts = [
        model.run_text([texts[i] for i in order[start : start + ROWS]])["sentence_embedding"]
        for start in range(0, len(order), ROWS)
    ]
    found = np.empty((len(texts), parts[0].shape[1]), np.float32)
    found[order] = np.concatenate(parts)
    return found


def peer(folder: Path, threads: int) -> Callable[[list[str]], Array]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return lambda texts: np.asarray(model.encode(texts, batch_size=ROWS))


def measure(runs: Mapping[str, Callable[[], Array]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of the processor, in turns, backwards every other time."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start, busy = time.perf_counter(), time.process_time()
            runs[name]()
            seconds[name].append((time.perf_counter() - start, time.process_time() - busy))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    texts = mixed(asked.artifact, asked.texts, asked.seed)
    model = llmc.load(asked.artifact, threads=asked.threads)
    by_length = np.argsort([-len(text) for text in texts], kind="stable")
    runs: dict[str, Callable[[], Array]] = {
        "encode": lambda: np.asarray(model.encode(texts, batch_size=ROWS)),
        "by hand": lambda: in_batches(model, texts, by_length),
        "as they come": lambda: in_batches(model, texts, np.arange(len(texts))),
    }
    if asked.against:
        other = peer(asked.against, asked.threads)
        runs["peer"] = lambda: other(texts)
    first = {name: run() for name, run in runs.items()}
    worst = {name: float(np.abs(found - first["encode"]).max()) for name, found in first.items()}
    seconds = measure(runs, asked.rounds)
    print(
        f"{len(texts)} texts, {asked.threads} threads, {model.variant}, medians (and best) of {asked.rounds}"
    )
    clock, busy = ({n: [pair[i] for pair in taken] for n, taken in seconds.items()} for i in (0, 1))
    for name, taken in clock.items():
        speed = f"{len(texts) / statistics.median(taken):7.0f} ({len(texts) / min(taken):.0f}) texts/s"
        ratios = (min(of[name]) / min(of["encode"]) for of in (clock, busy))
        against = ", ".join(
            f"{r:.2f} of encode's {what}" for r, what in zip(ratios, ("time", "work"), strict=True)
        )
        print(f"  {name:<13}{speed}   best: {against}   off by {worst[name]:.1e}")


if __name__ == "__main__":
    main()
