"""What `--quant` asks for, and the passes that do it."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline, near
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.quantise import QUANTISATIONS


@dataclass(frozen=True)
class Quantisation:
    """A checked request.

    Args:
        mode: a key of QUANTISATIONS.
    """

    mode: str = "none"

    def __post_init__(self) -> None:
        if self.mode not in QUANTISATIONS:
            raise LlmcError(
                f"unknown quantisation {self.mode!r}", at="--quant", hint=near(self.mode, QUANTISATIONS)
            )

    def run(self, graph: Graph) -> tuple[Graph, Pipeline]:
        """The quantised graph and the passes that made it."""
        pipeline = Pipeline.parse(QUANTISATIONS[self.mode], PASSES)
        after, _ = pipeline.run(graph)
        return after, pipeline
