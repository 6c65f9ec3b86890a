"""What a compile tells: each stage as it begins, and a report at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class CompileReport:
    """What a compile did.

    Args:
        path: the artifact.
        seconds: wall time of each stage.
        sizes: bytes of each file of the artifact.
        target, pipeline: what it was compiled for, and the passes that ran.
        nodes: size of the graph after the passes; `kernels` distinct kernels make `steps` calls.
        cached: how many of the files of machine code an earlier compile had made.
        runs_here: whether this machine can run it.
        products, losses, effects: as the manifest has them (runtime/format.md).
        gains: what layers gain by what was asked for, as `llmc.gains.Gains`; None where nothing was.
    """

    path: Path
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]
    target: str
    pipeline: str
    nodes: int
    kernels: int
    steps: int
    cached: int
    runs_here: bool = True
    products: Sequence[Mapping[str, Any]] = ()
    losses: Sequence[Mapping[str, Any]] = ()
    effects: Sequence[Mapping[str, Any]] = ()
    gains: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "path": str(self.path),
            "seconds": dict(self.seconds),
            "sizes": dict(self.sizes),
            "target": self.target,
            "pipeline": self.pipeline,
            "nodes": self.nodes,
            "kernels": self.kernels,
            "steps": self.steps,
            "cached": self.cached,
            "runs_here": self.runs_here,
            "products": list(self.products),
            "losses": list(self.losses),
            "effects": list(self.effects),
            "gains": self.gains,
        }

    def _repr_html_(self) -> str:
        from llmc.html import Page, Table

        facts = {k: v for k, v in self.to_dict().items() if isinstance(v, str | int)}
        plain = "\n".join(f"{name}: {value}" for name, value in facts.items())
        times = [(name, f"{seconds:.2f} s") for name, seconds in self.seconds.items()]
        tables = Table(("stage", "time"), times), Table(("file", "bytes"), list(self.sizes.items()))
        return str(Page(f"compiled {self.path.name}", plain, facts, tables))


@dataclass
class Stages:
    """Times the stages and tells the caller of each."""

    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)
    _name: str = ""
    _since: float = 0.0

    def enter(self, name: str, fraction: float) -> None:
        self.leave()
        self._name, self._since = name, time.perf_counter()
        if self.progress is not None:
            self.progress(name, fraction)

    def within(self, first: float, last: float) -> Progress:
        """A progress of its own for parts of the current stage, which is from `first` to `last` of the whole."""

        def tell(part: str, fraction: float) -> None:
            if self.progress is not None:
                self.progress(part, first + fraction * (last - first))

        return tell

    def leave(self) -> None:
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._since
        self._name = ""
