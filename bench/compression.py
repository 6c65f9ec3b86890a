"""What compression costs and gives on the fine-tuned sentiment model, beside the dense artifact.

    python bench/compression.py                        trains the model the first time (train_classifier.py)
    python bench/compression.py --model FOLDER --data test.tsv --only dense "prune 30 %"
    python bench/compression.py --peers                int8 of ONNX Runtime and of OpenVINO by NNCF too (extra `bench`)

Accuracy and agreement are over the 2,000 test reviews. Dense is paired with PyTorch fp32 on the same texts, the
others with dense; "drop" is in points, with the 95 % half width of the paired difference. Size is the whole
artifact. Latency is one text of 128 tokens on one thread: the ratio to dense of interleaved runs, with its 95 %
interval. Nothing is retrained. "By samples" is with 300 of the training reviews, which peers are calibrated by too.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import llmc
from llmc.evaluate import evaluate
from llmc.runtime import compare

SAMPLES = 300
CALIB = "samples.txt"  # stands for the file of training reviews
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "dense": {},
        "fp16": {"quant": "fp16"},
        "bf16": {"quant": "bf16"},
        "bf16a16": {"quant": "bf16a16"},
        "int8": {"quant": "int8"},
        "int8-static": {"quant": "int8-static", "calib": CALIB},
        "w8": {"quant": "w8"},
        "w4": {"quant": "w4"},
        "w4 by samples": {"quant": "w4", "calib": CALIB},
        "w4 with zero points by samples": {"quant": "w4", "zero_points": True, "calib": CALIB},
        "w4a8 by samples": {"quant": "w4a8", "calib": CALIB},
        "prune 30 %": {"prune": "0.3"},
        "prune 50 %": {"prune": "0.5"},
        "prune 50 % by samples": {"prune": "0.5", "calib": CALIB},
        "prune 2:4": {"prune": "2:4"},
        "prune 2:4 by samples": {"prune": "2:4", "calib": CALIB},
        "prune 60 % of 4x1 by samples": {"prune": "4x1:0.6", "calib": CALIB},
        "prune 80 % of 4x1 by samples": {"prune": "4x1:0.8", "calib": CALIB},
        "share 256": {"share": "256"},
        "share 16": {"share": "16"},
        "a quarter of heads": {"prune": "heads:0.25"},
        "a quarter of neurons": {"prune": "neurons:0.25"},
        "SVD, 90 % of energy": {"factorize": "energy=0.9"},
        "prune 30 %, share 256": {"prune": "0.3", "share": "256"},
    }
)
SEQ = 128
COLUMNS = ("variant", "accuracy", "same answers", "drop in points", "MB", "of dense", "latency / dense")


def reviews_file(folder: Path) -> Path:
    """The 2,000 test reviews as a table of text and label."""
    import train_classifier

    _, test = train_classifier.reviews()
    path = folder / "test.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["text", "label"])
        writer.writerows((" ".join(text.split()), label) for text, label in test)
    return path


def samples_file(folder: Path) -> Path:
    """Training reviews, a line each."""
    import train_classifier

    training, _ = train_classifier.reviews()
    path = folder / CALIB
    path.write_text("\n".join(" ".join(text.split()) for text, _ in training[:SAMPLES]), encoding="utf-8")
    return path


def measure(
    name: str, artifact: Path, dense: Path, source: Path, data: Path, rows: int | None, seconds: float
) -> dict[str, Any]:
    """One line of the table."""
    baseline = source if artifact == dense else dense
    found = evaluate(artifact, data, baseline, threads=1, limit=rows)
    size, whole = (sum(f.stat().st_size for f in p.iterdir()) for p in (artifact, dense))
    result = {"variant": name, "megabytes": size / 1e6, "of_dense": size / whole, **found.to_dict()}
    if artifact == dense:
        return {**result, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    with llmc.load(artifact, threads=1) as own, llmc.load(dense, threads=1) as other:
        report = compare(own, other, batch=1, seq=SEQ, duration=seconds)
    return {**result, "ratio": report.ratio, "ratio_low": report.low, "ratio_high": report.high}


def line(row: Mapping[str, Any]) -> str:
    """A row of the table in Markdown."""
    low, high = row["interval"]
    cells = (
        row["variant"],
        f"{100 * row['accuracy']:.2f} %",
        f"{100 * row['agreement']:.2f} %",
        f"{-100 * row['difference']:+.2f} +- {50 * (high - low):.2f}",
        f"{row['megabytes']:.1f}",
        f"{row['of_dense']:.3f}",
        f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Compile, measure and print each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a classifier's folder  [default: the fine-tuned MiniLM]")
    parser.add_argument("--data", type=Path, help="labelled texts  [default: the 2,000 test reviews]")
    parser.add_argument("--rows", type=int, help="rows to stop after")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each comparison of latency")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--peers", action="store_true", help="peers' int8 too, on the default model and data")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model is None:
        import train_classifier

        options.model = train_classifier.classifier()
    rows = []
    with tempfile.TemporaryDirectory(prefix="llmc-") as place:
        folder = Path(place)
        data = options.data or reviews_file(folder)
        dense = folder / "dense.llmc"
        llmc.compile(options.model, dense)
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        for name in options.only:
            artifact = dense
            if name != "dense":
                # a name of its own: a process keeps the code it has loaded from a path
                artifact = folder / f"{len(rows) + 1}.llmc"
                variant = dict(VARIANTS[name])
                if "calib" in variant:
                    variant["calib"] = samples_file(folder)
                llmc.compile(options.model, artifact, **variant)
            row = measure(name, artifact, dense, options.model, data, options.rows, options.seconds)
            rows.append(row)
            print(line(row), flush=True)
        if options.peers:
            from compression_peers import peers

            for row in peers(options.model, dense, samples_file(folder), options.rows):
                rows.append(row)
                print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
