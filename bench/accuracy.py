"""Accuracy of compiled sentiment models on 2,000 test texts, paired with PyTorch fp32 on the same texts.

    python bench/accuracy.py                        compiles MiniLM-sentiment to fp32 and by every --quant
    python bench/accuracy.py none int8 int8x3 --json r.json
    python bench/accuracy.py int8-static-minmax --on tweets     texts of another domain; no gate holds there

Each text is run alone and unpadded by both. "Same" is the share of equal answers, "drop" the points of accuracy
lost, with the 95 % interval of the paired difference. Exit code 1 if one misses its gate.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import models
import numpy as np
import sentiment
import torch
import train_classifier

import llmc

ROUNDED = "w4-calib"  # w4 rounded by samples
ZEROS = "-zeros"  # with zero points
STATIC = "int8-static"
METHODS = ("minmax", "percentile", "entropy")  # of its ranges: a row each
PARTS = "int8x3"  # no quantisation: fp32 by --matmul int8x3, for processors with AMX
# quantisation -> (largest drop in points, smallest share of same answers in percent)
GATES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "none": (0.0, 100.0),
        "fp16": (0.1, 99.9),
        "bf16": (0.3, 99.5),
        "bf16a16": (0.3, 99.5),
        "int8": (0.5, 98.0),
        **{f"{STATIC}-{method}": (0.7, 97.0) for method in METHODS},
        "w8": (0.3, 99.0),
        "w4": (1.5, 95.0),
        ROUNDED: (0.4, 97.0),
        f"w4{ZEROS}": (1.5, 95.0),
        f"{ROUNDED}{ZEROS}": (0.4, 97.0),
        PARTS: (0.0, 100.0),
    }
)
COSINE, SHARE = 0.99, 0.28  # of int8 embeddings to fp32 ones; of the fp32 artifact's size
REVIEWS = "movieReview"  # the domain of training and test


@dataclass(frozen=True)
class Row:
    """One line of the table; shares in percent, `interval` is the half width at 95 %."""

    quant: str
    accuracy: float
    same: float
    drop: float
    interval: float
    megabytes: float
    passed: bool


def paired(quant: str, right: np.ndarray, answers: np.ndarray, labels: np.ndarray, size: float) -> Row:
    """Compare `answers` with PyTorch's, of which `right` says which are correct."""
    ours = answers == labels
    loss = right.astype(float) - ours
    drop, interval = 100 * loss.mean(), 196 * loss.std(ddof=1) / math.sqrt(len(loss))
    same = 100 * float(np.mean(right == ours))  # two classes: equally right is the same answer
    most, least = GATES[quant]
    passed = drop <= most + 1e-9 and same >= least
    return Row(quant, 100 * float(ours.mean()), same, float(drop), float(interval), size, bool(passed))


def run(artifact: Path, ids: list[list[int]], output: str) -> np.ndarray:
    """One output of the artifact, a row for each text."""
    rows = []
    with llmc.load(artifact, threads=1) as model:
        for text in ids:
            tokens = np.array([text], np.int64)
            rows.append(np.array(model(input_ids=tokens, attention_mask=np.ones_like(tokens))[output][0]))
    return np.stack(rows)


def bytes_of(artifact: Path) -> int:
    """Size of everything in the artifact."""
    return sum(file.stat().st_size for file in artifact.iterdir())


def options_of(quant: str, calib: str) -> dict[str, Any]:
    """What a row of the table is compiled with."""
    if quant == PARTS:
        return {"matmul": PARTS}
    if quant.endswith(ZEROS):
        return {**options_of(quant.removesuffix(ZEROS), calib), "zero_points": True}
    if quant == ROUNDED:
        return {"quant": "w4", "calib": calib}
    if quant.startswith(STATIC):
        return {"quant": STATIC, "calib": calib, "calib_method": quant.removeprefix(f"{STATIC}-")}
    return {"quant": quant}


