"""From a model to an artifact: the road of design.md from end to end, in one file that reads like it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

from llmc import embed
from llmc.compiler import artifact
from llmc.compiler.frontends import dispatch
from llmc.compiler.frontends.imported import MAX_BATCH, Imported
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan import make_plans
from llmc.compiler.promises import run_verified
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError
from llmc.kernels import Kernels
from llmc.package import Build, manifest
from llmc.passes import LEVELS, PASSES
from llmc.passes.append import append_steps
from llmc.passes.compress import shortcuts
from llmc.passes.rows.ragged import blanked, ragged_steps
from llmc.quantisation import Quantisation
from llmc.runtime.manifest import MANIFEST, seal
from llmc.selfcheck import check, record
from llmc.targets import host

Progress = Callable[[str, float], None]

TUNE_SECONDS = 60.0
PADDING = ("zero", "computed")  # what outputs by token hold at padding
MATMUL: Mapping[str, Pipeline] = {  # how products of float32 with weights are computed, and the passes for it
    "fma": Pipeline(()),
    "int8x3": Pipeline.parse("split,cse", PASSES),
}
_UNPACK = Pipeline.parse("unpack", PASSES)  # GPU kernels read plain weights


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
        products: as the manifest has them (runtime/format.md).
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
    products: Sequence[Mapping[str, Any]] = ()

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
            "products": list(self.products),
        }


@dataclass
class _Stages:
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


class Options(TypedDict, total=False):
    """What the three ways to compile have in common, by keyword.

    Args:
        target: a name in `llmc.targets.TARGETS`, or "native" for this machine.
        level: 0 to 3, which pipeline of `llmc.passes.LEVELS` runs; `passes` is a pipeline text instead.
        prune, share, factorize: compression as `--prune 0.3` writes it (docs/compression.md), before `quant`.
        verify_each: hold each pass to its promise by the interpreter, which takes long.
        quant: "none", "int8", "int8-static" or "fp16": see docs/quantisation.md.
        attention: "int8" or "float": what int8 and int8-static do with attention on CPUs.
        calib: calibration data of int8-static, a .txt, .jsonl, .csv or .npz file, or "auto".
        calib_method: "minmax", "percentile" or "entropy".
        padding: what outputs that have a row for each token hold where attention_mask is 0: "zero", which lets
            encoders skip padding, or "computed", the values that the source model has there. The default of
            `compile` is "zero", of the other two "computed".
        matmul: "fma", or "int8x3": float32 products with weights in three parts of 8 bits each, for processors with
            AMX (docs/numerics.md).
        tune: search for the fastest schedule of each product on this machine (docs/tuning.md), for `tune_time`
            seconds at most; those that the cache has take no time.
        keep: folder that gets the graphs and the generated C.
        cc: C compiler command instead of the `ziglang` package's.
        emit: a form of the model beside module.so, one of `llmc.embed.FORMS`.
        prefix: goes before every symbol of a static library.
        progress: called with (stage, fraction done) as each stage begins.
    """

    target: str
    level: int
    passes: str | None
    prune: str | Sequence[str]
    share: str | None
    factorize: str | None
    verify_each: bool
    quant: str
    attention: str
    calib: str | Path | None
    calib_method: str
    padding: str
    matmul: str
    tune: bool
    tune_time: float
    keep: str | Path | None
    cc: str | None
    emit: str
    prefix: str
    progress: Progress | None


class _Order:
    """What `Options` mean, checked before any work begins."""

    def __init__(self, output: str | Path, name: str | None, options: Options) -> None:
        unknown = options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(f"compile got unknown options: {', '.join(sorted(unknown))}")
        self.output, self.name = Path(output), name
        self.level, self.passes = options.get("level", 3), options.get("passes")
        self.verify_each, self.padding = options.get("verify_each", False), options.get("padding", "computed")
        self.keep, self.cc, self.progress = options.get("keep"), options.get("cc"), options.get("progress")
        self.quant = Quantisation(
            options.get("quant", "none"),
            options.get("calib"),
            options.get("calib_method", "percentile"),
            options.get("attention", "int8"),
        )
        self.form = embed.form(options.get("emit", "shared"), options.get("prefix", ""))
        self.target = host.find_target(options.get("target", "native"))
        prune = options.get("prune", ())
        self.compression = shortcuts.compression(
            (prune,) if isinstance(prune, str) else prune, options.get("share"), options.get("factorize")
        )
        self.pipeline = self._pipeline()
        self.tune, self.tune_time = options.get("tune", False), options.get("tune_time", TUNE_SECONDS)
        if self.padding not in PADDING:
            raise LlmcError(
                f"no padding {self.padding!r}", at="--padding", hint=f"use {' or '.join(PADDING)}"
            )
        self.matmul = options.get("matmul", "fma")
        self._check_matmul()
        if self.tune:
            self._check_tuning()
        if self.target.gpus and self.form.name != "shared":
            raise LlmcError("a CUDA artifact has no other form than module.so", at=f"--emit {self.form.name}")

    def _pipeline(self) -> Pipeline:
        if self.passes is None and self.level not in range(len(LEVELS)):
            raise LlmcError(
                f"there is no optimisation level {self.level!r}", hint=f"use 0 to {len(LEVELS) - 1}"
            )
        text = LEVELS[self.level] if self.passes is None else self.passes
        return Pipeline.parse(shortcuts.joined(text, self.compression), PASSES)

    def _check_matmul(self) -> None:
        if self.matmul not in MATMUL:
            raise LlmcError(f"no matmul {self.matmul!r}", at="--matmul", hint=f"use {' or '.join(MATMUL)}")
        if self.matmul == "fma":
            return
        if not any(cpu.tiles for cpu in self.target.cpus):
            raise LlmcError(
                f"--matmul {self.matmul} is for processors with AMX: without, fma is faster",
                at=f"--target {self.target.name}",
                found=", ".join(cpu.name for cpu in self.target.cpus) or "a GPU",
                hint="leave it out, or compile with --target x86-avx512 for a processor that has AMX",
            )
        if self.quant.mode != "none":
            raise LlmcError(
                f"--matmul {self.matmul} is for float32",
                at=f"--quant {self.quant.mode}",
                hint="use one of the two",
            )
        if self.tune:
            raise LlmcError(
                "--tune searches for kernels of fma", at=f"--matmul {self.matmul}", hint="use one of the two"
            )

    def _check_tuning(self) -> None:
        from llmc.targets.tuning import measured_variant

        measured_variant(self.target)

    @property
    def whole(self) -> bool:
        """Whether all that llmc does by itself is asked for."""
        return self.passes is None and self.level == len(LEVELS) - 1


def compile(  # `llmc.compile`: the builtin of this name is not used here
    model: str | Path,
    output: str | Path,
    *,
    task: str = "auto",
    max_batch: int | None = None,
    max_seq: int | None = None,
    name: str | None = None,
    **options: Unpack[Options],
) -> CompileReport:
    """Compile a model into an artifact.

    Args:
        model: Hugging Face folder, .onnx file or .pt2 file.
        output: the artifact to write; one that is there is replaced once the new one is whole.
        task: what to compute, "auto" takes it from the folder; of a file, arrays in and arrays out.
        max_batch, max_seq: upper bounds of the dims.
        name: model name in the manifest.
        options: `target`, `quant` and all others of `Options`.

    Raises:
        LlmcError: the model, an option, the place of the output or the toolchain is not usable. Nothing is left
            behind then, and an artifact of that name stays as it was.
    """
    options.setdefault("padding", PADDING[0])
    bounds = {k: v for k, v in (("max_batch", max_batch), ("max_seq", max_seq)) if v is not None}
    return _compile(lambda: dispatch.load(model, task=task, **bounds), _Order(output, name, options))


def compile_graph(
    graph: Graph | Module, output: str | Path, *, name: str = "graph", **options: Unpack[Options]
) -> CompileReport:
    """Compile a graph, or a module of several functions, into an artifact without tokenizer or labels.

    Functions of a module share weights, kernels and states (docs/ir.md). Options and errors are those of `compile`.

    Raises:
        LlmcError: also where the module is not valid.
    """
    module = Module.of(graph)
    verify_module(module)
    first = next(iter(module.functions.values()))
    imported = Imported(first, name, "graph", "", "", (), None, None, functions=module.functions)
    return _compile(lambda: imported, _Order(output, name, options))


def compile_module(
    module: Any,
    sample: Mapping[str, Any],
    output: str | Path,
    *,
    outputs: Sequence[str] = ("output",),
    labels: Sequence[str] = (),
    preprocess: Mapping[str, Any] | None = None,
    max_batch: int | None = None,
    name: str = "module",
    **options: Unpack[Options],
) -> CompileReport:
    """Compile a PyTorch module by way of `torch.export`; the other arguments are those of `compile`.

    Args:
        module: a `torch.nn.Module` in eval mode that takes tensors and returns a tensor or a tuple of them.
        sample: input name -> example tensor, in the order of `forward`. The first axis is the batch, which is
            dynamic; the other axes keep the example's sizes.
        outputs: their names.
        labels: class names, for the manifest.
        preprocess: what the manifest says of how inputs are made, such as mean and std.

    Raises:
        LlmcError: as `compile`; or the module cannot be traced or holds ops that are not supported.
    """

    def load() -> Imported:
        from llmc.compiler.frontends.module import graph

        made = graph(module, sample, outputs, max_batch or MAX_BATCH)
        return Imported(
            made, name, "module", "", type(module).__name__, tuple(labels), None, None, preprocess or {}
        )

    return _compile(load, _Order(output, name, options))


def _compile(load: Callable[[], Imported], options: _Order) -> CompileReport:
    """The stages in order; `load` is the first."""
    stages, output, chosen = _Stages(options.progress), options.output, options.target
    with artifact.new_folder(output) as folder:
        stages.enter("import the model", 0.02)
        imported = load()
        stages.enter("optimise the graph", 0.4)
        optimised = _optimise(imported, options, stages)
        module, pipeline = optimised.module, optimised.pipeline
        stages.enter("make kernels", 0.5)
        kernels = Kernels.of(module, chosen)
        chosen = kernels.target
        if options.tune:
            stages.enter("tune", 0.5)
            kernels = kernels.tune(options.tune_time, stages.within(0.5, 0.62))
            stages.enter("make kernels", 0.62)
        objects, code = kernels.objects()
        stages.enter("write weights", 0.65)
        plans = make_plans(module, kernels.calls)
        build = Build(folder, module, plans, chosen, options.name or imported.name, options.cc)
        build.write(objects)
        embed.write_form(options.form, folder, build.program, objects, chosen, options.cc)
        if options.keep is not None:
            _keep(Path(options.keep), imported.module, module, {"module.c": build.program, **code})
        stages.enter("self-test", 0.9)
        accepted = record(folder, optimised.answering, optimised.source, build.build_id)
        if imported.tokenizer is not None:
            shutil.copyfile(imported.tokenizer.file, folder / "tokenizer.json")
        fields = manifest(imported, build, pipeline, folder)
        fields |= {"quantisation": options.quant.mode, "selftest": accepted, "products": kernels.products()}
        (folder / MANIFEST).write_text(json.dumps(seal(fields), indent=1))
        check(folder, chosen)
        stages.leave()
    sizes = {p.name: p.stat().st_size for p in sorted(output.iterdir())}
    return CompileReport(
        output,
        stages.seconds,
        sizes,
        chosen.name,
        pipeline,
        sum(len(graph.nodes) for graph in module.functions.values()),
        len({call.kernel.symbol for call in kernels.every}),
        sum(len(plan.leaves) for plan in plans.values()),
        kernels.kept.found,
        kernels.products(),
    )


@dataclass(frozen=True)
class _Optimised:
    """What the passes made.

    Args:
        pipeline: all that ran; where functions differ in that, those of each.
        source: what an artifact without lossy passes is to compute.
        answering: the module that the self-test's answers are of.
    """

    module: Module
    pipeline: str
    source: Module
    answering: Module


def _optimise(imported: Imported, options: _Order, stages: _Stages) -> _Optimised:
    """The passes over every function."""
    functions = imported.module.functions.items()
    parts = {name: _optimise_function(graph, imported, options, stages) for name, graph in functions}
    module = Module({name: part.graph for name, part in parts.items()})
    verify_module(module)
    source = Module({name: part.source for name, part in parts.items()})
    # A lossy pass is meant to change the answers: the artifact then answers for what is left after it.
    lossy = any(part.lossy for part in parts.values())
    texts = {name: str(part.pipeline) for name, part in parts.items()}
    same = len(set(texts.values())) == 1
    text = next(iter(texts.values())) if same else "; ".join(f"{name}: {t}" for name, t in texts.items())
    return _Optimised(module, text, source, module if lossy else source)


@dataclass(frozen=True)
class _Function:
    """What the passes made of one function, what it is to compute without lossy ones, and whether one was."""

    graph: Graph
    pipeline: Pipeline
    source: Graph
    lossy: bool


def _optimise_function(graph: Graph, imported: Imported, options: _Order, stages: _Stages) -> _Function:
    """The passes that are asked for, and those that states, a target, `--quant` and `--matmul` bring along."""
    run = run_verified if options.verify_each else Pipeline.run
    gpu, given = bool(options.target.gpus), graph
    states = append_steps(imported.module) if options.passes is None and options.level else Pipeline(())
    steps = (*states.steps, *options.pipeline.steps, *(_UNPACK.steps if gpu else ()))
    graph, _ = run(Pipeline(steps), graph)
    packing, matmul = Pipeline(()), MATMUL[options.matmul]
    if options.whole and not gpu:
        packing = ragged_steps(graph, blank=options.padding == "zero")
        graph, _ = run(packing, graph)
    if options.quant.calib is not None:
        stages.enter("calibrate", 0.42)
    graph, quant = options.quant.run(graph, imported.tokenizer, compile_graph, run, not gpu)
    graph, _ = run(matmul, graph)
    added = (*quant.steps, *matmul.steps)
    pipeline = Pipeline((*steps, *packing.steps, *added))
    return _Function(graph, pipeline, blanked(given, packing), Pipeline((*steps, *added)).lossy)


def _text(module: Module) -> str:
    """A function alone needs no name."""
    graphs = list(module.functions.values())
    return str(graphs[0]) if len(graphs) == 1 else str(module)


def _keep(folder: Path, imported: Module, module: Module, sources: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "imported.txt").write_text(_text(imported))
        (folder / "optimised.txt").write_text(_text(module))
        for name, text in sources.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise LlmcError(f"cannot keep files: {error.strerror or error}", at=str(folder)) from None
