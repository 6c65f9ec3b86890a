"""What a search for an artifact within bounds is asked, and what it found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmc.compiler.counted import given_dims
from llmc.compiler.graph import Graph
from llmc.errors import LlmcError
from llmc.report import CompileReport
from llmc.sensitivity import Loss

ROWS = 4096  # of the data that are read, at most
MINIMISE = ("size", "latency", "both")
_ALONE = (
    *("quant", "prune", "share", "factorize", "only_passes", "matmul", "state_dtype", "group", "zero_points"),
    "tune",
)


@dataclass(frozen=True)
class Budget:
    """What an artifact may lose, weigh and take; None: anything.

    Args:
        max_drop: a share: of accuracy where the data has labels, else see `sensitivity.Measure`.
        max_size: bytes of the whole artifact.
        max_latency: seconds of one run on one thread, of `batch` and `seq`.
        minimise: "size", "latency" or "both" alike; None: what has no bound of the two. Without `max_drop` it is the
            divergence that becomes least.
        time: seconds after which the best that was found is taken.
        best_effort: whether the best found is written where the bounds cannot be met.
        rows: of the data, at most.
        measure: whether kernels are timed on this machine, not by the figures that llmc has.
    """

    max_drop: float | None = None
    max_size: float | None = None
    max_latency: float | None = None
    minimise: str | None = None
    time: float = 300.0
    best_effort: bool = False
    rows: int = ROWS
    batch: int = 1
    seq: int = 128
    measure: bool = False

    def __post_init__(self) -> None:
        bounds = {
            "--max-drop": self.max_drop,
            "--max-size": self.max_size,
            "--max-latency": self.max_latency,
        }
        if all(bound is None for bound in bounds.values()):
            raise LlmcError("a budget has a bound", hint=f"give {', '.join(bounds)}")
        for name, bound in bounds.items():
            if bound is not None and not 0 <= bound < math.inf:
                raise LlmcError(f"{name} is {bound:g}", hint="give a number from 0 on")
        if self.minimise not in (None, *MINIMISE):
            raise LlmcError(f"no {self.minimise!r} to minimise", hint=f"use {', '.join(MINIMISE)}")

    @property
    def aim(self) -> Mapping[str, float]:
        """Weights of bytes and seconds in what is minimised."""
        bounded = self.max_size is not None, self.max_latency is not None
        asked = self.minimise or {(True, False): "latency", (False, True): "size"}.get(bounded, "both")
        return {
            "size": {"bytes": 1.0, "seconds": 1e-3},
            "latency": {"seconds": 1.0, "bytes": 1e-3},
            "both": {"bytes": 1.0, "seconds": 1.0},
        }[asked]


@dataclass(frozen=True)
class LayerChoice:
    """What became of a layer; divergence, bytes and seconds beside those of the float layer."""

    layer: str
    choice: str
    divergence: float
    bytes: int
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class FrontPoint:
    """A point of the front, as foretold; `loss` is there of those that were tried."""

    divergence: float
    bytes: int
    seconds: float
    counts: Mapping[str, int]
    loss: Loss | None = None
    chosen: bool = False


@dataclass(frozen=True)
class BudgetReport:
    """What was chosen, and how it holds.

    Args:
        compiled: of the artifact that was written.
        measure, measured: what the bound on losses is of, in words; rows of each part of the data.
        held: the loss on rows that no choice has seen, by native code if `native`.
        size, seconds: of the artifact, and as the cost model tells it; `float_size`, `float_seconds`: of fp32.
        tries: how many choices were held to the bounds.
        unmet: bounds that do not hold.
        skipped: measurements that there was no time for.
        text: the passes, for `--add-pass TEXT@quantise`.
    """

    compiled: CompileReport | None
    measure: str
    rows: Mapping[str, int]
    held: Loss
    native: bool
    size: int
    seconds: float
    float_size: int
    float_seconds: float
    variant: str
    layers: Sequence[LayerChoice]
    front: Sequence[FrontPoint]
    tries: int
    skipped: int
    spent: float
    text: str
    unmet: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        compiled = None if self.compiled is None else self.compiled.to_dict()
        return {**asdict(replace(self, compiled=None)), "compiled": compiled}


def loss_text(loss: Loss) -> str:
    """A loss as a percentage with its interval."""
    return f"{100 * loss.mean:.2f} +- {100 * loss.half:.2f} % lost on {loss.rows} rows held back"


def nearest(budget: Budget, report: BudgetReport, best: BudgetReport | None) -> BudgetReport:
    """Whichever keeps more of the bounds, or breaks them by a smaller share, or loses or weighs less."""

    def order(one: BudgetReport) -> tuple[float, ...]:
        figures = _figures(budget, one.size, one.seconds, one.held.mean)
        beyond = sum(value / (most or 1e-12) - 1 for _, most, value, *_ in figures if _breaks(value, most))
        return len(one.unmet), beyond, one.held.mean, one.size

    return report if best is None else min(report, best, key=order)


def sizes_of(graph: Graph, budget: Budget) -> dict[str, int]:
    """Sizes of the dims that the latency is of: those not named so are as small as they may be."""
    asked = {"batch": budget.batch, "seq": budget.seq}
    bounds = {name: graph.dims[name] for name in given_dims(graph)}
    return {name: min(max(asked.get(name, b.low), b.low), b.high) for name, b in bounds.items()}


def broken(budget: Budget, size: int, seconds: float, drop: float) -> list[str]:
    """The bounds that do not hold: what was asked for, and what there is."""
    return [
        f"{name} {form.format(most * unit)}: {form.format(value * unit)}"
        for name, most, value, form, unit in _figures(budget, size, seconds, drop)
        if _breaks(value, most)
    ]


def _figures(
    budget: Budget, size: int, seconds: float, drop: float
) -> Iterator[tuple[str, float, float, str, float]]:
    """Of each bound that was given: its option, the most, what there is, how it is told."""
    if budget.max_size is not None:
        yield "--max-size", budget.max_size, size, "{:.2f} MB", 1e-6
    if budget.max_latency is not None:
        yield "--max-latency", budget.max_latency, seconds, "{:.3g} ms", 1e3
    if budget.max_drop is not None:
        yield "--max-drop", budget.max_drop, drop, "{:.2%}", 1.0


def _breaks(value: float, most: float) -> bool:
    return not value <= most + 1e-12


def want_free(options: Mapping[str, Any]) -> None:
    """Raises LlmcError: options choose what the budget is to choose."""
    defaults = {"quant": "none", "matmul": "fma", "state_dtype": "fp32"}
    used = [n for n in _ALONE if options.get(n) not in (None, (), [], False, defaults.get(n))]
    if used:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in used)
        raise LlmcError("a budget chooses what is compressed", at=names, hint="leave it out, or the bounds")
    if options.get("calib_stats") or options.get("calib_merge"):
        hint = "leave it out, or compile with the passes that a budget has printed"
        raise LlmcError(
            "a budget calibrates many models: none is kept", at="--calib-stats, --calib-merge", hint=hint
        )


def refusal(report: BudgetReport) -> LlmcError:
    """Why nothing is written, with the best that was found."""
    found = f"{report.size / 1e6:.2f} MB, {report.seconds * 1e3:.3g} ms, {loss_text(report.held)}"
    hint = "--best-effort writes it all the same; a wider bound, more data or a longer --time-budget may help"
    return LlmcError(
        "the budget cannot be met", at="; ".join(report.unmet), found=f"at best {found}", hint=hint
    )
