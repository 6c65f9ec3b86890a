"""Texts at once in one run: their tokens a second together, over those of one text alone.

    python bench/together.py ARTIFACT... [--texts 8] [--threads 1] [--depth 16] [--new 4] [--rounds 15] [--processor]

As `llmc bench -b 1,8`, but in turns round by round, with the median of the ratio and its 95 % interval, and on request
by processors' time (`--processor`, one thread), which other work on the machine changes less. Every text holds `depth`
tokens of its own. Their logits together must have the bits that each has alone, or the program ends with 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import llmc
from llmc.demo.race import ratio

VOCABULARY = 1000  # tokens are drawn from the first so many
Clock = Callable[[], float]
Inputs = dict[str, Any]


def drawn(count: int, source: np.random.Generator) -> Inputs:
    """Random tokens, of which the last one's logits are wanted."""
    ids = source.integers(5, VOCABULARY, count).tolist()
    return {"input_ids": [ids], "logits_to_keep": [count - 1]}


class Company:
    """Sessions that hold `depth` tokens each, and the next token of each."""

    def __init__(self, model: llmc.Model, texts: int, depth: int) -> None:
        source = np.random.default_rng(0)
        self.model, self.depth = model, depth
        self.sessions = [model.session() for _ in range(texts)]
        for session in self.sessions:
            session.run(drawn(depth, source))
        self.next = [drawn(1, source) for _ in self.sessions]

    def alone(self, text: int) -> Any:
        return self.sessions[text].run(self.next[text])["logits"]

    def together(self) -> list[Any]:
        found = self.model.run_sessions(list(zip(self.sessions, self.next, strict=True)))
        return [each["logits"] for each in found]

    def back(self) -> None:
        """Every session holds `depth` tokens again."""
        for session in self.sessions:
            session.rewind(self.depth)

    def check(self) -> None:
        """
        Raises:
            SystemExit: a text has other bits in company.
        """
        alone = [np.array(self.alone(text)) for text in range(len(self.sessions))]
        self.back()
        same = [np.array_equal(a, b) for a, b in zip(alone, self.together(), strict=True)]
        self.back()
        if not all(same):
            raise SystemExit(f"text {same.index(False)} has other bits in company")


def seconds_of(company: Company, call: Callable[[], object], new: int, clock: Clock) -> float:
    """Seconds of one of `new` calls."""
    begun = clock()
    for _ in range(new):
        call()
    taken = (clock() - begun) / new
    company.back()
    return taken


def race(company: Company, new: int, rounds: int, clock: Clock) -> tuple[list[float], list[float]]:
    """Seconds a token of one text alone, and of all together; who begins changes."""
    calls: list[Callable[[], object]] = [lambda: company.alone(0), company.together]
    found: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):  # the first warms up
        for which in (0, 1) if round_ % 2 else (1, 0):
            taken = seconds_of(company, calls[which], new, clock)
            if round_:
                found[which].append(taken / (len(company.sessions) if which else 1))
    return found


def report(artifact: str, texts: int, one: Sequence[float], all_: Sequence[float]) -> None:
    times, low, high = ratio(np.array(one), np.array(all_))
    speeds = " -> ".join(f"{1 / float(np.median(seconds)):.1f}" for seconds in (one, all_))
    print(
        f"{artifact}: 1 -> {texts} texts {speeds} tokens/s, {times:.2f} ({low:.2f} to {high:.2f})", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+")
    defaults = (("texts", 8), ("threads", 1), ("depth", 16), ("new", 4), ("rounds", 15))
    for name, default in defaults:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--processor", action="store_true")
    asked = parser.parse_args()
    if asked.processor and asked.threads > 1:
        parser.error("--processor goes with --threads 1")
    clock: Clock = time.process_time if asked.processor else time.perf_counter
    for artifact in asked.artifacts:
        company = Company(llmc.load(artifact, threads=asked.threads), asked.texts, asked.depth)
        company.check()
        report(artifact, asked.texts, *race(company, asked.new, asked.rounds, clock))


if __name__ == "__main__":
    main()
