"""Text generation beside llama.cpp and OpenVINO: tokens a second of prompts and next tokens, in turns in one process.

    python bench/decoding.py w8=./smol-w8.llmc Q8_0=./smol-q8_0.gguf OV8=./smol-int8.ov [--threads 1 2]
        [--depth 16 512] [--prompt 512] [--new 16] [--rounds 9] [--pairs w8:Q8_0 w8:OV8] [--like w8] [--bandwidth]
        [--processor]

Each argument is NAME=PATH: a folder that llmc wrote, a GGUF file, which `llama_cpp` runs (pip install
llama-cpp-python), or a folder of bench/stateful.py, which OpenVINO runs. Tokens are random, the same for all. Every
round each racer in turn, who begins rotates, holds `depth` tokens, then runs `new` tokens one by one, or the prompt at
once; a line has the median over rounds, and of each pair the median of the ratios of its rounds with a 95 % interval.
All get as many threads as llmc, for prompts and next tokens alike, and a turn begins when the pools of the others have
gone to sleep.

`--like` names who first writes a text that all others are told a token at a time; a line has how many of its tokens
they find likeliest too, and where not. `--bandwidth` reads memory in each round (reading.c), and a line of each
artifact has its next tokens' share of that rate, by what its kernels say that they read and write. `--processor`
counts the time of processors, of all threads, and not the time that passes, which other work on the machine stretches:
for one thread, since threads that wait for each other burn it too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from contest import pause_after, settle
from decoders import Llmc, Racer, opened, told, written
from reading import BYTES, Memory

from llmc.demo.race import ratio

VOCABULARY = 1000  # tokens are drawn from the first so many, without the special ones
LONGEST = 0.25  # seconds after a call in which a pool is watched
PROMPT, TEXT = 24, 48  # tokens of the prompt, and of the text behind it, that `--like` compares
MEMORY = "memory"  # the name of what reads it, among racers

Racers = Mapping[str, Racer]
Clock = Callable[[], float]


class Test(NamedTuple):
    """`count` tokens, `depth` of them held before the clock starts; the others in one call, or one by one."""

    name: str
    count: int
    depth: int
    at_once: bool


def tokens_of(count: int) -> list[int]:
    """Random ones, the first of them always the same."""
    drawn: list[int] = np.random.default_rng(0).integers(5, VOCABULARY, count).tolist()
    return drawn


def seconds_of(racer: Racer, test: Test, tokens: Sequence[int], clock: Clock) -> float:
    """Seconds a token."""
    racer.hold(tokens[: test.depth])
    left = tokens[test.depth :]
    calls = [left] if test.at_once else [[token] for token in left]
    begun = clock()
    for call in calls:
        racer.run(call)
    return (clock() - begun) / len(left)


def tests(arguments: argparse.Namespace) -> Iterator[Test]:
    """Those that the arguments ask for."""
    for depth in arguments.depth:
        yield Test(f"next at {depth}", depth + arguments.new, depth, at_once=False)
    for length in arguments.prompt:
        yield Test(f"prompt of {length}", length, 0, at_once=True)


def pause(racers: Racers) -> float:
    """Seconds between turns in which every pool has gone to sleep."""
    for racer in racers.values():
        racer.hold(tokens_of(PROMPT))
    calls: Any = {name: partial(racer.run, [VOCABULARY]) for name, racer in racers.items()}
    burnt = settle(calls, longest=LONGEST)
    print("burnt   ", *(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in burnt.items()), flush=True)
    return pause_after(burnt.values())


def race(
    racers: Racers, test: Test, rounds: int, wait: float, clock: Clock, memory: Memory | None
) -> dict[str, list[float]]:
    """Seconds a token of each racer in each round, and those of the memory, after one round more that warms up."""
    tokens = tokens_of(test.count)
    calls: dict[str, Callable[[], float]] = {
        name: partial(seconds_of, racer, test, tokens, clock) for name, racer in racers.items()
    }
    if memory is not None:
        calls[MEMORY] = partial(memory.seconds, clock)
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for round_ in range(rounds + 1):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(wait)
            seconds = calls[name]()
            if round_:
                found[name].append(seconds)
    return found


def report(threads: int, test: Test, found: Mapping[str, list[float]], pairs: Sequence[str]) -> None:
    """Tokens a second, and how many times those of the second of a pair the first's are."""
    for name, seconds in found.items():
        if name != MEMORY:
            print(
                f"{threads}  {test.name:16} {name:10} {1 / float(np.median(seconds)):8.1f} tokens/s",
                flush=True,
            )
    for pair in pairs:
        ours, theirs = (np.array(found[name]) for name in pair.split(":"))
        times, low, high = ratio(theirs, ours)
        print(f"{threads}  {test.name:16} {pair:16} {times:5.2f} ({low:.2f} to {high:.2f})", flush=True)


def report_shares(threads: int, test: Test, found: Mapping[str, list[float]], racers: Racers) -> None:
    """The memory's rate, and each artifact's share of it."""
    taken = np.array(found[MEMORY])
    print(
        f"{threads}  {test.name:16} {MEMORY:10} {BYTES / float(np.median(taken)) / 1e9:8.1f} GB/s", flush=True
    )
    for name, racer in racers.items():
        if not isinstance(racer, Llmc):
            continue
        bytes_ = racer.traffic(test.depth)
        share, low, high = (100 * bytes_ / BYTES * times for times in ratio(taken, np.array(found[name])))
        print(
            f"{threads}  {test.name:16} {name:10} {share:5.0f} % of it ({low:.0f} to {high:.0f}), "
            f"{bytes_ / 1e6:.0f} MB a token",
            flush=True,
        )


def compare(racers: Racers, like: str) -> None:
    """Who finds the same tokens likeliest as `like`, whose text all are told."""
    prompt_ = tokens_of(PROMPT)
    text = written(racers[like], prompt_, TEXT)
    for name, racer in racers.items():
        found = told(racer, prompt_, text)
        apart = [place for place, (a, b) in enumerate(zip(found, text, strict=True)) if a != b]
        where = f", others at {', '.join(map(str, apart))}" if apart else ""
        print(f"   {name:10} {TEXT - len(apart)} of {TEXT} tokens as {like}{where}", flush=True)


def main() -> None:
    arguments = _arguments()
    paths = dict(racer.split("=", 1) for racer in arguments.racers)
    clock: Clock = time.process_time if arguments.processor else time.perf_counter
    for threads in arguments.threads:
        racers = {name: opened(Path(path), threads) for name, path in paths.items()}
        if arguments.like:
            compare(racers, arguments.like)
        wait, memory = pause(racers), Memory(threads) if arguments.bandwidth else None
        for test in tests(arguments):
            reads = None if test.at_once else memory
            found = race(racers, test, arguments.rounds, wait, clock, reads)
            report(threads, test, found, arguments.pairs)
            if reads is not None:
                report_shares(threads, test, found, racers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("racers", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--depth", type=int, nargs="*", default=[16, 512])
    parser.add_argument("--prompt", type=int, nargs="*", default=[512])
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pairs", nargs="*", default=[], metavar="OURS:THEIRS")
    parser.add_argument("--like", metavar="NAME")
    parser.add_argument("--bandwidth", action="store_true")
    parser.add_argument("--processor", action="store_true")
    arguments = parser.parse_args()
    if arguments.processor and arguments.threads != [1]:
        parser.error("--processor goes with --threads 1")
    return arguments


if __name__ == "__main__":
    main()
