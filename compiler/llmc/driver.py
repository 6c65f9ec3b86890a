"""From a model to an artifact: the road of design.md from end to end, in one file that reads like it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llmc
from llmc import embed
from llmc.compiler import artifact
from llmc.compiler.calls import Call
from llmc.compiler.counted import given_dims
from llmc.compiler.frontends import dispatch
from llmc.compiler.frontends.imported import MAX_BATCH, Imported
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan import Plan, make_plan
from llmc.compiler.program import Tensor, Variant, signature, write_program
from llmc.compiler.promises import run_verified
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES, shortcuts
from llmc.passes.ragged import blanked, ragged_steps
from llmc.quantisation import Quantisation
from llmc.runtime import sources as c
from llmc.runtime.manifest import FORMAT, MANIFEST, MODULE, WEIGHTS, seal
from llmc.runtime.weights import HEADER_BYTES, weights_header
from llmc.selfcheck import check, record
from llmc.targets import Cpu, Target, host, store, toolchain

Progress = Callable[[str, float], None]

PADDING = ("zero", "computed")  # what outputs by token hold at padding
_FATBIN = "llmc_fatbin"  # the symbol that module.c knows it by
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

    def leave(self) -> None:
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._since
        self._name = ""


@dataclass(frozen=True)
class _Options:
    """What `compile` and `compile_graph` share; see there."""

    output: Path
    target: Target
    pipeline: Pipeline
    keep: str | Path | None
    cc: str | None
    progress: Progress | None
    name: str | None
    quant: Quantisation
    form: embed.Form
    verify_each: bool = False
    ragged: bool = False
    padding: str = "computed"

    def __post_init__(self) -> None:
        if self.padding not in PADDING:
            raise LlmcError(
                f"no padding {self.padding!r}", at="--padding", hint=f"use {' or '.join(PADDING)}"
            )


def compile(  # `llmc.compile`: the builtin of this name is not used here
    model: str | Path,
    output: str | Path,
    *,
    target: str = "native",
    task: str = "auto",
    level: int = 3,
    passes: str | None = None,
    prune: str | Sequence[str] = (),
    share: str | None = None,
    factorize: str | None = None,
    verify_each: bool = False,
    quant: str = "none",
    calib: str | Path | None = None,
    calib_method: str = "percentile",
    max_batch: int | None = None,
    max_seq: int | None = None,
    padding: str = "zero",
    keep: str | Path | None = None,
    cc: str | None = None,
    emit: str = "shared",
    prefix: str = "",
    progress: Progress | None = None,
    name: str | None = None,
) -> CompileReport:
    """Compile a model into an artifact.

    Args:
        model: Hugging Face folder, .onnx file or .pt2 file.
        output: the artifact to write; one that is there is replaced once the new one is whole.
        target: a name in `llmc.targets.TARGETS`, or "native" for this machine.
        task: what to compute, "auto" takes it from the folder; of a file, arrays in and arrays out.
        level: 0 to 3, which pipeline of `llmc.passes.LEVELS` runs; `passes` is a pipeline text instead.
        prune, share, factorize: compression as `--prune 0.3` writes it (docs/compression.md), before `quant`.
        verify_each: hold each pass to its promise by the interpreter, which takes long.
        quant: "none", "int8", "int8-static" or "fp16": see docs/quantisation.md.
        calib: calibration data of int8-static, a .txt, .jsonl, .csv or .npz file, or "auto".
        calib_method: "minmax", "percentile" or "entropy".
        max_batch, max_seq: upper bounds of the dims.
        padding: what outputs that have a row for each token hold where attention_mask is 0: "zero", which lets
            encoders skip padding, or "computed", the values that the source model has there.
        keep: folder that gets the graphs and the generated C.
        cc: C compiler command instead of the `ziglang` package's.
        emit: a form of the model beside module.so, one of `llmc.embed.FORMS`.
        prefix: goes before every symbol of a static library.
        progress: called with (stage, fraction done) as each stage begins.
        name: model name in the manifest.

    Raises:
        LlmcError: the model, an option, the place of the output or the toolchain is not usable. Nothing is left
            behind then, and an artifact of that name stays as it was.
    """
    compression = shortcuts.compression((prune,) if isinstance(prune, str) else prune, share, factorize)
    pipeline = _pipeline(level, passes, compression)
    options = _Options(
        Path(output),
        host.find_target(target),
        pipeline,
        keep,
        cc,
        progress,
        name,
        Quantisation(quant, calib, calib_method),
        embed.form(emit, prefix),
        verify_each,
        _whole_level(level, passes),
        padding,
    )
    bounds = {k: v for k, v in (("max_batch", max_batch), ("max_seq", max_seq)) if v is not None}
    return _compile(lambda: dispatch.load(model, task=task, **bounds), options)


def compile_graph(
    graph: Graph,
    output: str | Path,
    *,
    target: str = "native",
    level: int = 3,
    passes: str | None = None,
    quant: str = "none",
    calib: str | Path | None = None,
    calib_method: str = "percentile",
    keep: str | Path | None = None,
    cc: str | None = None,
    emit: str = "shared",
    prefix: str = "",
    progress: Progress | None = None,
    name: str = "graph",
) -> CompileReport:
    """Compile a graph into an artifact without tokenizer or labels; arguments and errors as of `compile`."""
    options = _Options(
        Path(output),
        host.find_target(target),
        _pipeline(level, passes),
        keep,
        cc,
        progress,
        name,
        Quantisation(quant, calib, calib_method),
        embed.form(emit, prefix),
        ragged=_whole_level(level, passes),
    )
    imported = Imported(graph, name, "graph", "", "", (), None, None)
    return _compile(lambda: imported, options)


def compile_module(
    module: Any,
    sample: Mapping[str, Any],
    output: str | Path,
    *,
    outputs: Sequence[str] = ("output",),
    labels: Sequence[str] = (),
    preprocess: Mapping[str, Any] | None = None,
    max_batch: int | None = None,
    target: str = "native",
    level: int = 3,
    passes: str | None = None,
    keep: str | Path | None = None,
    cc: str | None = None,
    progress: Progress | None = None,
    name: str = "module",
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
    options = _Options(
        Path(output),
        host.find_target(target),
        _pipeline(level, passes),
        keep,
        cc,
        progress,
        name,
        Quantisation(),
        embed.form("shared", ""),
    )

    def load() -> Imported:
        from llmc.compiler.frontends.module import graph

        made = graph(module, sample, outputs, max_batch or MAX_BATCH)
        return Imported(
            made, name, "module", "", type(module).__name__, tuple(labels), None, None, preprocess or {}
        )

    return _compile(load, options)


def _whole_level(level: int, passes: str | None) -> bool:
    """Whether all that llmc does by itself is asked for."""
    return passes is None and level == len(LEVELS) - 1


def _pipeline(level: int, passes: str | None, more: str = "") -> Pipeline:
    if passes is None and level not in range(len(LEVELS)):
        raise LlmcError(f"there is no optimisation level {level!r}", hint=f"use 0 to {len(LEVELS) - 1}")
    text = shortcuts.joined(LEVELS[level] if passes is None else passes, more)
    return Pipeline.parse(text, PASSES)


def _compile(load: Callable[[], Imported], options: _Options) -> CompileReport:
    """The stages in order; `load` is the first."""
    stages, output, chosen = _Stages(options.progress), options.output, options.target
    if chosen.gpus and options.form.name != "shared":
        raise LlmcError("a CUDA artifact has no other form than module.so", at=f"--emit {options.form.name}")
    with artifact.new_folder(output) as folder:
        stages.enter("import the model", 0.02)
        imported = load()
        stages.enter("optimise the graph", 0.4)
        run = run_verified if options.verify_each else Pipeline.run
        steps = (*options.pipeline.steps, *(_UNPACK.steps if chosen.gpus else ()))
        graph, _ = run(Pipeline(steps), imported.graph)
        packing = Pipeline(())
        if options.ragged and not chosen.gpus:
            packing = ragged_steps(graph, blank=options.padding == "zero")
            graph, _ = run(packing, graph)
        if options.quant.calib is not None:
            stages.enter("calibrate", 0.42)
        graph, added = options.quant.run(graph, imported.tokenizer, compile_graph, run)
        pipeline = Pipeline((*steps, *packing.steps, *added.steps))
        stages.enter("make kernels", 0.5)
        calls = _lowered(graph, chosen)
        chosen = chosen.serving(call.kernel.family for call in calls)
        kept = store.Store(store.folder())
        objects, code = _objects(calls, chosen, kept)
        stages.enter("write weights", 0.65)
        plan = make_plan(graph, calls)
        build = _Build(folder, graph, plan, chosen, options.name or imported.name, options.cc)
        build.write(objects)
        embed.write_form(options.form, folder, build.program, objects, chosen, options.cc)
        if options.keep is not None:
            _keep(Path(options.keep), imported.graph, graph, {"module.c": build.program, **code})
        stages.enter("self-test", 0.9)
        # A lossy pass is meant to change the answers: the artifact then answers for the graph after it.
        lossy = Pipeline((*steps, *added.steps)).lossy
        source = blanked(imported.graph, packing)
        accepted = record(folder, graph if lossy else source, source, build.build_id)
        if imported.tokenizer is not None:
            shutil.copyfile(imported.tokenizer.file, folder / "tokenizer.json")
        fields = _manifest(imported, build, str(pipeline), folder)
        fields |= {"quantisation": options.quant.mode, "selftest": accepted}
        (folder / MANIFEST).write_text(json.dumps(seal(fields), indent=1))
        check(folder, chosen)
        stages.leave()
    sizes = {p.name: p.stat().st_size for p in sorted(output.iterdir())}
    kernels = {c.kernel.symbol for c in calls}
    return CompileReport(
        output,
        stages.seconds,
        sizes,
        chosen.name,
        str(pipeline),
        len(graph.nodes),
        len(kernels),
        len(plan.steps),
        kept.found,
    )


def _lowered(graph: Graph, target: Target) -> tuple[Call, ...]:
    """The calls of a graph."""
    if target.gpus:
        from llmc.targets.cuda.build import find_nvcc
        from llmc.targets.cuda.lower import lower as lower_for_gpu

        find_nvcc()
        return lower_for_gpu(graph)
    from llmc.targets.lower import lower

    return lower(graph)


def _objects(
    calls: Sequence[Call], target: Target, kept: store.Store
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The machine code of the calls' kernels by symbol, and the source of what was not made from TIR."""
    if not target.gpus:
        from llmc.targets.build import compile_calls

        return compile_calls(calls, target, kept), {}
    from llmc.targets.cuda.build import cuda_source, fatbin

    kernels = {call.kernel.symbol: call.kernel for call in calls}
    source = cuda_source({symbol: k.emit(symbol, None) for symbol, k in kernels.items()})
    return {_FATBIN: fatbin(source, target.gpus, kept)}, {"kernels.cu": source}


