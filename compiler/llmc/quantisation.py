"""What `--quant` asks for, and the passes that do it; for int8-static, calibration before."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import llmc
from llmc.compiler import calibration, interpret
from llmc.compiler.frontends.inputs import KEEP
from llmc.compiler.gathering import Walk, gather
from llmc.compiler.given import Given, Run, given
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.int16 import longest_block
from llmc.compiler.pipeline import Pass, Pipeline, near
from llmc.compiler.ranges import METHODS, Magnitudes
from llmc.errors import LlmcError, TextsCut
from llmc.passes import PASSES
from llmc.passes.compress.bfloat16 import Bfloat16
from llmc.passes.compress.blockwise import Blockwise
from llmc.passes.compress.gptq import Gptq
from llmc.passes.match import is_levels
from llmc.passes.quantise import (
    ATTENTION,
    CAME_QUANTISED,
    CAME_QUANTISED_ELSEWHERE,
    QUANTISATIONS,
    SPARE,
    STATIC,
    Quantize,
    Smooth,
)
from llmc.passes.quantise.int16 import Int16, with_kernels
from llmc.preprocessing import image_samples
from llmc.runtime.encoder import was_cut
from llmc.targets import TARGETS, host
from llmc.tokens import encoder_of, longest_of

CompileGraph = Callable[..., Any]  # as llmc.driver.compile_graph
ATTENTIONS = ("int8", "float")
DEFAULT_METHOD = "percentile"


@dataclass(frozen=True)
class Quantisation:
    """A checked request.

    Args:
        mode: a key of QUANTISATIONS.
        calib: calibration data of int8-static: a file, a folder of images, or "auto".
        method: how its ranges are chosen, a key of METHODS.
        attention: "int8" or "float", where products are on int8.
        group: of w8, w4 and w4a8, columns that share a scale, 0 for a whole row; None: the mode's own.
        zero_points: of these, whether each group has a level of its own for 0.
        slower: patterns of the products that int8 would slow down, which stay float (`llmc.gains`).
        stats: folder that keeps what calibration gathers, which goes on where it was stopped.
        merged: folders of what was gathered of other parts of the data.
        wanted: whether a pass wants samples, so that calibration data is of use without int8-static.
    """

    mode: str = "none"
    calib: str | Path | None = None
    method: str = DEFAULT_METHOD
    attention: str = "int8"
    wanted: bool = False
    group: int | None = None
    zero_points: bool = False
    slower: tuple[str, ...] = ()
    stats: Path | None = None
    merged: tuple[Path, ...] = ()

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
        if self.method != DEFAULT_METHOD and not self.static:
            raise LlmcError(
                f"ranges are chosen for {STATIC} only",
                at=f"--calib-method {self.method}",
                found=f"--quant {self.mode}",
                hint="leave it out",
            )
        self._check_samples()
        self._check_groups()
        self._check_places()

    def _check_samples(self) -> None:
        if not self.sampled and (self.static or self.wanted):
            who = STATIC if self.static else "a pass of the pipeline"
            hint = "--calib FILE with samples like those to come, or --calib auto for general text"
            raise LlmcError(f"{who} needs calibration data", at="--calib", hint=hint)
        if self.sampled and not (self.static or self.stored or self.wanted):
            found = f"--quant {self.mode}, and no pass that wants samples"
            who, at = f"{STATIC}, w8, w4, w4a8 and --prune", "--calib-merge" if self.merged else "--calib"
            raise LlmcError(f"calibration data is of use to {who} only", at=at, found=found)

    def _check_places(self) -> None:
        if self.stats is not None and self.calib is None:
            hint = "--calib FILE; what is there already is read by --calib-merge"
            raise LlmcError("there are no samples to gather statistics of", at="--calib-stats", hint=hint)
        for folder in self.merged:
            if not folder.is_dir():
                raise LlmcError("there is no such folder of statistics", at=f"--calib-merge {folder}")
        if self.calib not in (None, "auto") and not Path(str(self.calib)).exists():
            raise LlmcError("there is no such calibration file", at=str(self.calib))

    def _check_groups(self) -> None:
        if self.group is not None and not self.stored:
            raise LlmcError(
                "groups are of weights in 8 and 4 bits", at="--group", found=f"--quant {self.mode}"
            )
        if self.zero_points and not self.stored:
            found = f"--quant {self.mode}"
            raise LlmcError("zero points are of weights in 8 and 4 bits", at="--zero-points", found=found)
        if self.zero_points and self.mode == "w8" and self.group == 0:
            hint = "give another --group, or leave one of the two out"
            raise LlmcError(
                "whole rows of 8 bits have no zero points", at="--zero-points --group 0", hint=hint
            )
        if self.group is not None and (self.group < 0 or self.group % 16 or self.group > longest_block(8)):
            hint = f"a multiple of 16 up to {longest_block(8)}, such as 32, 64 or 128, or 0 for a whole row"
            raise LlmcError("there are no products with such groups", at=f"--group {self.group}", hint=hint)

    @property
    def sampled(self) -> bool:
        """Whether something is known of the values of activations."""
        return self.calib is not None or bool(self.merged)

    @property
    def option(self) -> str:
        """As it is typed."""
        return f"--quant {self.mode}"

    @property
    def stored(self) -> bool:
        """Whether weights are stored in blocks."""
        return self.mode in ("w8", "w4", "w4a8")

    @property
    def static(self) -> bool:
        """Whether ranges are found by calibration."""
        return self.mode == STATIC

    def pipeline(
        self,
        integer_attention: bool,
        integer_rows: Collection[str],
        scales: tuple[float, ...] = (),
        stateful: bool = False,
    ) -> Pipeline:
        """The passes that quantise.

        Args:
            integer_attention: whether there are kernels for attention on int8.
            integer_rows: as `Backend.integer_rows`.
            scales: of int8-static, as `self.scales` has them.
            stateful: whether a function has states: then sensitive products of int8 have activations of 16 bits, where
                there are kernels for these.
        """
        on_int8 = integer_attention and self.mode in ("int8", STATIC) and self.attention == "int8"
        text = QUANTISATIONS[self.mode] + (f",{ATTENTION}" if on_int8 else "")
        spares = stateful and Int16.name in integer_rows
        text = f"{SPARE},{text}" if spares and self.mode == "int8" else text
        steps = with_kernels(Pipeline.parse(text, PASSES), integer_rows).steps
        if self.stored:
            first, *rest = steps
            return Pipeline.of(self._blocks(first.change), *(step.change for step in rest))
        found = (_with(step.change, self.slower, scales) for step in steps)
        return Pipeline.of(*found)

    def _blocks(self, change: Pass) -> Blockwise:
        """Blocks of the size that is asked for; with samples, rounded for what products read."""
        assert isinstance(change, Blockwise)
        block = change.block if self.group is None else self.group
        tables = change.table_block if self.group is None else 0
        if not self.sampled:
            return replace(change, block=block, table_block=tables, zeros=self.zero_points)
        return Gptq(
            bits=change.bits,
            block=block,
            zeros=self.zero_points,
            table_block=tables,
            head_bits=change.head_bits,
            frequent=change.frequent,
        )

    def change(self) -> Quantize:
        """The pass of int8 and int8-static that quantises."""
        (found,) = [
            step.change
            for step in Pipeline.parse(QUANTISATIONS[self.mode], PASSES).steps
            if isinstance(step.change, Quantize)
        ]
        return found

    def smoothing(self, graph: Graph) -> Pipeline:
        """What of int8-static comes before calibration: norms without columns that are far larger than others."""
        change = Smooth()
        if not self.static or graph.states or not change.norms(graph):
            return Pipeline(())
        factors = change.found(graph, given())
        return Pipeline.of(replace(change, factors=factors)) if any(factors) else Pipeline(())

    def scales(
        self, graph: Graph, tokenizer: Any, compile_graph: CompileGraph, preprocess: Mapping[str, Any] = {}
    ) -> tuple[float, ...]:
        """The scales of int8-static for `graph`, by calibration; 0 where one scale for all rows loses too much.

        Args:
            tokenizer: the model's `frontends.folder.Tokenizer`, or None.
            compile_graph: makes the native code that calibration runs.
            preprocess: how images become inputs.

        Raises:
            LlmcError: the calibration data is of no use.
        """
        if graph.states:
            raise LlmcError(
                f"{STATIC} does not calibrate functions that have states",
                at="--quant",
                found=", ".join(node.attributes["name"] for node in graph.states[:3]),
                hint="use --quant int8",
            )
        change = replace(self.change(), slower=self.slower)
        sites, named = change.sites(graph), _sources(graph, change)
        first = list(islice(self.samples(graph, tokenizer, preprocess), 1))
        if not (first or self.merged):  # data is refused whatever it is for
            hint = "give some, or use --calib auto"
            raise LlmcError("calibration: there are no samples", at=str(self.calib), hint=hint)
        if not sites:
            return ()
        watched = Graph(graph.inputs, {f"site{i}": site for i, site in enumerate(sites)}, graph.dims)
        for sample in first:  # mistakes show before native code is made
            calibration.want_finite(named, list(interpret.run(watched, sample).values()), 1)
        read = (
            None if self.calib is None else partial(self.samples, tokenizer=tokenizer, preprocess=preprocess)
        )
        seen, weights = [Magnitudes() for _ in sites], _by_column(graph, change)
        with once(partial(observer, compile_graph=compile_graph)) as native:
            known = Given(read, tokenizer, native, str(self.calib), given().kept)
            gather(Walk(watched, named, seen), known)
            found = calibration.scales(seen, self.method)
            noises = [calibration.Noise(w, scale) for w, scale in zip(weights, found, strict=True)]
            also = [np.array(found), *(np.zeros(0) if w is None else w for w in weights)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TextsCut)  # which have been counted
                gather(Walk(watched, named, noises, also), known)
        return tuple(0.0 if n.is_too_much() else scale for n, scale in zip(noises, found, strict=True))

    def samples(
        self, graph: Graph, tokenizer: Any, preprocess: Mapping[str, Any] = {}
    ) -> Iterator[calibration.Sample]:
        """The calibration data as inputs of `graph`; with none, no sample."""
        if self.calib is None:
            return
        _want_own_states(graph)
        if Path(str(self.calib)).is_dir():
            yield from image_samples(Path(str(self.calib)), graph, preprocess)
            return
        cut: list[bool] = []
        encode = None if tokenizer is None else encoder(tokenizer, graph, cut)
        yield from calibration.read_samples(self.calib, graph, encode)
        if any(cut):
            longest = longest_of(tokenizer, graph.dims)
            warnings.warn(TextsCut(sum(cut), len(cut), longest, "calibration: "), stacklevel=2)


def own_steps(graph: Graph, integers: bool) -> tuple[Pipeline, Pipeline]:
    """The passes of a model that comes quantised: as it is imported, and where others quantise.

    Args:
        integers: whether there are integer kernels for it.
    """
    if not any(is_levels(node) for node in graph.everywhere()):
        return Pipeline(()), Pipeline(())
    first, later = CAME_QUANTISED if integers else CAME_QUANTISED_ELSEWHERE
    return Pipeline.parse(first, PASSES), Pipeline.parse(later, PASSES)


def rounding_of(change: Pass) -> str:
    """How a pass rounds weights, with options of `correct-bias` where they say it; empty if it does not."""
    match change:
        case Gptq():
            return "by GPTQ"
        case Blockwise():
            return f"with bits={change.bits},block={change.block},rounding={change.scales}"
        case Quantize():
            return "to halves" if change.mode == "fp16" else "with bits=8,block=0,rounding=largest"
    return "to halves" if isinstance(change, Bfloat16) else ""


def _with(change: Pass, slower: tuple[str, ...], scales: tuple[float, ...]) -> Pass:
    if not isinstance(change, Quantize):
        return change
    return replace(change, slower=slower, scales=scales)


def _sources(graph: Graph, change: Quantize) -> list[str]:
    """For each site the layers that read it."""
    readers: dict[Node, list[str]] = {}
    for product in change.products(graph):
        readers.setdefault(product.inputs[0], []).append(str(product.source))
    return [f"input of {', '.join(names)}" for names in readers.values()]


def _by_column(graph: Graph, change: Quantize) -> list[Any]:
    """For each site, by column, the sum of the squares of the weights that multiply it; None if a convolution reads it.

    A scale for each image takes a walk over the image, so convolutions keep one for all.
    """
    found: dict[Node, Any] = {}
    for node in change.products(graph):
        site, w = node.inputs[:2]
        if node.op != "linear" or found.get(site, 0) is None:
            found[site] = None
            continue
        found[site] = found.get(site, 0) + np.square(w.attributes["value"].array).sum(0)
    return list(found.values())


def _want_own_states(graph: Graph) -> None:
    """Refuse functions that begin with what others have made: samples have no such thing.

    Raises:
        LlmcError: there are states that `graph` reads and does not write.
    """
    if others := [n for node in graph.states if (n := node.attributes["name"]) not in graph.updates]:
        raise LlmcError(
            "calibration data does not reach a function that begins with what another has made",
            found=", ".join(others[:3]),
            hint="leave out the pass that wants samples: of encoder-decoders nothing is calibrated",
        )


def encoder(tokenizer: Any, graph: Graph, cut: list[bool]) -> calibration.Encode:
    """Texts to inputs of batch 1, no longer than the model takes; `cut` gets for each whether it was longer."""
    tool = encoder_of(tokenizer, longest_of(tokenizer, graph.dims))
    given = {node.attributes["name"] for node in graph.inputs}
    names = given & set(tokenizer.inputs)

    def encode(text: str, pair: str | None) -> calibration.Sample:
        (made,) = tool([text if pair is None else (text, pair)])
        cut.append(bool(was_cut([made])))
        values = {"input_ids": made.ids, "token_type_ids": made.type_ids}
        found = {k: np.array([v], np.int64) for k, v in values.items() if k in names}
        return found | ({KEEP: np.arange(len(made.ids))} if KEEP in given else {})

    return encode


@contextmanager
def once(native: Callable[[Graph], AbstractContextManager[Run]]) -> Iterator[Any]:
    """As `native`, for one graph that is run several times: its code is made at the first."""
    runs: list[Run] = []
    with ExitStack() as opened:

        @contextmanager
        def running(graph: Graph) -> Iterator[Run]:
            if not runs:
                runs.append(opened.enter_context(native(graph)))
            yield runs[0]

        yield running


@contextmanager
def observer(watched: Graph, compile_graph: CompileGraph) -> Iterator[Run]:
    """Gives the outputs of `watched` for a sample: by native code where this machine can run it."""
    if not any(host.runs_here(cpu) for target in TARGETS.values() for cpu in target.cpus):
        yield lambda sample: list(interpret.run(watched, sample).values())
        return
    with tempfile.TemporaryDirectory(prefix="llmc-") as place:
        compile_graph(watched, Path(place) / "watched.llmc", only_passes="")
        with llmc.load(Path(place) / "watched.llmc") as model:

            def run(sample: calibration.Sample) -> list[Any]:
                if not watched.states:
                    values = model.run(sample)
                else:
                    with model.session() as session:
                        values = session.run(sample)
                return [values[name] for name in watched.outputs]

            yield run
