"""Tokens a second, as llama-bench counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime.generation import Generation, next_of_all
from llmc.runtime.generation_batch import MOST
from llmc.runtime.generation_options import GenerationOptions
from llmc.runtime.looking import look
from llmc.runtime.prompts import generation_of
from llmc.runtime.reports import duration_text
from llmc.runtime.source_benchmark import Sources

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session


@dataclass(frozen=True)
class Speed:
    """One test.

    Args:
        test: such as "pp512", a prompt of 512 tokens, "tg128 @ d512", 128 new tokens behind 512, or "tg128 x8", so many
            of each of 8 texts at once.
        tokens, depth: how many of a text, and how many its session held before.
        tokens_per_second, deviation: of all texts, mean over the repetitions, and their standard deviation.
        seconds: of a repetition: until the first token of a prompt, between the first and the last new one.
        p50, p99: seconds between two new tokens, over all repetitions; of a prompt, until the first.
        bytes: that a new token reads and writes, by what the kernels say; None of prompts and of several texts.
        bandwidth: share of what this machine reads from memory at most; None where it is not known.
    """

    test: str
    tokens: int
    depth: int
    tokens_per_second: float
    deviation: float
    seconds: tuple[float, ...]
    p50: float
    p99: float
    bytes: float | None = None
    bandwidth: float | None = None
    texts: int = 1


@dataclass(frozen=True)
class GenerationBenchmark:
    """What `Model.benchmark_generation` found. `str()` of it is a table, `to_dict()` what `bench --json` prints.

    Args:
        speeds: of each test.
        weights_bytes: mapped; session_bytes: that the session held at the end.
        peak_bytes_per_second: measured on this machine with the model's threads; 0: unknown.
    """

    artifact: str
    name: str
    build_id: str
    variant: str
    threads: int
    repetitions: int
    weights_bytes: int
    session_bytes: int
    peak_bytes_per_second: float
    speeds: tuple[Speed, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; times in seconds."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = f"weights {self.weights_bytes / 1e6:.1f} MB, session {self.session_bytes / 1e6:.1f} MB"
        peak = (
            f", {self.peak_bytes_per_second / 1e9:.1f} GB/s from memory" if self.peak_bytes_per_second else ""
        )
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        head = f"{'test':>16} {'tokens/s':>18} {'p50':>10} {'p99':>10} {'of peak traffic':>16}"
        lines = [
            f"{self.name}: {threads}, {self.variant}, {self.repetitions} times each",
            f"  {sizes}{peak}",
            "",
            head,
        ]
        return "\n".join(lines + [_line(speed) for speed in self.speeds])


def _line(speed: Speed) -> str:
    rate = f"{speed.tokens_per_second:.2f} ± {speed.deviation:.2f}"
    share = "" if speed.bandwidth is None else f"{100 * speed.bandwidth:.0f} %"
    return f"{speed.test:>16} {rate:>18} {duration_text(speed.p50):>10} {duration_text(speed.p99):>10} {share:>16}"


def benchmark_generation(
    model: Model,
    *,
    prompt_tokens: Sequence[int] = (512,),
    new_tokens: Sequence[int] = (128,),
    depths: Sequence[int] = (0,),
    texts: Sequence[int] = (1,),
    repetitions: int = 5,
    seed: int = 0,
) -> GenerationBenchmark:
    """Time prompts and new tokens, every one of the lists at every depth and of so many texts, on random tokens.

    The tests take turns, round after round, so that what disturbs the machine disturbs all; the first round warms up.

    Args:
        prompt_tokens, new_tokens: tokens of a test, 2 new ones at least; an empty list leaves that part out.
        depths: tokens that the session holds before; of an encoder-decoder, of the source.
        texts: how many go on at once, each in a session of its own.
        repetitions: rounds that count.

    Raises:
        LlmcError: the model does not generate, a number makes no sense, or a test is longer than the model takes.
    """
    entry = generation_of(model)
    kinds = [("pp", n) for n in prompt_tokens], [("tg", n) for n in new_tokens]
    plan = [_Test(kind, n, d, t) for part in kinds for t in texts for d in depths for kind, n in part]
    sources = Sources.of(model, entry.encoder) if entry.encoder else None
    _want(entry, plan, repetitions, sources)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, entry.vocabulary, max(t.tokens + t.depth for t in plan) + 1).tolist()
    found: list[list[list[float]]] = [[] for _ in plan]
    sessions = [model.session() for _ in range(max(texts))]
    for session in sessions:
        look(session, entry, None)
    for round_ in range(repetitions + 1):
        for times, test in zip(found, plan, strict=True):
            taken = _taken(sessions[: test.texts], entry, ids, test, sources)
            if round_:
                times.append(taken)
    held = sum(session.memory_bytes for session in sessions)
    peak, traffic = _peak(model, entry, depths) if new_tokens else (0.0, {})
    speeds = tuple(_speed(t, times, traffic, peak) for t, times in zip(plan, found, strict=True))
    info = model._open_handle().info
    return GenerationBenchmark(
        str(model.path),
        model.name,
        model.manifest.build_id,
        model.variant,
        model.threads,
        repetitions,
        int(info.weights_bytes),
        held,
        peak,
        speeds,
    )


class _Test(NamedTuple):
    kind: str
    tokens: int
    depth: int
    texts: int

    def __str__(self) -> str:
        depth = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.tokens}{depth}" + (f" x{self.texts}" if self.texts > 1 else "")


def _want(entry: GenerationEntry, plan: Sequence[_Test], repetitions: int, sources: Sources | None) -> None:
    if type(repetitions) is not int or not 1 <= repetitions <= 10_000:
        raise LlmcError(f"repetitions is {repetitions!r}, must be within 1..10000")
    if not plan:
        raise LlmcError(
            "there is nothing to measure", hint="give lengths of prompts, or numbers of new tokens"
        )
    for kind, n, depth, texts in plan:
        least = 1 if kind == "pp" else 2
        if type(texts) is not int or not 1 <= texts <= MOST:
            raise LlmcError(f"texts is {texts!r}, must be within 1..{MOST}")
        if type(n) is not int or type(depth) is not int or n < least or depth < 0:
            raise LlmcError(f"a test of {n!r} tokens at depth {depth!r} makes no sense")
        if sources is not None:
            sources.want(kind, n, depth)
            n, depth = (n if kind == "tg" else 1), 0
        if entry.length is not None and n + depth + 1 > entry.max_length:
            raise LlmcError(
                f"{n} tokens at depth {depth} are more than the model takes",
                found=f"at most {entry.max_length}, the next one included",
                hint="give fewer, or compile it with a larger bound (--max-seq)",
            )


def _hold(session: Session, entry: GenerationEntry, ids: Sequence[int], depth: int) -> None:
    """Make the session hold `depth` tokens, and no other."""
    if entry.length is None:
        session.reset()
    if depth:  # the last token that is made is not run
        _timed(session, entry, ids[:depth], 1)
    if entry.length is not None:
        session.rewind(depth)


def _timed(session: Session, entry: GenerationEntry, prompt: Sequence[int], new: int) -> list[float]:
    """Seconds until each new token, from the beginning."""
    options = GenerationOptions(max_new_tokens=new, eos_token_id=())
    generation, ends = Generation(session, entry, prompt, options), []
    for _ in generation:
        ends.append(generation.report.seconds)
    return ends


def _timed_all(
    sessions: Sequence[Session], entry: GenerationEntry, prompt: Sequence[int], new: int
) -> list[float]:
    """The same of several texts at once: seconds until all have so many tokens."""
    if len(sessions) == 1:
        return _timed(sessions[0], entry, prompt, new)
    options = GenerationOptions(max_new_tokens=new, eos_token_id=())
    generations = [Generation(session, entry, prompt, options) for session in sessions]
    made, ends, begin = [0] * len(sessions), list[float](), time.perf_counter()
    while len(ends) < new:
        for i, token in enumerate(next_of_all(generations)):
            made[i] += bool(token)
        ends += [time.perf_counter() - begin] * (min(made) - len(ends))
    return ends


def _prompt(
    sessions: Sequence[Session], entry: GenerationEntry, ids: Sequence[int], test: _Test
) -> list[float]:
    for session in sessions:
        _hold(session, entry, ids, test.depth)
    return _timed_all(sessions, entry, ids[: test.depth + test.tokens], 1)


def _new(sessions: Sequence[Session], entry: GenerationEntry, ids: Sequence[int], test: _Test) -> list[float]:
    """Seconds between two tokens; the first is the prompt's."""
    for session in sessions:
        if entry.length is None:
            session.reset()
        elif len(sessions) > 1:  # so that all begin at once
            _hold(session, entry, ids, test.depth)
    ends = _timed_all(sessions, entry, ids[: max(test.depth, 1)], test.tokens)
    return np.diff(ends).tolist()


