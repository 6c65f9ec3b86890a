"""Measure what kernels take, for `compiler/llmc/costs.json`, and say how near the model of them comes.

    python bench/costs.py                  measures, prints the errors, writes nothing
    python bench/costs.py --write          and writes costs.json; figures of other instruction sets stay
    python bench/costs.py --write --variants avx512 avx512amx --candidates fp32 int8 bf16a16
                                           on another machine: what is new, on the scale that fp32 products have there
    python bench/costs.py --check FOLDER   a whole model by each recipe: what the model of costs says, and what it takes
    python bench/costs.py --slower fashion [--cpu avx2]   for one instruction set alone: int8 without the products that
                                           it would slow down, and with them, beside fp32

One thread. Encoders of three widths with random weights, every candidate of `llmc compile --max-drop` on all layers,
at 1, 16, 64 and 128 tokens and 4 x 128; networks for images in fp32 and int8 at batch 1 and 4. Each kernel's time is
the least of several profiles. Every second sample gives the figures, by least squares of the relative error with no
figure below 0; the errors that are told are of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llmc
from llmc.candidates import CANDIDATES, FLOAT, Candidate, candidates, layers, pipeline_of
from llmc.compiler.module import Module
from llmc.costs import FILE, OTHERS, features, fitted, kind_of
from llmc.kernels import Kernels
from llmc.options import Order
from llmc.targets.host import find_target

SHAPES = ((1, 1), (1, 16), (1, 64), (1, 128), (4, 128))
BATCHES = ((1, 1), (4, 1))  # of images
WIDTHS = (128, 384, 768)
IMAGES = ("fashion", "mobilenetv2", "resnet50")  # bench/convolutions.py
SEEN = (FLOAT, "int8")  # what convolutions come in
MORE = (  # what a budget does not choose, and costs are told of
    Candidate("bf16", "bfloat16"),
    Candidate("bf16a16", "bfloat16,bf16-products"),
    Candidate("prune 4x1", 'prune{pattern="4x1"}'),
    Candidate("prune 16x1", 'prune{pattern="16x1"}'),
    Candidate("prune 2:4", 'prune{pattern="2:4"}'),
    Candidate("prune 1:4", 'prune{pattern="1:4"}'),
    Candidate("prune 16x4 int8", 'prune{pattern="16x4",whole=true},quantize', "qfuse,cse"),
    Candidate("factorize", "factorize{energy=0.5}"),
)
PROFILES = 6


def folder_of(width: int, place: Path) -> Path:
    """An encoder of two layers, saved by transformers."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(width)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
    )
    folder = place / f"bert-{width}"
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


Sample = tuple[str, tuple[float, ...], float, tuple[int, int]]


def network_of(name: str) -> Any:
    """A network for images with random weights, imported."""
    from convolutions import MODELS

    from llmc.compiler.frontends.imported import Imported
    from llmc.compiler.frontends.module import graph

    torch.manual_seed(0)
    model, shape = MODELS[name]()
    made = graph(model.eval(), {"pixel_values": torch.zeros(1, *shape)}, ("logits",), 64)
    return Imported(made, name, "module", "", "", (), None, None)


def measured(
    imported: Any,
    place: Path,
    shapes: tuple[tuple[int, int], ...],
    variants: list[str],
    tries: int,
    names: tuple[str, ...],
) -> Iterator[tuple[str, Sample]]:
    """Instruction set, and of each kernel call its kind, features and least time."""
    from llmc.driver import compile_graph
    from llmc.optimise import before_quantising

    order = Order("x", None, {"target": "x86", "padding": "zero"})
    graphs, finished = before_quantising(imported, order, compile_graph)
    graph = next(iter(graphs.values()))
    every = layers(graph)
    for number, name in enumerate(names):
        own = {
            layer: c
            for c in (*candidates(order.backend), *MORE)
            for layer in every
            if c.name == name and c.kind == layer.kind
        }
        changed = finished(pipeline_of(own, every).run(graph)[0])
        artifact = place / f"{imported.name}-{number}.llmc"
        llmc.compile_graph(changed, artifact, target="x86", only_passes="")
        calls = Kernels.of(Module.of(changed), order.target).every
        for variant in variants:
            with llmc.load(artifact, threads=1) as chosen:
                known = [v.name for v in chosen.manifest.variants]
            if variant not in known:
                continue
            with llmc.load(artifact, threads=1, variant=variant) as model:
                for batch, seq in shapes:
                    sizes = {"batch": batch, "seq": seq}
                    given = {name: size for name, size in sizes.items() if name in model.dims}
                    profiles = [
                        model.benchmark(**given, duration=0.1, profile=True).steps for _ in range(tries)
                    ]
                    for at, call in enumerate(calls):
                        least = min(steps[at].seconds for steps in profiles)
                        yield variant, (kind_of(call), features(call, sizes), least, (batch, seq))
        print(f"{imported.name} {name}: {len(calls)} calls", flush=True)