class _Build:
    """The native part of an artifact: weights.bin, module.so, llmc.h and bench."""

    def __init__(
        self, folder: Path, graph: Graph, plan: Plan, target: Target, name: str, cc: str | None
    ) -> None:
        self.folder, self.graph, self.plan, self.target, self.name, self.cc = (
            folder,
            graph,
            plan,
            target,
            name,
            cc,
        )
        self.build_id = ""
        self.program = ""

    def write(self, objects: Mapping[str, bytes]) -> None:
        weights = self.folder / WEIGHTS
        digest = artifact.write_weights(weights, self.plan, HEADER_BYTES)
        variants = [_variant(cpu) for cpu in self.target.cpus] or [Variant("cuda", 0, 0)]

        def text(build_id: str) -> str:
            gpus = self.target.gpus
            return write_program(self.graph, self.plan, variants, self.name, build_id, digest, gpus)

        parts = [llmc.__version__.encode(), digest.encode(), text("").encode(), *objects.values()]
        self.build_id = hashlib.sha256(b"\0".join(parts)).hexdigest()
        artifact.stamp_weights(weights, weights_header(self.build_id, self.plan.weights_bytes))
        self.program = text(self.build_id)
        self._link(objects)
        shutil.copyfile(c.HEADER, self.folder / "llmc.h")

    def _link(self, objects: Mapping[str, bytes]) -> None:
        module = self.folder / MODULE
        with tempfile.TemporaryDirectory(prefix="llmc-") as place:
            runtime = c.CUDA_SOURCES if self.target.gpus else c.MODULE_SOURCES
            sources = [Path(place) / "module.c", *runtime]
            sources[0].write_text(self.program)
            for name, code in objects.items():
                if name == _FATBIN:
                    sources.append(toolchain.embed(Path(place), name, code))
                    continue
                sources.append(Path(place) / f"{name}.o")
                sources[-1].write_bytes(code)
            libraries = c.CUDA_LIBRARIES if self.target.gpus else c.MODULE_LIBRARIES
            self._compile(module, sources, c.MODULE_FLAGS, libraries)
        definition = c.bench_definition(hashlib.sha256(module.read_bytes()).hexdigest())
        flags = (*c.BENCH_FLAGS, definition)
        self._compile(self.folder / "bench", c.BENCH_SOURCES, flags, c.BENCH_LIBRARIES)

    def _compile(
        self, output: Path, sources: Sequence[Path], flags: Sequence[str], libraries: Sequence[str]
    ) -> None:
        toolchain.build(output, sources, c.FOLDER, flags, libraries, self.target.zig, self.cc)


