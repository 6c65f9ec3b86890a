"""Speech to text by Whisper beside transformers, CTranslate2 and OpenVINO: what is written, and how long it takes.

    python bench/whisper.py -o whisper-base
    llmc compile ./whisper-base -o fp32.llmc; llmc compile ./whisper-base -o int8.llmc --quant int8
    python bench/transcripts.py --model ./whisper-base fp32=./fp32.llmc int8=./int8.llmc [--threads 1,2] [--rounds 3]

Twenty sentences are spoken by espeak-ng, ten more are recordings of people. All write them down, sound by sound and in
turns, in one process with equal threads. Tokens are compared with those of transformers' `generate`, words with what
was said (word error: the fewest words to replace, leave out or put in, of those that were said). Times are from samples
to tokens, spectrogram included; a real-time factor is seconds of computing by seconds of sound. A ratio is the median
over sounds and rounds, its interval (95 %) a bootstrap over sounds; on one thread those of the processor's seconds
follow, which other work on the machine disturbs less. Needs espeak-ng, soxr, ctranslate2, openvino and nncf; peers that
cannot be loaded are named and left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import isa
import listeners
import numpy as np
from contest import pause_after, settle
from models import FetchError, cache_folder
from spoken import Said, errors, recorded, spoken, words
from whisper import ct2_folder

from llmc.cli.output import print_table
from llmc.errors import LlmcError

Array = np.ndarray[Any, np.dtype[Any]]
REFERENCE, LONGEST = "transformers", 0.4  # seconds that pools may spin, at most
PEERS = ("ctranslate2 float32", "ctranslate2 int8", "openvino fp32", "openvino int8")
Times = dict[str, Array]  # racer -> seconds [sounds, rounds]
Tokens = dict[str, list[list[int]]]  # racer -> those of each sound


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("artifacts", nargs="+", metavar="NAME=PATH", help="artifacts of llmc")
    add("--model", type=Path, required=True, help="the folder that bench/whisper.py wrote")
    add("--threads", default="1,2", help="default: 1,2")
    add("--rounds", type=int, default=3, help="how often each sound is written down (default: 3)")
    add("--every", type=int, default=1, help="of the sounds each so-many-th, for a first look")
    add("--skip", default="", help="racers to leave out, with commas between")
    add("--json", type=Path, metavar="FILE", help="write all that was found there")
    options = parser.parse_args()
    options.artifacts = dict(text.partition("=")[::2] for text in options.artifacts)
    options.threads = [int(text) for text in options.threads.split(",")]
    return options


def loaded(options: argparse.Namespace, threads: int) -> dict[str, listeners.Listener]:
    """All who can be had, transformers first."""
    folder, kept = options.model, cache_folder() / "transcripts"
    loaders: dict[str, Callable[[], listeners.Listener]] = {
        REFERENCE: partial(listeners.transformers, folder, threads)
    }
    for name, path in options.artifacts.items():
        loaders[f"llmc {name}"] = partial(listeners.llmc_artifact, Path(path), threads)
    for name in PEERS:
        library, kind = name.split()
        loaders[name] = (
            partial(listeners.openvino, folder, kept / "openvino", threads, kind == "int8")
            if library == "openvino"
            else lambda kind=kind: listeners.ctranslate2(folder, ct2_folder(kept), threads, kind)
        )
    found = {}
    for name, load in loaders.items():
        if name in options.skip.split(","):
            continue
        try:
            found[name] = load()
        except (ImportError, RuntimeError, FetchError) as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
    return found


def judged(
    made: Mapping[str, list[list[int]]], sounds: Sequence[Said], decode: Callable[[list[int]], str]
) -> list[dict[str, Any]]:
    """Of every racer: the same tokens as transformers', and word errors of what is spoken and what is recorded."""
    rows = []
    for name, all_ids in made.items():
        texts = [decode(ids) for ids in all_ids]
        row: dict[str, Any] = {"name": name, "texts": texts}
        row["equal"] = sum(a == b for a, b in zip(all_ids, made[REFERENCE], strict=True))
        for part in ("all", "spoken", "recorded"):
            pairs = [
                (words(s.text), words(t))
                for s, t in zip(sounds, texts, strict=True)
                if part == "all" or s.name.startswith(part)
            ]
            row[f"{part}_words"] = sum(len(wanted) for wanted, _ in pairs)
            row[f"{part}_errors"] = sum(errors(*pair) for pair in pairs)
        rows.append(row)
    return rows


