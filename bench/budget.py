"""What `llmc compile --max-drop`, `--max-size` and `--max-latency` find on the fine-tuned sentiment model.

    python bench/budget.py                     trains the model the first time (train_classifier.py)
    python bench/budget.py --only fragile      a column made fragile: is it found and kept in float, is the bound met?
    python bench/budget.py --only recipes      single recipes, and a budget of each one's own size and latency

Of the 2,000 test reviews 1,200 are the budget's data, 800 judge: no search sees them. Drop and same answers are beside
fp32, paired, with the 95 % half width; so is the divergence of the answers (Kullback and Leibler). "Beside the recipe"
is what its budget loses more, in points, and diverges more, paired too: what is within its half width is chance.
Seconds of runs are the cost model's, one text of 128 tokens on one thread. The time budget and "CPU s" are processor
time of the whole search, so that others on the machine do not count.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

import llmc
from llmc.bounds import Budget
from llmc.budget import compile_within
from llmc.evaluate import evaluate

JUDGED = 800
LAYER, COLUMN, FACTOR = 3, 7, 1000.0
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fp16": {"quant": "fp16"},
        "int8": {"quant": "int8"},
        "int8-static": {"quant": "int8-static", "calib": "auto"},
        "w8": {"quant": "w8"},
        "w4": {"quant": "w4"},
        "prune 0.3": {"prune": "0.3"},
        "share 256": {"share": "256"},
        "share 16": {"share": "16"},
    }
)


def data(folder: Path) -> tuple[Path, Path]:
    """The budget's data, and the rows that judge, as tables of text and label."""
    import train_classifier

    _, test = train_classifier.reviews()
    parts = {"data.tsv": test[JUDGED:], "judge.tsv": test[:JUDGED]}
    for name, rows in parts.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(["text", "label"])
            writer.writerows((" ".join(text.split()), label) for text, label in rows)
    return folder / "data.tsv", folder / "judge.tsv"


def made_fragile(model: Path, folder: Path) -> Path:
    """The same function, one column of a product 1,000 times as large as it was and what it reads as much smaller."""
    from transformers import BertForSequenceClassification

    found = BertForSequenceClassification.from_pretrained(model)
    attention = found.bert.encoder.layer[LAYER].attention
    with torch.no_grad():
        attention.self.value.weight[COLUMN] /= FACTOR
        attention.self.value.bias[COLUMN] /= FACTOR
        attention.output.dense.weight[:, COLUMN] *= FACTOR
    found.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (model / name).exists():
            shutil.copyfile(model / name, folder / name)
    return folder


def answers(artifact: Path, rows: Path) -> np.ndarray:
    """Logarithms of probabilities, f64 [rows, classes]."""
    from llmc.predictors import of_artifact

    with rows.open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    with llmc.load(artifact, threads=1) as model:
        predict = of_artifact(model)
        logits = np.concatenate([predict(texts[at : at + 16]) for at in range(0, len(texts), 16)])
    exact = logits.astype(np.float64)
    top = exact.max(1, keepdims=True)
    return exact - top - np.log(np.exp(exact - top).sum(1, keepdims=True))


def divergences(artifact: Path, dense: Path, rows: Path) -> np.ndarray:
    """Kullback-Leibler divergence of each answer from fp32's."""
    before, after = answers(dense, rows), answers(artifact, rows)
    return np.asarray((np.exp(before) * (before - after)).sum(1))


def middle(each: np.ndarray) -> tuple[float, float]:
    """Mean, and the half width of its 95 % interval."""
    return float(each.mean()), float(1.96 * each.std(ddof=1) / len(each) ** 0.5)


def divergence(artifact: Path, dense: Path, rows: Path) -> dict[str, float]:
    """Mean divergence of the answers, and the half width of its 95 % interval."""
    return dict(zip(("divergence", "spread"), middle(divergences(artifact, dense, rows)), strict=True))


def beside(own: Path, alone: Path, dense: Path, rows: Path) -> str:
    """What a budget's artifact loses more than a recipe's on the same rows, in points, and diverges more."""
    with rows.open(newline="", encoding="utf-8") as file:
        labels = np.array([int(row["label"]) for row in csv.DictReader(file, delimiter="\t")])
    right = [(answers(path, rows).argmax(1) == labels).astype(float) for path in (alone, own)]
    lost, half = middle(right[0] - right[1])
    more, spread = middle(divergences(own, dense, rows) - divergences(alone, dense, rows))
    return f"{100 * lost:+.2f} +- {100 * half:.2f}; {1e3 * more:+.2f} +- {1e3 * spread:.2f}"


def judged(artifact: Path, dense: Path, rows: Path) -> dict[str, Any]:
    """Drop, half width and same answers, in percent, divergence, and megabytes."""
    found = evaluate(artifact, rows, dense, threads=1)
    assert found.difference is not None
    assert found.interval is not None
    assert found.agreement is not None
    low, high = found.interval
    size = sum(file.stat().st_size for file in artifact.iterdir()) / 1e6
    drop = {"drop": -100 * found.difference + 0.0, "half": 50 * (high - low)}
    drop |= divergence(artifact, dense, rows)
    return {**drop, "same": 100 * found.agreement, "megabytes": size}


