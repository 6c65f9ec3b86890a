"""What `llmc recover` wins back of what `--prune`, `--quant` and fewer layers take, on the fine-tuned sentiment model.

    python bench/recovery.py                      trains the model the first time (train_classifier.py)
    python bench/recovery.py --only 2:4 --seconds 60
    python bench/recovery.py --only structured --latency 6     also how long a text of 128 tokens takes

Recovery learns from the 8,070 training reviews, on one thread, for 180 seconds of processor time at most (a shared
machine's wall time says little). Each folder is then compiled with the same option, and judged on the 2,000 test
reviews, which nothing learnt from: "drop" is in points to the dense artifact, with the 95 % half width of the paired
difference. "other zeros" counts weights of the recovered folder that --prune changes, which should be none.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import train_classifier
from train_classifier import reviews
from transformers import BertForSequenceClassification

import llmc
from llmc.evaluate import evaluate
from llmc.fewer_layers import fewer
from llmc.masks import graph_of
from llmc.passes.compress.prune import Prune
from llmc.recover import Settings, recover
from llmc.runtime import compare
from llmc.units import changes_of

STRUCTURED = ("heads:0.25", "neurons:0.4")
ASKED: dict[str, dict[str, Any]] = {
    "2:4": {"prune": ("2:4",)},
    "4x1:0.8": {"prune": ("4x1:0.8",)},
    "0.5": {"prune": ("0.5",)},
    "0.7": {"prune": ("0.7",)},
    "structured": {"prune": STRUCTURED},
    "structured, by magnitude": {"prune": STRUCTURED, "importance": "magnitude"},
    "w4": {"quant": "w4"},
    "int8": {"quant": "int8"},
    "share 16": {"share": "16"},
    "share 256": {"share": "256"},
    "3": {"layers": 3},
    "narrower": {"neurons": 768},
}
OF_COMPILE = ("prune", "quant", "share")  # the others are in the folder
SEQ = 128  # tokens of the text whose time is taken


def table(path: Path, rows: list[tuple[str, int]]) -> Path:
    """Reviews as a file of text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["text", "label"])
        writer.writerows((" ".join(text.split()), label) for text, label in rows)
    return path


def changed(folder: Path, spec: str) -> int:
    """Weights other than zero that the pass would set to zero."""
    change = changes_of(ASKED[spec].get("prune", ()))
    if not isinstance(change, Prune):
        return 0
    chosen = change.chosen(graph_of(folder, "text-classification"))
    return sum(
        int(np.count_nonzero(p.array[~mask])) for p, mask in zip(chosen, change.masks(chosen), strict=True)
    )


def judged(
    folder: Path, spec: str, dense: Path, test: Path, scratch: Path, latency: float = 0.0
) -> dict[str, Any]:
    """Accuracy of a folder compiled with the option, beside the dense artifact's, and its time if seconds are given."""
    artifact = scratch / f"{folder.name}-{len(list(scratch.iterdir()))}.llmc"
    llmc.compile(folder, artifact, **{k: v for k, v in ASKED[spec].items() if k in OF_COMPILE})
    found = evaluate(artifact, test, dense, threads=1)
    assert found.interval is not None
    low, high = found.interval
    result = {
        "accuracy": found.accuracy,
        "drop": -100 * found.difference,
        "half_width": 50 * (high - low),
        "agreement": found.agreement,
    }
    if latency:
        with llmc.load(artifact, threads=1) as own, llmc.load(dense, threads=1) as other:
            report = compare(own, other, batch=1, seq=SEQ, duration=latency)
        result["latency"] = report.ratio, report.low, report.high
    return result


def _alone(source: Path, spec: str, scratch: Path) -> Path:
    """The folder that nothing was recovered of."""
    if spec != "3":
        return source
    folder = scratch / f"layers-{spec}"
    model = BertForSequenceClassification.from_pretrained(source)
    fewer(model, int(spec)).save_pretrained(folder)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    return folder


def measure(
    spec: str, source: Path, dense: Path, files: tuple[Path, Path], scratch: Path, options: Any
) -> dict[str, Any]:
    """One line: pruned alone, and recovered."""
    train, test = files
    output = scratch / f"recovered-{spec.replace(':', '').replace(' ', '-')}"
    began = time.monotonic()
    done = recover(
        source,
        train,
        output,
        Settings(
            **ASKED[spec],
            budget=options.seconds,
            rate=options.lr,
            hidden=options.hidden,
            ramp=options.ramp,
        ),
        clock=time.process_time,
        say=print,
    )
    wall = time.monotonic() - began
    alone = None
    if spec != "narrower":  # which there is only trained
        alone = judged(_alone(source, spec, scratch), spec, dense, test, scratch)
    return {
        "option": spec,
        "steps": done.steps,
        "seconds": done.seconds,
        "wall": wall,
        "other_zeros": changed(output, spec),
        "compressed": alone,
        "recovered": judged(output, spec, dense, test, scratch, options.latency),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    cells = [f"`{row['option']}`"]
    for name in ("compressed", "recovered"):
        if (one := row[name]) is None:
            cells += [""] * 3
            continue
        cells.append(f"{100 * one['accuracy']:.2f} %")
        cells.append(f"{one['drop']:+.2f} +- {one['half_width']:.2f}")
        cells.append(f"{100 * one['agreement']:.2f} %")
    cells += [str(row["steps"]), f"{row['seconds']:.0f}", f"{row['wall']:.0f}", str(row["other_zeros"])]
    if (ratio := row["recovered"].get("latency")) is not None:
        cells.append(f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})")
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    *("option", "alone", "drop", "same answers", "recovered", "drop", "same answers"),
    *("steps", "processor s", "wall s of all", "other zeros"),
)


def main() -> int:
    """Print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--hidden", type=float, default=Settings("0.5").hidden)
    parser.add_argument("--ramp", type=float, help="share of the training in which zeros become more")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds to take times for")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = train_classifier.classifier()
    train, test = reviews()
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        files = table(scratch / "train.tsv", train), table(scratch / "test.tsv", test)
        dense = scratch / "dense.llmc"
        llmc.compile(source, dense)
        if not options.json:
            columns = (*COLUMNS, *("latency / dense",) * bool(options.latency))
            print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for spec in options.only:
            row = measure(spec, source, dense, files, scratch, options)
            print(json.dumps(row) if options.json else line(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