def race(
    racers: Mapping[str, listeners.Listener], sounds: Sequence[Said], rounds: int
) -> tuple[Tokens, Times, Times]:
    """Every sound by every racer in turns, with pauses in which pools go to sleep; the first in turn rotates.

    Returns:
        what is written in the last round, and the seconds by the clock and by the processor.
    """
    names = list(racers)
    burnt = settle({n: partial(listen, sounds[0].samples) for n, listen in racers.items()}, LONGEST, 1)
    wait, shape = min(pause_after(burnt.values()), LONGEST), (len(sounds), rounds)
    clock, processor = ({name: np.zeros(shape) for name in names} for _ in range(2))
    made: Tokens = {name: [[] for _ in sounds] for name in names}
    for turn in range(rounds):
        for number, said in enumerate(sounds):
            for place in range(len(names)):
                name = names[(place + turn + number) % len(names)]
                time.sleep(wait)
                begin = time.perf_counter(), time.process_time()
                made[name][number] = racers[name](said.samples)
                clock[name][number, turn] = time.perf_counter() - begin[0]
                processor[name][number, turn] = time.process_time() - begin[1]
    return made, clock, processor


def ratio(times: Array, base: Array, resamples: int = 2000) -> tuple[float, float, float]:
    """The median over all pairs of [sounds, rounds], and a 95 % interval by drawing sounds."""
    pairs = times / base
    drawn = np.random.default_rng(0).integers(0, len(pairs), (resamples, len(pairs)))
    low, high = np.quantile(np.median(pairs[drawn], axis=(1, 2)), (0.025, 0.975))
    return float(np.median(pairs)), float(low), float(high)


def tell_written(rows: Sequence[Mapping[str, Any]], count: int) -> None:
    """The first table."""

    def share(row: Mapping[str, Any], part: str) -> str:
        said, wrong = row[f"{part}_words"], row[f"{part}_errors"]
        return f"{100 * wrong / said:.1f} % ({wrong}/{said})" if said else ""

    print_table(
        "",
        ["", "tokens as transformers", "word error", "spoken", "recorded"],
        [
            [
                row["name"],
                f"{row['equal']} of {count}",
                *(share(row, p) for p in ("all", "spoken", "recorded")),
            ]
            for row in rows
        ],
    )


def tell_race(times: Times, sounds: Sequence[Said], title: str) -> list[dict[str, Any]]:
    """The second table: real-time factors, and llmc's times over everybody's."""
    seconds, own = sum(said.seconds for said in sounds), [n for n in times if n.startswith("llmc ")]
    rows, lines = [], []
    for name, found in times.items():
        row = {"name": name, "what": title, "factor": float(np.median(found, 1).sum() / seconds)}
        row["ratios"] = {mine: ratio(times[mine], found) for mine in own if mine != name}
        rows.append(row)
        cells = [
            "{:.2f} ({:.2f}-{:.2f})".format(*row["ratios"][mine]) if mine != name else "" for mine in own
        ]
        lines.append([name, f"{row['factor']:.3f}", *cells])
    columns = ["", "real-time factor", *(f"{mine} / this" for mine in own)]
    print_table(title, columns, lines)
    return rows


def main() -> int:
    """Write down, compare, race."""
    options = read_options()
    sounds = [*spoken(), *recorded()][:: options.every]
    from transformers import WhisperTokenizerFast

    decode = partial(WhisperTokenizerFast.from_pretrained(options.model).decode, skip_special_tokens=True)
    result: dict[str, Any] = {"machine": isa.machine(), "race": [], "said": [said.text for said in sounds]}
    for threads in options.threads:
        made, clock, processor = race(loaded(options, threads), sounds, options.rounds)
        if "written" not in result:
            result["tokens"], result["written"] = made, judged(made, sounds, decode)
            tell_written(result["written"], len(sounds))
        for name in made:
            if made[name] != result["tokens"][name]:
                print(f"{name} writes otherwise on {threads} threads")
        title = f"{threads} thread{'s' * (threads > 1)}"
        result["race"] += tell_race(clock, sounds, title)
        if threads == 1:
            result["race"] += tell_race(processor, sounds, f"{title}, seconds of the processor")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FetchError, LlmcError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