def line(name: str, row: Mapping[str, Any]) -> str:
    """A row in Markdown."""
    cells = [name, f"{row['megabytes']:.2f}", f"{row['milliseconds']:.2f}"]
    cells += [f"{row['drop']:+.2f} +- {row['half']:.2f}", f"{row['same']:.2f} %"]
    cells += [f"{1e3 * row['divergence']:.2f} +- {1e3 * row['spread']:.2f}"]
    cells += [row.get("beside", ""), row["layers"]]
    return f"| {' | '.join(cells)} |"


def within(model: Path, output: Path, rows: Path, options: argparse.Namespace, **bounds: Any) -> Any:
    """A search; its report."""
    budget = Budget(**bounds, time=options.time_budget, best_effort=True)
    begun, cpu = time.perf_counter(), time.process_time()
    report = compile_within(model, output, rows, budget, clock=time.process_time)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    held = report.held
    print(f"  held back: {100 * held.mean:+.2f} +- {100 * held.half:.2f} % lost on {held.rows} rows")
    print(
        f"  {wall:.0f} s, {cpu:.0f} CPU s, {report.skipped} measurements left out, not met: {report.unmet}",
        flush=True,
    )
    return report


def counts(report: Any) -> str:
    """How many layers have what."""
    names = [layer.choice for layer in report.layers]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def row_of(report: Any, artifact: Path, dense: Path, rows: Path) -> dict[str, Any]:
    """A result as the table has it."""
    found = judged(artifact, dense, rows)
    return {**found, "milliseconds": 1e3 * report.seconds, "layers": counts(report)}


def fragile(model: Path, folder: Path, options: argparse.Namespace) -> None:
    """The search on the model with the fragile column, and what a single recipe does to it."""
    rows, judge = data(folder)
    broken = made_fragile(model, folder / "fragile")
    dense, output, plain = (
        folder / f"{name}.llmc" for name in ("fragile-dense", "fragile-budget", "fragile-int8")
    )
    llmc.compile(broken, dense)
    llmc.compile(broken, plain, quant="int8")
    report = within(broken, output, rows, options, max_drop=0.005)
    place = f"layer.{LAYER}.attention.output.dense"
    for layer in report.layers:
        if layer.choice in ("fp32", "fp16") or place in layer.layer:
            print(f"  {layer.layer}: {layer.choice} {layer.why}", flush=True)
    print(line("int8 alone", {**judged(plain, dense, judge), "milliseconds": 0.0, "layers": ""}))
    print(line("--max-drop 0.5%", row_of(report, output, dense, judge)), flush=True)


def cost_of(model: Path, recipe: Mapping[str, Any]) -> float:
    """Milliseconds by the cost model."""
    from llmc import kept_imports
    from llmc.costs import Costs, variant_of
    from llmc.driver import compile_graph
    from llmc.optimise import passed
    from llmc.options import Order

    order = Order("x", None, {"padding": "zero", **recipe})
    (graph,) = passed(
        kept_imports.load(model, task="auto", ignore_unused=False), order, compile_graph
    ).values()
    variant = variant_of(order.target)
    return 1e3 * Costs(order.target, {"batch": 1, "seq": 128}, variant).of(graph).seconds


def recipes(model: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each recipe, and the budget of its size and latency."""
    rows, judge = data(folder)
    dense = folder / "dense.llmc"
    llmc.compile(model, dense)
    print(
        "| recipe | MB | ms | drop | same | 1000 x divergence | beside the recipe: lost; diverges | layers |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    output = folder / "drop.llmc"
    report = within(model, output, rows, options, max_drop=0.005)
    own = row_of(report, output, dense, judge)
    print(line("--max-drop 0.5%", own), flush=True)
    found: list[dict[str, Any]] = [{"recipe": "--max-drop 0.5%", "budget": own}]
    for name in options.recipes:
        artifact, output = folder / f"{name}.llmc", folder / f"{name}-budget.llmc"
        llmc.compile(model, artifact, **RECIPES[name])
        alone = judged(artifact, dense, judge)
        alone |= {"milliseconds": cost_of(model, RECIPES[name]), "layers": "all"}
        print(line(name, alone), flush=True)
        bounds = {"max_size": alone["megabytes"] * 1e6, "max_latency": alone["milliseconds"] / 1e3}
        report = within(model, output, rows, options, **bounds)
        own = row_of(report, output, dense, judge) | {"beside": beside(output, artifact, dense, judge)}
        print(line(f"a budget of {name}", own), flush=True)
        found.append({"recipe": name, "alone": alone, "budget": own})
    return found


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a classifier's folder  [default: the fine-tuned MiniLM]")
    parser.add_argument("--only", choices=["fragile", "recipes"])
    parser.add_argument("--recipes", nargs="*", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--time-budget", type=float, default=300.0)
    parser.add_argument("--json", type=Path, help="write the rows of the recipes there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model is None:
        import train_classifier

        options.model = train_classifier.classifier()
    with tempfile.TemporaryDirectory(prefix="llmc-") as place:
        if options.only != "recipes":
            fragile(options.model, Path(place), options)
        if options.only != "fragile":
            found = recipes(options.model, Path(place), options)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