def _variant(cpu: Cpu) -> Variant:
    from llmc.targets.kernels.peak import peak_flops

    return Variant(cpu.name, cpu.features, peak_flops(cpu))


def _keep(folder: Path, imported: Graph, graph: Graph, sources: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "imported.txt").write_text(str(imported))
        (folder / "optimised.txt").write_text(str(graph))
        for name, text in sources.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise LlmcError(f"cannot keep files: {error.strerror or error}", at=str(folder)) from None


def _manifest(imported: Imported, build: _Build, pipeline: str, folder: Path) -> dict[str, Any]:
    inputs, outputs = signature(build.graph)
    fields: dict[str, Any] = {
        "format": FORMAT,
        "llmc": llmc.__version__,
        "name": build.name,
        "build_id": build.build_id,
        "task": imported.task,
        "inputs": [_tensor_entry(t) for t in inputs],
        "outputs": [_tensor_entry(t) for t in outputs],
        "dims": {name: list(build.graph.dims[name]) for name in given_dims(build.graph)},
        "target": build.target.name,
        "machine": build.target.machine,
        "variants": _variant_entries(build.target),
        "pipeline": pipeline,
        "files": artifact.file_entries(folder),
        "postprocess": {},
        "sizes": {
            "parameters": sum(
                w.attributes["value"].array.size for w in imported.graph.nodes if w.op == "constant"
            ),
            "code_bytes": sum((folder / f).stat().st_size for f in (MODULE, "bench")),
            "weights_bytes": build.plan.weights_bytes,
            "kernels": len({s.kernel.symbol for s in build.plan.steps if isinstance(s, Call)}),
            "steps": len(build.plan.steps),
        },
    }
    if imported.preprocess:
        fields["preprocess"] = dict(imported.preprocess)
    if imported.labels:
        fields["labels"] = list(imported.labels)
    if imported.sentence is not None:
        fields["postprocess"] = {
            "pooling": "+".join(imported.sentence.pooling),
            "normalize": "normalize" in imported.sentence.steps,
        }
    if imported.tokenizer is not None:
        fields["tokenizer"] = _tokenizer_entry(imported.tokenizer, build.graph)
    return fields


def _variant_entries(target: Target) -> list[dict[str, Any]]:
    if target.gpus:
        return [{"name": "cuda", "features": [f"an NVIDIA GPU: {', '.join(target.gpus)} or later"]}]
    return [{"name": cpu.name, "features": [cpu.needs]} for cpu in target.cpus]


def _tensor_entry(tensor: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": tensor.name,
        "dtype": tensor.type.dtype,
        "shape": [d if isinstance(d, int) else str(d) for d in tensor.type.shape],
    }
    if tensor.default is not None:
        entry["default"] = tensor.default
    if tensor.low is not None:
        entry["range"] = [tensor.low, tensor.high]
    return entry


def _tokenizer_entry(tokenizer: Any, graph: Graph) -> dict[str, Any]:
    import tokenizers

    token = tokenizers.Tokenizer.from_file(str(tokenizer.file)).id_to_token(tokenizer.pad_id)
    longest = min(
        tokenizer.max_length, graph.dims["seq"].high if "seq" in graph.dims else tokenizer.max_length
    )
    return {
        "file": "tokenizer.json",
        "max_length": longest,
        "pad_id": tokenizer.pad_id,
        "pad_token": token if token is not None else "[PAD]",
    }