def texts_of(domain: str) -> list[sentiment.Review]:
    """The test reviews, or all rated texts of another domain."""
    if domain == REVIEWS:
        return train_classifier.reviews()[1]
    rated = sentiment.read_texts(models.fetch("reviews").parent)[domain]
    *rest, test = sentiment.split(rated)
    return [review for part in (test, *rest) for review in part]


def judge(quants: list[str], count: int, folder: Path, calib: str, domain: str) -> list[Row]:
    """Compile the classifier with each quantisation and compare it with PyTorch."""
    from transformers import BertForSequenceClassification

    home = train_classifier.classifier()
    test = texts_of(domain)[:count]
    ids = sentiment.encode(sentiment.full_tokenizer(home), [text for text, _ in test])
    labels = np.array([label for _, label in test])
    torch_model = BertForSequenceClassification.from_pretrained(home).eval()
    with torch.no_grad():
        expected = [int(torch_model(torch.tensor([text])).logits.argmax()) for text in ids]
    right = np.array(expected) == labels
    print(f"PyTorch fp32: {100 * right.mean():.2f} % of {len(ids)} texts", flush=True)
    rows = []
    for quant in quants:
        artifact = folder / f"{quant}.llmc"
        llmc.compile(home, artifact, **options_of(quant, calib))
        answers = run(artifact, ids, "logits").argmax(1)
        row = paired(quant, right, answers, labels, bytes_of(artifact) / 1e6)
        rows.append(row if domain == REVIEWS else replace(row, passed=True))
        print(describe(rows[-1]), flush=True)
    return rows


def describe(row: Row) -> str:
    """One line."""
    gate = "" if row.passed else "   MISSES ITS GATE"
    return (
        f"{row.quant:<22} {row.accuracy:6.2f} %  same {row.same:6.2f} %  drop {row.drop:5.2f} +- {row.interval:.2f}"
        f"  {row.megabytes:6.1f} MB{gate}"
    )


def embeddings(folder: Path, count: int) -> bool:
    """Cosine of int8 sentence embeddings to fp32 ones, and the artifacts' sizes; whether both gates hold."""
    base = models.fetch("minilm")
    test = train_classifier.reviews()[1][:count]
    ids = sentiment.encode(sentiment.full_tokenizer(base), [text for text, _ in test])
    vectors, sizes = {}, {}
    for quant in ("none", "int8"):
        artifact = folder / f"minilm-{quant}.llmc"
        llmc.compile(base, artifact, quant=quant)
        with llmc.load(artifact) as model:
            output = next(
                iter(model(input_ids=np.array([ids[0]]), attention_mask=np.ones((1, len(ids[0])), int)))
            )
        vectors[quant], sizes[quant] = run(artifact, ids, output), bytes_of(artifact)
    a, b = (v.reshape(len(v), -1, v.shape[-1]).mean(1) for v in vectors.values())
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    share = sizes["int8"] / sizes["none"]
    print(f"embeddings   cosine mean {cosine.mean():.5f}, least {cosine.min():.5f}; size {share:.3f} of fp32")
    return bool(cosine.mean() >= COSINE and share <= SHARE)


def main() -> int:
    """Print the table; 1 if a gate is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = [quant for quant in GATES if quant != PARTS]
    parser.add_argument("quant", nargs="*", default=default, help=f"of {', '.join(GATES)}")
    parser.add_argument("--count", type=int, default=2000, help="test texts")
    parser.add_argument("--calib", default="auto", help="calibration data of int8-static and w4-calib")
    parser.add_argument("--on", default=REVIEWS, help=f"domain of the texts; default: {REVIEWS}")
    parser.add_argument("--json", type=Path, help="write the table there")
    arguments = parser.parse_args()
    if unknown := set(arguments.quant) - set(GATES):
        parser.error(f"no quantisation {sorted(unknown)[0]!r}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="llmc-accuracy-") as scratch:
        rows = judge(arguments.quant, arguments.count, Path(scratch), arguments.calib, arguments.on)
        embedded = "int8" not in arguments.quant or embeddings(Path(scratch), min(500, arguments.count))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if embedded and all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
