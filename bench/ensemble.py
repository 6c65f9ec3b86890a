"""Three fine-tunes of MiniLM on movie reviews, each alone and as one artifact: sizes, work and accuracy.

    python bench/ensemble.py              trains the three the first time, some ten minutes on one thread

The embeddings and the first four of six layers stay as they are (`train_classifier.py`), so members differ in two
layers, the pooler and the head. Accuracy is of the 2,000 test reviews.
"""

from __future__ import annotations

import csv
import sys
import tempfile
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


def write_reviews(path: Path) -> None:
    """The test reviews as a table."""
    _, test = train_classifier.reviews()
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        rows.writerows(test)


def measured(path: Path, data: Path) -> tuple[int, float, float, float]:
    """Bytes of the weights, floating-point operations of a run, accuracy, calibration error."""
    with llmc.load(path, threads=1) as model:
        weights = model.manifest.sizes["weights_bytes"]
        flops = sum(s.flops for s in model.benchmark(duration=0.1, profile=True, **SHAPE).steps)
    found = evaluate(path, data, threads=THREADS)
    return weights, flops, found.accuracy or 0.0, found.calibration_error or 0.0


def main() -> int:
    """Print a row for each artifact, sizes and work also as shares of those of the first of its precision."""
    rows, first = [], {}
    try:
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