def _taken(
    sessions: Sequence[Session],
    entry: GenerationEntry,
    ids: Sequence[int],
    test: _Test,
    sources: Sources | None,
) -> list[float]:
    """The seconds of one repetition."""
    if sources is None:
        return (_prompt if test.kind == "pp" else _new)(sessions, entry, ids, test)
    asked = test.tokens if test.kind == "pp" else test.depth
    taken = sum(sources.encode(session, ids, asked) for session in sessions)
    new = 1 if test.kind == "pp" else test.tokens
    ends = _timed_all(sessions, entry, [sources.encoder.start], new)
    return [taken + ends[0]] if test.kind == "pp" else np.diff(ends).tolist()


def _peak(model: Model, entry: GenerationEntry, depths: Sequence[int]) -> tuple[float, dict[int, float]]:
    """What memory gives at most, and by depth the bytes of one new token."""
    inputs = model.functions[entry.function].inputs
    axes = [inputs[entry.tokens].shape[1], *(inputs[entry.keep].shape if entry.keep else ())]
    ones = {axis: 1 for axis in axes if isinstance(axis, str)}
    sources = Sources.of(model, entry.encoder) if entry.encoder else None
    reports = {
        depth: model.benchmark(
            function=entry.function,
            duration=0.05,
            profile=depth == depths[0],
            **ones,
            **({entry.length: depth if sources is None else 1} if entry.length else {}),
            **(sources.sizes(depth) if sources else {}),
        )
        for depth in depths
    }
    found = {depth: report.bytes for depth, report in reports.items()}
    return reports[depths[0]].peak_bytes_per_second, found


def _speed(test: _Test, times: list[list[float]], traffic: dict[int, float], peak: float) -> Speed:
    seconds = tuple(map(sum, times))
    counted = test.texts * (test.tokens if test.kind == "pp" else test.tokens - 1)
    rates = [counted / taken for taken in seconds]
    rate, gaps = statistics.fmean(rates), [gap for taken in times for gap in taken]
    known = test.kind == "tg" and test.texts == 1
    return Speed(
        str(test),
        test.tokens,
        test.depth,
        rate,
        statistics.stdev(rates) if len(rates) > 1 else 0.0,
        seconds,
        float(np.percentile(gaps, 50)),
        float(np.percentile(gaps, 99)),
        traffic[test.depth] if known else None,
        traffic[test.depth] * rate / peak if known and peak else None,
        test.texts,
    )
