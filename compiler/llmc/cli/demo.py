"""`llmc demo`: compile, check, run and measure the model that ships with llmc, beside PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from llmc.cli.output import (
    Progress,
    json_option,
    print_json,
    print_table,
    require_folder,
    size_text,
    time_text,
)

_EPILOG = """\b
Examples:
  llmc demo
  llmc demo --keep here        leaves the artifact in here/demo.llmc
  llmc demo --threads 2

\b
No network is used and, without --keep, nothing stays behind.
"""


@click.command("demo", epilog=_EPILOG, short_help="See llmc work on a model that ships with it.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="For llmc and PyTorch."
)
@click.option(
    "--duration", type=click.FloatRange(min=0.1), default=1.5, show_default=True, help="Seconds a shape."
)
@click.option(
    "--keep", metavar="DIR", type=click.Path(path_type=Path), help="Keep the artifact in this folder."
)
@json_option
def command(threads: int, duration: float, keep: Path | None, as_json: bool) -> None:
    """Compile a small sentiment classifier, check it against PyTorch, run it and race it."""
    from llmc import demo

    folder = require_folder(demo.model_folder(), "the demo model")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    where: AbstractContextManager[Any] = (
        nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="llmc-demo-")
    )
    with where as place:
        result = _run(folder, Path(place) / "demo.llmc", threads, duration, quiet=as_json)
    if as_json:
        print_json(result)
        return
    kept = keep / "demo.llmc" if keep else Path("demo.llmc")
    make = "" if keep else f"  llmc compile {folder} -o {kept}\n"
    click.echo(_NEXT.format(make=make, kept=kept))


_NEXT = """
What to type next:
  llmc compile ./your-model -o your-model.llmc      a fine-tuned Hugging Face folder of your own
{make}\
  llmc run {kept} --text "an hour I will never get back"
  llmc bench {kept} --seq 128 --profile
  llmc --help"""


def _run(folder: Path, artifact: Path, threads: int, duration: float, quiet: bool) -> dict[str, Any]:
    """All steps; prints each as it ends unless `quiet`, and returns the facts."""
    import llmc
    from llmc import demo
    from llmc.cli.compile import run_compile

    result: dict[str, Any] = {"model": _model_facts(folder)}
    steps = Steps(quiet)
    steps.title("1. compile", f"{folder}: {size_text(result['model']['bytes'])} of weights")
    report = run_compile(folder, artifact, name="demo")
    result["compile"] = report.to_dict()
    steps.line(f"compiled in {sum(dict(report.seconds).values()):.1f} s for this machine")

    with llmc.load(artifact, threads=threads) as model:
        reference = demo.load_torch(folder)
        steps.title("2. check", "the same sentences through PyTorch")
        result["answers"], result["difference"] = _answers(model, reference)
        steps.line(f"largest difference of the logits: {result['difference']:.1e}")
        steps.title("3. run", "")
        steps.answers(result["answers"])
        steps.title(
            "4. race", f"PyTorch eager and llmc in turns, fp32, {threads} thread{'s' * (threads > 1)} each"
        )
        with Progress("race") as progress:
            result["race"] = _race(model, reference, threads, duration, progress)
        steps.race(result["race"])
    result["sizes"] = {f.name: f.stat().st_size for f in sorted(artifact.iterdir())}
    steps.title("5. what was written", "needs no Python, no PyTorch, no llmc to run")
    steps.table(["file", ">size"], [(name, size_text(count)) for name, count in result["sizes"].items()])
    return result


def _model_facts(folder: Path) -> dict[str, Any]:
    return {"path": str(folder), "bytes": (folder / "model.safetensors").stat().st_size}


def _answers(model: Any, reference: Any) -> tuple[list[dict[str, Any]], float]:
    """The sentences' labels and probabilities, and the largest difference of the logits to PyTorch's."""
    import numpy as np

    from llmc import demo
    from llmc.cli import answers

    encoded = answers.encode(model, list(demo.SENTENCES), [])
    outputs = model(**encoded.arrays)
    expected = demo.torch_call(reference, encoded.arrays)()
    return answers.describe(model, encoded, outputs), float(np.abs(outputs["logits"] - expected).max())


def _race(
    model: Any, reference: Any, threads: int, duration: float, progress: Progress
) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from llmc import demo
    from llmc.demo.race import race, ratio

    torch.set_num_threads(threads)
    rows = []
    for i, (batch, seq) in enumerate(demo.SHAPES):
        progress(f"batch {batch}, {seq} tokens", i / len(demo.SHAPES))
        arrays = demo.sample(reference.config.vocab_size, batch, seq)
        calls: dict[str, Callable[[], object]] = {
            "pytorch": demo.torch_call(reference, arrays),
            "llmc": partial(model, **arrays),
        }
        times = race(calls, duration, threads)
        value, low, high = ratio(times["pytorch"], times["llmc"])
        medians = {name: float(np.median(t)) for name, t in times.items()}
        rows.append(
            {"batch": batch, "seq": seq, "seconds": medians, "speedup": value, "interval": [low, high]}
        )
    return rows


class Steps:
    """The demo's page, step by step; prints nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        if not self.quiet:
            click.echo(f"   {text}")

    def title(self, title: str, text: str) -> None:
        if not self.quiet:
            click.echo(f"\n{click.style(title, bold=True)}" + (f"  {text}" if text else ""))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if not self.quiet:
            print_table("", columns, rows)

    def answers(self, found: list[dict[str, Any]]) -> None:
        for answer in found:
            label = answer["label"]
            self.line(f"{answer['probabilities'][label]:6.1%} {label:<9} {answer['text']}")

    def race(self, rows: list[dict[str, Any]]) -> None:
        cells = [
            (
                f"{row['batch']} x {row['seq']}",
                time_text(row["seconds"]["pytorch"]),
                time_text(row["seconds"]["llmc"]),
                f"{row['speedup']:.2f}x",
                f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}",
            )
            for row in rows
        ]
        self.table(["batch x tokens", ">PyTorch", ">llmc", ">faster", ">95 % interval"], cells)
