"""What a benchmark found, as values, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_ABOVE_FLOPS = (
    "  above 100 % of arithmetic: integer products pass fma, or the machine was busier during the peak"
)
_ABOVE_BYTES = "  above 100 % of traffic: what lies in the caches is read faster than memory"


@dataclass(frozen=True)
class Latency:
    """Seconds of one run over n samples; mean_low to mean_high is the mean's 95 % bootstrap interval."""

    n: int
    mean: float
    mean_low: float
    mean_high: float
    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    max: float


@dataclass(frozen=True)
class Step:
    """One kernel call of a run: mean seconds, FLOP and bytes of it."""

    kernel: str
    source: str
    seconds: float
    flops: float
    bytes: float


@dataclass(frozen=True)
class BenchmarkReport:
    """What `Model.benchmark` found. `str()` of it is a table, `to_dict()` what `bench --json` prints.

    Attributes:
        function: its name.
        sizes: dim -> size, as run.
        warmup_runs: discarded before sampling.
        runs_per_second: of runs in sequence.
        load_seconds: what opening took in C.
        peak_memory_bytes: of the process so far; 0: unknown.
        flops, bytes: of one run.
        peak_flops_per_second, peak_bytes_per_second: what this machine does at most with the model's
            threads, measured for a profile; 0: unknown.
        steps: the profile, or None.
    """

    artifact: str
    name: str
    build_id: str
    function: str
    variant: str
    threads: int
    sizes: Mapping[str, int]
    warmup_runs: int
    latency: Latency
    runs_per_second: float
    load_seconds: float
    peak_memory_bytes: int
    flops: float
    bytes: float
    peak_flops_per_second: float
    peak_bytes_per_second: float
    steps: tuple[Step, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; times in seconds."""
        fields = asdict(self)
        if self.steps is None:
            del fields["steps"]
        return fields

    def __str__(self) -> str:
        rate = _ratio(self.flops, self.latency.p50) / 1e9
        memory = self.peak_memory_bytes / 1e6
        function = "" if self.function == "forward" else f" {self.function}"
        sizes = "".join(f" {name} {size}," for name, size in self.sizes.items())
        lines = [
            f"{self.name}{function}:{sizes} {self.threads} thread{'s' * (self.threads != 1)}, {self.variant}",
            *_latency_lines(self.latency),
            f"  speed    {self.runs_per_second:.4g} runs/s, {rate:.4g} GFLOP/s",
            f"  samples  {self.latency.n} after {self.warmup_runs} warm-up runs",
            f"  load     {duration_text(self.load_seconds)}   peak memory {memory:.1f} MB",
        ]
        return "\n".join(lines + self._profile_lines())

    def _repr_html_(self) -> str:
        from llmc.html import Page, Table

        values = asdict(self.latency)
        samples = values.pop("n")
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        facts = {"function": self.function, "sizes": sizes, "variant": self.variant, "threads": self.threads}
        facts |= {"samples": samples, "runs per second": f"{self.runs_per_second:.4g}"}
        rows = [(name, duration_text(value)) for name, value in values.items()]
        steps = [(duration_text(s.seconds), s.kernel, s.source) for s in self.steps or ()]
        tables = [Table(("latency", "time"), rows)]
        tables += [Table(("time", "kernel", "source"), steps)] if steps else []
        return str(Page(f"benchmark of {self.name}", str(self), facts, tables))

    def _profile_lines(self) -> list[str]:
        if self.steps is None:
            return []
        total = sum(step.seconds for step in self.steps)
        head = f"{'time':>12} {'share':>8}  {'arithmetic':>13} {'of peak':>7}  {'traffic':>12} {'of peak':>7}"
        return [
            f"  peak     {self.peak_flops_per_second / 1e9:.1f} GFLOP/s by fma, "
            f"{self.peak_bytes_per_second / 1e9:.1f} GB/s from memory (0: not known); "
            "shares below are of these",
            *self._above(),
            "",
            f"{head}  kernel, source",
            *(self._step_line(step, total) for step in self.steps),
        ]

    def _above(self) -> list[str]:
        """Why shares are above 100 %, if some are."""
        found = []
        for step in self.steps or ():
            flops, traffic = _ratio(step.flops, step.seconds), _ratio(step.bytes, step.seconds)
            arithmetic = _ratio(flops, self.peak_flops_per_second) > 1
            memory = _ratio(traffic, self.peak_bytes_per_second) > 1
            found += [_ABOVE_FLOPS] * arithmetic + [_ABOVE_BYTES] * memory
        return [note for note in (_ABOVE_FLOPS, _ABOVE_BYTES) if note in found]

    def _step_line(self, step: Step, total: float) -> str:
        flops, traffic = _ratio(step.flops, step.seconds), _ratio(step.bytes, step.seconds)
        return (
            f"  {duration_text(step.seconds):>10} {100 * _ratio(step.seconds, total):6.1f} %"
            f"  {flops / 1e9:8.1f} GF/s {100 * _ratio(flops, self.peak_flops_per_second):5.0f} %"
            f"  {traffic / 1e9:7.1f} GB/s {100 * _ratio(traffic, self.peak_bytes_per_second):5.0f} %"
            f"  {step.kernel}  {step.source}"
        )


@dataclass(frozen=True)
class CompareReport:
    """Two models timed in turns: the ratio of the medians a / b and its 95 % bootstrap interval."""

    names: tuple[str, str]
    a: Latency
    b: Latency
    ratio: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values; times in seconds."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"A {self.names[0]}",
                *_latency_lines(self.a),
                f"B {self.names[1]}",
                *_latency_lines(self.b),
                f"A / B      {self.ratio:.4f}, 95 % interval {self.low:.4f} to {self.high:.4f}, "
                f"of the medians of {self.a.n} interleaved pairs",
            ]
        )

    def _repr_html_(self) -> str:
        from llmc.html import Page, Table

        facts = {"A": self.names[0], "B": self.names[1]}
        facts["A / B"] = f"{self.ratio:.4f}, 95 % interval {self.low:.4f} to {self.high:.4f}"
        b = asdict(self.b)
        rows = [(n, duration_text(v), duration_text(b[n])) for n, v in asdict(self.a).items() if n != "n"]
        return str(Page("two models in turns", str(self), facts, (Table(("latency", "A", "B"), rows),)))


def duration_text(seconds: float) -> str:
    """Such as "1.23 ms": three digits and a unit that fits."""
    scale, unit = (1e6, "us") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1.0, "s")
    value = seconds * scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def _latency_lines(latency: Latency) -> list[str]:
    texts = {name: duration_text(value) for name, value in asdict(latency).items()}
    return [
        "  latency  p50 {p50}   p90 {p90}   p95 {p95}   p99 {p99}".format(**texts),
        "  mean     {mean}, 95 % interval {mean_low} to {mean_high}   min {min}   max {max}".format(**texts),
    ]


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0