def figures_of(samples: list[Sample]) -> list[float]:
    """Those that fit best."""
    return fitted([(f, t) for _, f, t, _ in samples])


def error(figures: list[float], samples: list[Sample]) -> np.ndarray:
    """Relative, of each."""
    return np.array([np.dot(figures, f) / t - 1 for _, f, t, _ in samples])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--variants", nargs="+", default=["avx2", "avx2vnni", "avx512", "avx512vnni"])
    parser.add_argument("--widths", nargs="*", type=int, default=list(WIDTHS))
    parser.add_argument("--images", nargs="*", choices=IMAGES, default=list(IMAGES))
    names = list(dict.fromkeys(c.name for c in (*CANDIDATES, *MORE)))
    told = "measure these alone; figures of kinds that are known stay"
    parser.add_argument("--candidates", nargs="+", choices=[FLOAT, *names], help=told)
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    parser.add_argument("--slower", choices=IMAGES)
    parser.add_argument("--cpu", default="avx2")
    parser.add_argument("--tries", type=int, default=PROFILES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check is not None:
        check(options.check)
        return 0
    if options.slower is not None:
        slower(options.slower, options.cpu)
        return 0
    found: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="llmc-costs-") as scratch:
        for imported, shapes, tried in subjects(options, Path(scratch)):
            for variant, sample in measured(
                imported, Path(scratch), shapes, options.variants, options.tries, tried
            ):
                found[variant][sample[0]].append(sample)
    kept: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"seconds": {}}
    for variant, kinds in found.items():
        known = kept["seconds"].get(variant, {}) if options.candidates else {}
        if FLOAT in (options.candidates or ()):
            first = first_of(variant)  # which fp32 models run by
            kinds = at_scale(variant, kinds, found[first]["linear"], kept["seconds"][first])
        kept["seconds"][variant] = {**table(variant, kinds), **known}
    for cpu in reversed(find_target("x86").cpus):  # its base's code serves it where it has none of its own
        base = kept["seconds"].get(cpu.base.name) if cpu.base else None
        if base and cpu.name in kept["seconds"]:
            own = kept["seconds"][cpu.name].items()
            kept["seconds"][cpu.name] = {**base, **{k: v for k, v in own if k.split()[0] in cpu.own}}
    if options.write:
        FILE.write_text(text_of(kept["seconds"]))
    return 0


def first_of(variant: str) -> str:
    """The instruction set that this one's code is built on."""
    (cpu,) = (c for c in find_target("x86").cpus if c.name == variant)
    return first_of(cpu.base.name) if cpu.base else cpu.name


def at_scale(
    variant: str, kinds: Mapping[str, list[Sample]], floats: list[Sample], known: Mapping[str, list[float]]
) -> dict[str, list[Sample]]:
    """The samples of a machine as if its fp32 products took what those take that the figures are of."""
    factor = float(np.median([np.dot(known["linear"], f) / t for _, f, t, _ in floats]))
    print(f"{variant}: fp32 products take {1 / factor:.2f} of what the figures say")
    return {
        kind: [(name, f, t * factor, shape) for name, f, t, shape in samples]
        for kind, samples in kinds.items()
    }


