"""Three fine-tunes of MiniLM on movie reviews, each alone and as one artifact: sizes, work and accuracy.

    python bench/ensemble.py              trains the three the first time, some ten minutes on one thread
    python bench/ensemble.py --trained    members that `llmc recover --bag 3` and `--boost 3` make of one MiniLM

The embeddings and the first four of six layers stay as they are (`train_classifier.py`), so members differ in two
layers, the pooler and the head. Accuracy is of the 2,000 test reviews.

With --trained the members begin as MiniLM with a head of random weights, and learn from labels of the 8,070 training
reviews alone, on one thread, for --seconds of processor time each; "drop" is of the best member's answers, in points
with the 95 % half width of the paired difference.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import models
import train_classifier

import llmc
from llmc.cli.output import print_table, size_text
from llmc.evaluate import evaluate

SEEDS = (1, 2, 3)
FROZEN = 4  # layers
THREADS = 2
SHAPE = {"batch": 1, "seq": 64}  # of the work that is counted


def folders() -> list[Path]:
    """The members."""
    return [train_classifier.classifier(f"{train_classifier.NAME}-{seed}", seed, FROZEN) for seed in SEEDS]


def artifacts(members: Sequence[Path]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """What is compiled: name, model or models, options."""
    yield from ((f"seed {seed}", folder, {}) for seed, folder in zip(SEEDS, members, strict=True))
    yield from ((kind, list(members), {"ensemble": kind}) for kind in ("mean", "vote"))
    yield "seed 1, int8", members[0], {"quant": "int8"}
    yield "mean, int8", list(members), {"ensemble": "mean", "quant": "int8"}
    for error in (0.01, 0.02):
        yield f"mean, differ {error}", list(members), {"add_passes": f"differ{{error={error}}}@compress"}
    yield (
        "mean, differ 0.02, int8",
        list(members),
        {"add_passes": "differ{error=0.02}@compress", "quant": "int8"},
    )


def write_reviews(path: Path, which: int = 1) -> Path:
    """The test reviews as a table, or with 0 those to train on."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        rows.writerows(train_classifier.reviews()[which])
    return path


def untrained(folder: Path) -> Path:
    """MiniLM with a head of random weights."""
    import torch
    from transformers import BertForSequenceClassification

    base = models.fetch("minilm")
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(
        base, num_labels=2, id2label={0: "negative", 1: "positive"}
    )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    return folder


def trained(scratch: Path, seconds: float) -> Iterator[tuple[str, ...]]:
    """A row for each member, and for each way to join them."""
    import torch

    from llmc.members import train
    from llmc.recover import Settings

    torch.set_num_threads(1)
    base, test = untrained(scratch / "base"), write_reviews(scratch / "test.csv")
    data = write_reviews(scratch / "train.csv", 0)
    for kind in ("bag", "boost"):
        settings = Settings(**{kind: len(SEEDS)}, budget=seconds * len(SEEDS))
        found = train(base, data, scratch / kind, settings, clock=time.process_time, say=print)
        paths = [found.path / name for name in found.members]
        made = [(f"{kind}, {path.name}", [path], {}) for path in paths]
        made += [
            (f"{kind}, {name.replace(str(scratch), '.')}", paths, {"ensemble": name})
            for name in found.together
        ]
        best: tuple[float, Path] | None = None
        for number, (name, members, options) in enumerate(made):
            artifact = scratch / f"{kind}-{number}.llmc"
            llmc.compile(members if len(members) > 1 else members[0], artifact, **options)
            weights = llmc.load(artifact, threads=1).manifest.sizes["weights_bytes"]
            judged = evaluate(artifact, test, best[1] if best and options else None, threads=1)
            accuracy, drop = judged.accuracy or 0.0, ""
            if judged.interval is not None and judged.difference is not None:
                low, high = judged.interval
                drop = f"{-100 * judged.difference:+.2f} +- {50 * (high - low):.2f}"
            if not options and (best is None or accuracy > best[0]):
                best = accuracy, artifact
            weight = f"{found.weights[number]:.2f}" if not options and found.weights else ""
            yield name, size_text(weights), f"{accuracy:.2%}", drop, weight
        print(f"{kind}: {found.steps} steps in {found.seconds:.0f} processor seconds", flush=True)


def measured(path: Path, data: Path) -> tuple[int, float, float, float]:
    """Bytes of the weights, floating-point operations of a run, accuracy, calibration error."""
    with llmc.load(path, threads=1) as model:
        weights = model.manifest.sizes["weights_bytes"]
        flops = sum(s.flops for s in model.benchmark(duration=0.1, profile=True, **SHAPE).steps)
    found = evaluate(path, data, threads=THREADS)
    return weights, flops, found.accuracy or 0.0, found.calibration_error or 0.0


def main() -> int:
    """Print a row for each artifact, sizes and work also as shares of those of the first of its precision."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trained", action="store_true", help="members made by llmc recover")
    parser.add_argument("--seconds", type=float, default=60, help="to train each of them")
    asked = parser.parse_args()
    rows, first = [], {}
    try:
        if asked.trained:
            with tempfile.TemporaryDirectory() as scratch:
                for row in trained(Path(scratch), asked.seconds):
                    print(f"| {' | '.join(row)} |", flush=True)
            return 0
        with tempfile.TemporaryDirectory() as scratch:
            data, path = Path(scratch) / "reviews.csv", Path(scratch) / "m.llmc"
            write_reviews(data)
            for name, model, options in artifacts(folders()):
                llmc.compile(model, path, **options)
                weights, flops, accuracy, error = measured(path, data)
                one = first.setdefault(options.get("quant"), (weights, flops))
                shares = [f"{weights / one[0]:.2f}", f"{flops / 1e6:.0f}", f"{flops / one[1]:.2f}"]
                rows.append((name, size_text(weights), *shares, f"{accuracy:.2%}", f"{error:.3f}"))
                print(*rows[-1], flush=True)
    except (models.FetchError, llmc.LlmcError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    columns = ("artifact", ">weights", ">of one", ">MFLOP", ">of one", ">accuracy", ">calibration error")
    print_table(f"{SHAPE['batch']} x {SHAPE['seq']} tokens", list(columns), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
