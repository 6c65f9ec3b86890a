"""What `--quant` asks for, and the passes that do it; for int8-static, calibration before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

import llmc
from llmc.compiler import calibration, interpret
from llmc.compiler.graph import Graph, Node
from llmc.compiler.pipeline import Pipeline, near
from llmc.compiler.ranges import METHODS
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.quantise import ATTENTION, QUANTISATIONS, STATIC, Quantize
from llmc.targets import TARGETS, host

CompileGraph = Callable[..., Any]  # as llmc.driver.compile_graph
ATTENTIONS = ("int8", "float")
RunPipeline = Callable[[Pipeline, Graph], tuple[Graph, Any]]


@dataclass(frozen=True)
class Quantisation:
    """A checked request.

    Args:
        mode: a key of QUANTISATIONS.
        calib: calibration data of int8-static: a file, or "auto".
        method: how its ranges are chosen, a key of METHODS.
        attention: "int8" or "float", where products are on int8.
    """

    mode: str = "none"
    calib: str | Path | None = None
    method: str = "percentile"
    attention: str = "int8"

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            hint = f"use {' or '.join(ATTENTIONS)}"
            raise LlmcError(f"no attention on {self.attention!r}", at="--attention", hint=hint)
        if self.mode not in QUANTISATIONS:
            hint = near(self.mode, QUANTISATIONS)
            raise LlmcError(f"unknown quantisation {self.mode!r}", at="--quant", hint=hint)
        if self.method not in METHODS:
            hint = near(self.method, METHODS)
            raise LlmcError(f"unknown calibration method {self.method!r}", at="--calib-method", hint=hint)
        if (self.calib is None) == (self.mode == STATIC):
            if self.calib is None:
                hint = "--calib FILE with samples like those to come, or --calib auto for general text"
                raise LlmcError(f"{STATIC} needs calibration data", at="--calib", hint=hint)
            raise LlmcError(f"calibration data is of use to {STATIC} only", at="--calib", found=self.mode)
        if self.calib not in (None, "auto") and not Path(str(self.calib)).is_file():
            raise LlmcError("there is no such calibration file", at=str(self.calib))

    def run(
        self,
        graph: Graph,
        tokenizer: Any,
        compile_graph: CompileGraph,
        run: RunPipeline = Pipeline.run,
        on_cpu: bool = True,
    ) -> tuple[Graph, Pipeline]:
        """The quantised graph and the passes that made it.

        Args:
            tokenizer: the model's `frontends.folder.Tokenizer`, or None.
            compile_graph: makes the native code that calibration runs.
            run: `Pipeline.run`, or one that checks more.
            on_cpu: GPUs have no kernels for attention on int8.

        Raises:
            LlmcError: the calibration data is of no use.
        """
        on_int8 = on_cpu and self.mode in ("int8", STATIC) and self.attention == "int8"
        text = QUANTISATIONS[self.mode] + (f",{ATTENTION}" if on_int8 else "")
        pipeline = Pipeline.parse(text, PASSES)
        if self.mode == STATIC:
            if graph.states:
                raise LlmcError(
                    f"{STATIC} does not calibrate functions that have states",
                    at="--quant",
                    found=", ".join(node.attributes["name"] for node in graph.states[:3]),
                    hint="use --quant int8",
                )
            first, *rest = pipeline.steps
            assert isinstance(first.change, Quantize)
            found = replace(first.change, scales=self._scales(graph, first.change, tokenizer, compile_graph))
            pipeline = Pipeline.of(found, *(step.change for step in rest))
        after, _ = run(pipeline, graph)
        return after, pipeline

    def _scales(
        self, graph: Graph, change: Quantize, tokenizer: Any, compile_graph: CompileGraph
    ) -> tuple[float, ...]:
        sites, named = change.sites(graph), _sources(graph, change)
        if not sites:
            return ()
        assert self.calib is not None
        encode = None if tokenizer is None else _encoder(tokenizer, graph)
        samples = calibration.read_samples(self.calib, graph, encode)
        first = list(islice(samples, 1))
        watched = Graph(graph.inputs, {f"site{i}": site for i, site in enumerate(sites)}, graph.dims)
        for sample in first:  # mistakes show before native code is made
            calibration.want_finite(named, list(interpret.run(watched, sample).values()), 1)
        with _observer(watched, compile_graph) if first else nullcontext(_nothing) as run:
            return calibration.scales(named, chain(first, samples), run, self.method)


def _sources(graph: Graph, change: Quantize) -> list[str]:
    """For each site the layers that read it."""
    readers: dict[Node, list[str]] = {}
    for product in change.products(graph):
        readers.setdefault(product.inputs[0], []).append(str(product.source))
    return [f"input of {', '.join(names)}" for names in readers.values()]


def _encoder(tokenizer: Any, graph: Graph) -> calibration.Encode:
    """Texts to inputs of batch 1, no padding, no longer than the model takes."""
    import tokenizers

    tool = tokenizers.Tokenizer.from_file(str(tokenizer.file))
    tool.no_padding()
    longest = graph.dims["seq"].high if "seq" in graph.dims else tokenizer.max_length
    tool.enable_truncation(min(tokenizer.max_length, longest))
    names = {node.attributes["name"] for node in graph.inputs}

    def encode(text: str, pair: str | None) -> calibration.Sample:
        made = tool.encode(text, pair)
        values = {"input_ids": made.ids, "token_type_ids": made.type_ids}
        return {k: np.array([v], np.int64) for k, v in values.items() if k in names}

    return encode


def _nothing(sample: calibration.Sample) -> list[Any]:
    return []


@contextmanager
def _observer(watched: Graph, compile_graph: CompileGraph) -> Iterator[calibration.Run]:
    """Gives the outputs of `watched` for a sample: by native code where this machine can run it."""
    if not any(host.runs_here(cpu) for cpu in TARGETS["x86"].cpus):
        yield lambda sample: list(interpret.run(watched, sample).values())
        return
    with tempfile.TemporaryDirectory(prefix="llmc-") as place:
        compile_graph(watched, Path(place) / "watched.llmc", passes="")
        with llmc.load(Path(place) / "watched.llmc") as model:

            def run(sample: calibration.Sample) -> list[Any]:
                values = model.run(sample)
                return [values[name] for name in watched.outputs]

            yield run