def subjects(options: Any, place: Path) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Models, the shapes they are run at, and the candidates."""
    from llmc import kept_imports

    names = tuple(options.candidates or (FLOAT, *dict.fromkeys(c.name for c in (*CANDIDATES, *MORE))))
    for width in options.widths:
        yield kept_imports.load(folder_of(width, place)), SHAPES, names
    for name in options.images:
        yield network_of(name), BATCHES, tuple(n for n in SEEN if n in names)


RECIPES: Mapping[str, Any] = {
    "fp32": {},
    "fp16": {"quant": "fp16"},
    "int8": {"quant": "int8"},
    "w8": {"quant": "w8"},
    "w4": {"quant": "w4"},
    "prune 0.5": {"prune": "0.5"},
    "share 256": {"share": "256"},
}


def check(folder: Path) -> None:
    """A text of 128 tokens on one thread: foretold, and the least processor time of 60 runs."""
    from llmc import kept_imports
    from llmc.costs import Costs, variant_of
    from llmc.driver import compile_graph
    from llmc.optimise import passed

    imported = kept_imports.load(folder, task="auto")
    ids = np.random.default_rng(0).integers(1000, 20000, (1, 128))
    print("| recipe | foretold, ms | takes, ms | foretold / takes |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="llmc-costs-") as scratch:
        for name, recipe in RECIPES.items():
            order = Order("x", None, {"padding": "zero", **recipe})
            (graph,) = passed(imported, order, compile_graph).values()
            costs = Costs(order.target, {"batch": 1, "seq": 128}, variant_of(order.target))
            foretold = 1e3 * costs.of(graph).seconds
            artifact = Path(scratch) / f"{name}.llmc"
            llmc.compile(folder, artifact, **recipe)
            with llmc.load(artifact, threads=1) as model:
                times = []
                for _ in range(60):
                    begun = time.process_time()
                    model.run({"input_ids": ids})
                    times.append(1e3 * (time.process_time() - begun))
            print(f"| {name} | {foretold:.2f} | {min(times):.2f} | {foretold / min(times):.2f} |", flush=True)


def slower(name: str, cpu: str, rounds: int = 15) -> None:
    """Medians of interleaved runs, batch 1 on one thread."""
    import re
    from dataclasses import replace

    x86 = find_target("x86")
    only = replace(x86, name="alone", cpus=tuple(c for c in x86.cpus if c.name == cpu))
    llmc.load_extension(llmc.Extension("alone", targets=(only,)))
    imported, target = network_of(name), "alone"
    with tempfile.TemporaryDirectory(prefix="llmc-costs-") as scratch:
        paths = [Path(scratch) / f"{way}.llmc" for way in ("fp32", "int8", "all")]
        llmc.compile_graph(imported.graph, paths[0], target=target)
        report = llmc.compile_graph(imported.graph, paths[1], target=target, quant="int8")
        everything = re.sub(r"quantize\{slower=\[[^]]*\]\}", "quantize", report.pipeline)
        llmc.compile_graph(imported.graph, paths[2], target=target, only_passes=everything)
        left = [gain["place"] for gain in (report.gains or {})["left"]]
        print(f"{name}, {cpu}: {len(left)} left float: {', '.join(left)}")
        models = [llmc.load(path, threads=1) for path in paths]
        times = [[m.benchmark(batch=1, duration=0.2).latency.p50 for m in models] for _ in range(rounds)]
    ratios = np.array(times) / np.array(times)[:, :1]
    for at, way in enumerate(("fp32", "int8", "int8, all of it")):
        low, middle, high = np.quantile(ratios[:, at], (0.1, 0.5, 0.9))
        print(
            f"{way}: {1e6 * np.median(np.array(times)[:, at]):.1f} us, {middle:.2f} ({low:.2f}-{high:.2f}) of fp32"
        )


def text_of(tables: Mapping[str, Mapping[str, list[float]]]) -> str:
    """JSON with a kind of kernel on each line."""
    parts = []
    for variant, kinds in tables.items():
        lines = ",\n".join(f"   {json.dumps(kind)}: {json.dumps(kinds[kind])}" for kind in sorted(kinds))
        parts.append(f'  "{variant}": {{\n{lines}\n  }}')
    return '{\n "seconds": {\n' + ",\n".join(parts) + "\n }\n}\n"


def table(variant: str, kinds: Mapping[str, list[Sample]]) -> dict[str, list[float]]:
    """Figures of each kind, and their errors on shapes that they were not made from."""
    made = {}
    print(f"\n{variant}\n| kind | calls | median error | 90 % of errors below |\n|---|---|---|---|")
    everything, parts = [], []
    for kind, samples in sorted(kinds.items()):
        half = figures_of(samples[::2])
        errors = np.abs(error(half, samples[1::2] or samples))
        parts.append((sum(t for _, _, t, _ in samples), errors))
        print(f"| {kind} | {len(samples)} | {np.median(errors):.0%} | {np.quantile(errors, 0.9):.0%} |")
        made[kind] = figures_of(samples)
        everything += samples
    made[OTHERS] = figures_of(everything)
    return made


if __name__ == "__main__":
    sys.exit(main())
