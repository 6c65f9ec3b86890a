"""Text generation beside llama.cpp: tokens a second of prompts and of next tokens, in turns in one process.

    python bench/decoding.py w8=./smol-w8.llmc Q8_0=./smol-q8_0.gguf [--threads 1 2] [--depth 16 512] [--prompt 512]
        [--new 16] [--rounds 9] [--pairs w8:Q8_0]

Each argument is NAME=PATH: a folder that llmc wrote, or a GGUF file, which `llama_cpp` runs (pip install
llama-cpp-python). Tokens are random, the same for all. Every round each racer in turn holds `depth` tokens, then runs
`new` tokens one by one, or the prompt at once; a line has the median over rounds, and of each pair the median of the
ratios of its rounds with a 95 % interval. llama.cpp gets as many threads as llmc, for prompts and next tokens alike.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import llmc
from llmc.demo.race import ratio

VOCABULARY = 1000  # tokens are drawn from the first so many, without the special ones
LENGTH = 2048


class Racer(Protocol):
    """One program with one model."""

    def hold(self, tokens: Sequence[int]) -> None:
        """Hold these tokens, and no other."""

    def run(self, tokens: Sequence[int]) -> int:
        """Run tokens behind those that are held, which they join; the likeliest next one."""


class Llmc:
    """A session of an artifact."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = llmc.load(path, threads=threads)
        self.session = self.model.session()

    def hold(self, tokens: Sequence[int]) -> None:
        self.session.reset()
        if tokens:
            self.run(tokens)

    def run(self, tokens: Sequence[int]) -> int:
        given = {"input_ids": np.array([tokens], np.int64), "logits_to_keep": np.array([len(tokens) - 1])}
        return int(self.session.run(given)["logits"][0, -1].argmax())


class LlamaCpp:
    """A context of llama.cpp."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet  # C keeps it
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = LENGTH, LENGTH, 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def hold(self, tokens: Sequence[int]) -> None:
        memory = self.lib.llama_get_memory(self.context)
        self.lib.llama_memory_seq_rm(memory, -1, -1, -1)
        if tokens:
            self.run(tokens)

    def run(self, tokens: Sequence[int]) -> int:
        array = (self.lib.llama_token * len(tokens))(*tokens)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        logits = self.lib.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.size,)).argmax())


def opened(path: Path, threads: int) -> Racer:
    """The racer for a path."""
    return LlamaCpp(path, threads) if path.suffix == ".gguf" else Llmc(path, threads)


def next_tokens(racer: Racer, tokens: Sequence[int], depth: int) -> float:
    """Seconds a token behind `depth` tokens."""
    racer.hold(tokens[:depth])
    begun = time.perf_counter()
    for token in tokens[depth:]:
        racer.run([token])
    return (time.perf_counter() - begun) / (len(tokens) - depth)


def prompt(racer: Racer, tokens: Sequence[int], depth: int) -> float:
    """Seconds a token of a prompt behind `depth` tokens."""
    racer.hold(tokens[:depth])
    begun = time.perf_counter()
    racer.run(tokens[depth:])
    return (time.perf_counter() - begun) / (len(tokens) - depth)


Test = tuple[str, Callable[[Racer, Sequence[int], int], float], int, int]  # name, how, tokens, depth


def tests(arguments: argparse.Namespace) -> Iterator[Test]:
    """Those that the arguments ask for."""
    for depth in arguments.depth:
        yield f"next at {depth}", next_tokens, depth + arguments.new, depth
    for length in arguments.prompt:
        yield f"prompt of {length}", prompt, length, 0


def race(racers: dict[str, Racer], test: Test, rounds: int) -> dict[str, list[float]]:
    """Seconds a token of each racer in each round, after one round more that warms up."""
    _, how, count, depth = test
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, count).tolist()
    found: dict[str, list[float]] = {name: [] for name in racers}
    for round_ in range(rounds + 1):
        for name, racer in racers.items():
            seconds = how(racer, tokens, depth)
            if round_:
                found[name].append(seconds)
    return found


def report(threads: int, test: Test, found: dict[str, list[float]], pairs: Sequence[str]) -> None:
    """Tokens a second, and how many times those of the second of a pair the first's are."""
    for name, seconds in found.items():
        print(f"{threads}  {test[0]:16} {name:10} {1 / float(np.median(seconds)):8.1f} tokens/s", flush=True)
    for pair in pairs:
        ours, theirs = (np.array(found[name]) for name in pair.split(":"))
        times, low, high = ratio(theirs, ours)
        print(f"{threads}  {test[0]:16} {pair:16} {times:5.2f} ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
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
    arguments = parser.parse_args()
    paths = dict(racer.split("=", 1) for racer in arguments.racers)
    for threads in arguments.threads:
        racers = {name: opened(Path(path), threads) for name, path in paths.items()}
        for test in tests(arguments):
            report(threads, test, race(racers, test, arguments.rounds), arguments.pairs)


if __name__ == "__main__":
    main()
