"""Race llmc against what a user would pick instead: ONNX Runtime, OpenVINO, PyTorch eager and torch.compile.

    python bench/peers.py --quick                       minutes; --prepare first makes files and races nothing
    python bench/peers.py --json all.json --plot all.png --markdown all.md
    python bench/peers.py --models bert-base --shapes 1x128,8x128 --threads 1,2 --precision fp32,int8
    python bench/peers.py --isa avx2 --shapes 1x128     everybody held to AVX2
    python bench/peers.py --spin --shapes 1x128         with a process that spins on one core
    python bench/peers.py --from all.json spin.json --plot all.png

All live in one process, are checked against PyTorch's outputs first, and run in turns with loops that measure what
the machine can do at most; ratios are of medians, with 95 % bootstrap intervals. Below 1 llmc is the faster.
Needs the extra `bench` (pip install -e ".[bench]"). docs/benchmarks.md says how it is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import isa
from models import cache_folder

MODELS = "minilm,bert-base,distilbert,tiny,vit-base"
SHAPES = ",".join(f"{batch}x{seq}" for batch in (1, 8, 32) for seq in (8, 32, 128, 384, 512))
QUICK_MODELS, QUICK_SHAPES = "minilm,tiny", "1x8,1x128,8x32"
PRECISIONS = ("fp32", "int8")


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """`1x128,8x64` as pairs of batch and sequence."""
    pairs = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape.strip()) for shape in text.split(",")]
    if None in pairs:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1x128,8x64")
    return [(int(pair[1]), int(pair[2])) for pair in pairs if pair]


def parse_threads(text: str) -> list[int]:
    """`1,2` as numbers."""
    if not re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1,2")
    return [int(count) for count in text.split(",")]


def parse_precisions(text: str) -> list[str]:
    """`fp32,int8`, in any order."""
    names = text.split(",")
    if unknown := set(names) - set(PRECISIONS):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is none of {', '.join(PRECISIONS)}")
    return names


def names(text: str) -> list[str]:
    """`a,b` as a list."""
    return [name for name in text.split(",") if name]


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; --quick changes defaults only."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=names, help=f"of {MODELS} (default: all), or Hugging Face folders")
    add(
        "--shapes", type=parse_shapes, help=f"batch x sequence (default: {SHAPES}); images use the batch only"
    )
    add("--threads", type=parse_threads, default=[1, 2], help="of every racer (default: 1,2)")
    add("--precision", type=parse_precisions, default=list(PRECISIONS), help="default: fp32,int8")
    add("--seconds", type=float, help="of one round of a shape (default: 3)")
    add("--rounds", type=int, help="races of each shape (default: 3)")
    add("--limit", type=float, default=180.0, help="skip a shape foreseen to race longer than these seconds")
    add("--quick", action="store_true", help=f"{QUICK_MODELS} at {QUICK_SHAPES}, 1 round of 1 s")
    add("--skip", type=names, default=[], help="peers to leave out, such as torch.compile,onnxruntime")
    add("--static", action="store_true", help="llmc's int8-static too")
    add("--isa", choices=("all", "avx2"), default="all", help="instructions that everybody may use")
    add("--spin", action="store_true", help="race on disturbed cores instead")
    add("--prepare", action="store_true", help="make all files and check outputs, but race nothing")
    add("--cache", type=Path, default=cache_folder() / "peers", help="where files are kept")
    add("--from", type=Path, dest="sources", nargs="+", help="race nothing: join results written by --json")
    for name, what in (("json", "the result"), ("plot", "a picture"), ("markdown", "the README's table")):
        add(f"--{name}", type=Path, metavar="FILE", help=f"write {what} there")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.models = options.models or names(QUICK_MODELS if quick else MODELS)
    options.shapes = options.shapes or parse_shapes(QUICK_SHAPES if quick else SHAPES)
    options.seconds = (1.0 if quick else 3.0) if options.seconds is None else options.seconds
    options.rounds = (1 if quick else 3) if options.rounds is None else options.rounds
    if "llmc" in options.skip:
        parser.error("--skip leaves out peers; without llmc there is nothing to compare")
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    for path in (options.json, options.plot, options.markdown):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"there is no folder for {path}")
    return options


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Session:
    """What a run of this program has found so far.

    Attributes:
        result: as --json writes it.
        failed: racers that disagreed, and models that llmc could not compile.
    """

    def __init__(self, options: argparse.Namespace, held: str) -> None:
        from contest import Budget
        from peaks import Peaks
        from stock import library_versions

        self.options = options
        self.peaks = Peaks(options.cache, options.isa)
        self.budget = Budget(options.seconds, options.rounds, options.limit)
        self.failed = 0
        self.result: dict[str, Any] = {
            "machine": isa.machine(),
            "isa": options.isa,
            "held": held,
            "versions": dict(library_versions()),
            "options": {name: getattr(options, name) for name in ("seconds", "rounds", "limit")},
            "rows": [],
            "absent": {},
            "spin": [],
        }

    def run(self) -> None:
        """Every model, precision and number of threads."""
        from stock import Stock
        from subjects import find

        from llmc.errors import LlmcError

        for name in self.options.models:
            stock = Stock(self.options.cache, find(name, self.options.cache), say)
            for precision in self.options.precision:
                if self.options.spin:
                    self.spin(stock, precision)
                    continue
                for threads in self.options.threads:
                    try:
                        self.group(stock, precision, threads)
                    except LlmcError as error:  # the others' races still mean something
                        self.failed += 1
                        self.result["absent"][f"{name}, {precision}, llmc"] = str(error).replace("\n", " ")
                        say(f"absent: {name}, {precision}, llmc: {error}")
                    gc.collect()

    def group(self, stock: Any, precision: str, threads: int) -> None:
        """All shapes of one model, precision and number of threads."""
        from contest import of_parts
        from racers import PARTS, Setting, pytorch

        setting = Setting(precision, threads, self.options.isa)
        racers = self.load(stock, setting)
        reference = pytorch(stock, Setting("fp32", threads, self.options.isa))
        for batch, seq in stock.subject.shapes(self.options.shapes):
            place = {"model": stock.subject.name, "precision": precision, "threads": threads}
            place |= {"batch": batch, "seq": seq}
            row = self.row(stock, setting, racers, reference, batch, seq)
            self.result["rows"].append(place | row)
            if parts := of_parts(row, PARTS):
                own = {"precision": f"{precision} int8x3", "variant": racers[PARTS].variant}
                self.result["rows"].append(place | parts | own)
            say(f"{' '.join(map(str, place.values()))}: {row.get('skipped') or summary(row)}")
            self.save()

    def load(self, stock: Any, setting: Any) -> dict[str, Any]:
        """Racers that load, llmc's last; what does not is named with its reason."""
        from contest import ONE
        from racers import LOADERS, Setting

        racers = {}
        for name, loader in LOADERS[setting.precision].items():
            if name in self.options.skip or self.unasked(name):
                continue
            loaded = self.attempt(stock, setting, name, partial(loader, stock, setting))
            if loaded is not None:
                racers[name] = loaded
        if setting.threads > 1 and "llmc" in racers:
            one = Setting(setting.precision, 1, setting.isa)
            racers[f"llmc{ONE}"] = LOADERS[setting.precision]["llmc"](stock, one)
        return racers

    def unasked(self, name: str) -> bool:
        """Whether a racer of llmc's own is not to race."""
        from racers import PARTS

        tiles = self.options.isa == "all" and "amx" in self.peaks.names
        return {"llmc-static": not self.options.static, PARTS: not tiles}.get(name, False)

    def attempt(self, stock: Any, setting: Any, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, or None: whatever a peer cannot do, the others race. llmc must not fail."""
        try:
            return make()
        except Exception as error:
            if name.startswith("llmc"):
                raise
            place = f"{stock.subject.name}, {setting.precision}, {setting.threads} threads, {name}"
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
            self.result["absent"][place] = reason
            say(f"absent: {place}: {reason}")
            return None

    def row(
        self, stock: Any, setting: Any, racers: dict[str, Any], reference: Any, batch: int, seq: int
    ) -> dict[str, Any]:
        """What one race found, or why there was none."""
        from contest import agree, measure

        from llmc.errors import LlmcError

        flops = stock.subject.flops(batch, seq)
        foreseen = self.foreseen(flops, setting.threads, len(racers))
        if foreseen > self.budget.limit and not self.options.prepare:
            return {"skipped": f"a race would take {foreseen:.0f} s, the limit is {self.budget.limit:.0f}"}
        arrays = stock.subject.sample(batch, seq)
        try:
            bound = {n: self.attempt(stock, setting, n, partial(r, arrays)) for n, r in racers.items()}
            calls = {name: call for name, call in bound.items() if call is not None}
            expected = reference(arrays)()
            if self.options.prepare:
                apart, refused = agree(calls, expected, setting.precision)
                return {"skipped": "prepared", "apart": apart, "refused": refused}
            row = measure(calls, expected, self.peaks, setting, self.budget, flops)
        except LlmcError as error:
            self.failed += 1
            return {"skipped": str(error).replace("\n", " ")}
        self.failed += len(row["refused"])
        variant = getattr(racers["llmc"], "variant", "")
        return row | {"variant": variant, "loop": self.peaks.of(setting.precision, variant)}

    def foreseen(self, flops: float, threads: int, racers: int) -> float:
        """Seconds of a race, by the machine's peak."""
        from contest import LOWEST_SHARE

        loop = self.peaks.of("fp32")
        assert loop is not None, "every x86-64 that llmc runs on has fma"
        rate = self.peaks.work(loop, 1) / self.peaks.run(loop, 1) * threads * LOWEST_SHARE
        return self.budget.foreseen(flops / rate, racers)

    def spin(self, stock: Any, precision: str) -> None:
        """Each shape on disturbed cores, on the largest number of threads."""
        from spin import calls_of, disturb

        threads = max(self.options.threads)
        for batch, seq in stock.subject.shapes(self.options.shapes):
            calls = calls_of(stock, self.options.isa, precision, threads, (batch, seq))
            place = {"model": stock.subject.name, "precision": precision, "threads": threads}
            self.result["spin"].append(place | {"batch": batch, "seq": seq} | disturb(calls, self.budget))
            self.save()

    def save(self) -> None:
        """The result so far: a run that is interrupted keeps what it has."""
        if self.options.json:
            self.options.json.write_text(json.dumps(self.result, indent=1))


def summary(row: dict[str, Any]) -> str:
    """Where llmc is."""
    if "best" not in row:
        return f"{row['turns']} turns"
    return f"llmc / {row['best']} {row['llmc_over'][row['best']][0]:.2f}, {row['turns']} turns"


def write(result: dict[str, Any], options: argparse.Namespace) -> None:
    """The tables, and the files asked for."""
    from tables import markdown, show

    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(result))
    if options.plot:
        from plot import draw

        draw(result, options.plot)
    show(result)


def main() -> int:
    """Race, print, write; 1 if racers disagreed or a mistake was made."""
    from results import join, read_result

    options = read_options()
    if options.sources is not None:
        write(join([read_result(path) for path in options.sources]), options)
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options.cache = options.cache.resolve()
    options.cache.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(options.cache / f"inductor-{options.isa}"))
    isa.start_again(options.isa)
    session = Session(options, isa.hide(options.isa, options.cache))
    session.run()
    write(session.result, options)
    return 1 if session.failed else 0


if __name__ == "__main__":
    from llmc.errors import LlmcError

    try:
        sys.exit(main())
    except LlmcError as mistake:
        sys.exit(f"error: {mistake}")
