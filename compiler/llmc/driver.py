"""From a model to an artifact: all stages in order, each in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

from llmc import embed, gains, kept_imports, preprocessing, tokens
from llmc.compiler import artifact, extensions
from llmc.compiler.countable import want_countable
from llmc.compiler.frontends import chat_template
from llmc.compiler.frontends.axes import Asked
from llmc.compiler.frontends.imported import MAX_BATCH, Imported
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.plan import Plan, make_plans
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError, extras_named
from llmc.keep import keep
from llmc.kernels import Kernels
from llmc.optimise import Gathered, Optimised, gathered, optimise
from llmc.options import PADDING, TUNE_SECONDS, Options, Order
from llmc.package import Build, manifest
from llmc.report import CompileReport, Progress, Stages
from llmc.runtime.manifest import MANIFEST, seal
from llmc.selfcheck import check, record
from llmc.targets import toolchain

__all__ = [
    "TUNE_SECONDS",
    "CompileReport",
    "Options",
    "Progress",
    "calibrate",
    "compile",
    "compile_graph",
    "compile_module",
]


def compile(  # `llmc.compile`: the builtin of this name is not used here
    model: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    ensemble: str | Path | None = None,
    task: str = "auto",
    max_batch: int | None = None,
    max_seq: int | None = None,
    name: str | None = None,
    ignore_unused_weights: bool = False,
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    dims: Mapping[str, Asked] | None = None,
    fixed: Mapping[str, float] | None = None,
    **options: Unpack[Options],
) -> CompileReport:
    """Compile a model into an artifact.

    Args:
        model: Hugging Face folder, .onnx file, .pt2 file, or a graph's text with its weights beside it; or several of
            one signature, an ensemble's members, which become one artifact (docs/models.md).
        output: the artifact to write; one that is there is replaced once the new one is whole.
        ensemble: how the members' answers become one: "mean", which is the default of several models, "vote", a JSON
            file of weights, or "stack:FILE".
        task: what to compute, "auto" takes it from the folder; of a file, arrays in and arrays out.
        max_batch, max_seq: upper bounds of the dims.
        name: model name in the manifest.
        ignore_unused_weights: leave out heads of a folder that the task has no use for, which is an error otherwise.
        base: of a folder that is a PEFT adapter, its base model's; None: what the adapter names, if it lies beside.
        adapter: a PEFT adapter's folder, merged into the model.
        adapters: LoRA adapters that stay beside the model, by name -> folder: a session chooses one, or none.
        dims: of an .onnx file, dynamic axes that always have one size, or the bounds of others: by name.
        fixed: of an .onnx file, inputs that always have one value: name -> number.
        options: `target`, `quant` and all others of `Options`.

    Raises:
        LlmcError: the model, an option, the place of the output or the toolchain is not usable. Nothing is left
            behind then, and an artifact of that name stays as it was.
    """
    options.setdefault("padding", PADDING[0])
    asked: dict[str, Any] = {"max_batch": max_batch, "max_seq": max_seq, "base": base, "adapter": adapter}
    asked |= {"dims": dims, "fixed": fixed}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    given |= {"task": task, "ignore_unused": ignore_unused_weights}
    return _compile(_loading(model, ensemble, adapters, given), Order(output, name, options))


@extras_named()
def calibrate(
    model: str | Path | Sequence[str | Path],
    stats: str | Path,
    *,
    parts: int = 1,
    ensemble: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    ignore_unused_weights: bool = False,
    **asked: Any,
) -> Gathered:
    """Gather what a compile wants to know of `calib`, for `calib_merge`; the other arguments are those of `compile`.

    Args:
        stats: folder that keeps it; what is there already is not gathered again.
        parts: how many parts of the data there are in all: what depends on others waits until they are merged in.

    Raises:
        LlmcError: as `compile`; or `stats` has what is not of this model, these options and these samples.
    """
    names = ("task", "max_batch", "max_seq", "base", "adapter", "dims", "fixed")
    importing = {n: v for n in names if (v := asked.pop(n, None)) is not None}
    options = cast(Options, {"padding": PADDING[0], **asked, "calib_stats": stats})
    order = Order("calibrated", None, options)
    stages = Stages(order.progress)
    stages.enter("import the model", 0.02)
    load = _loading(model, ensemble, adapters, {**importing, "ignore_unused": ignore_unused_weights})
    imported = load()
    if imported.processor is not None:
        preprocessing.want_same(imported.processor)
    want_countable(imported.module)
    stages.enter("calibrate", 0.4)
    return gathered(imported, order, compile_graph, parts)


def _loading(
    model: str | Path | Sequence[str | Path],
    ensemble: str | Path | None,
    adapters: Mapping[str, str | Path] | None,
    given: Mapping[str, Any],
) -> Callable[[], Imported]:
    """What imports the model, or the models."""
    if ensemble is not None or not isinstance(model, str | Path):
        members = [model] if isinstance(model, str | Path) else list(model)
        return _ensemble(members, str(ensemble or "mean"), adapters, given)
    load = partial(kept_imports.load, model, **given)
    return _beside(load, adapters) if adapters else load


def _ensemble(
    models: Sequence[str | Path],
    text: str,
    adapters: Mapping[str, str | Path] | None,
    options: Mapping[str, Any],
) -> Callable[[], Imported]:
    """Several models as one; what the files of the ensemble say is looked at before any model."""
    from llmc.compiler.frontends.combining import method_of
    from llmc.compiler.frontends.ensemble import joined, member_names

    if adapters or "adapter" in options:
        hint = "merge it into its base as a member of its own: --member ADAPTER --base BASE"
        raise LlmcError("an adapter is of one model, and an ensemble is several", at="--adapter", hint=hint)
    names = member_names(models)
    method = method_of(text, names)

    def loaded() -> Imported:
        members = [kept_imports.load(model, **options) for model in models]
        for member in members[1:]:  # that of the first is the ensemble's
            if member.processor is not None:
                preprocessing.want_same(member.processor)
        return joined(members, names, method)

    return loaded


def _beside(load: Callable[[], Imported], adapters: Mapping[str, str | Path]) -> Callable[[], Imported]:
    """The model with adapters beside it."""

    def loaded() -> Imported:
        from llmc.compiler.frontends.beside_base import with_adapters

        return with_adapters(load(), adapters)

    return loaded


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
    return _compile(lambda: imported, Order(output, name, options))


def compile_module(
    module: Any,
    sample: Mapping[str, Any],
    output: str | Path,
    *,
    outputs: Sequence[str] = ("output",),
    labels: Sequence[str] = (),
    preprocess: Mapping[str, Any] | None = None,
    task: str = "module",
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
        preprocess: how images or sounds become the input, as runtime/format.md says it.
        task: what the outputs mean, such as "image-classification" for one named "logits"; they are arrays otherwise.

    Raises:
        LlmcError: as `compile`; or the module cannot be traced or holds ops that are not supported.
    """

    def load() -> Imported:
        from llmc.compiler.frontends.module import graph
        from llmc.compiler.frontends.tasks import TASKS, near

        if task not in ("module", *TASKS):
            raise LlmcError(f"no task {task!r}", hint=near(task, ["module", *TASKS], "tasks"))
        made = graph(module, sample, outputs, max_batch or MAX_BATCH)
        return Imported(
            made, name, task, "", type(module).__name__, tuple(labels), None, None, preprocess or {}
        )

    return _compile(load, Order(output, name, options))


@extras_named()
def _compile(load: Callable[[], Imported], order: Order) -> CompileReport:
    """The stages in order; `load` is the first."""
    stages, target = Stages(order.progress), order.target
    with (
        artifact.new_folder(order.output) as folder,
        toolchain.telling(lambda line: order.say(f"compile: {line}")),
    ):
        stages.enter("import the model", 0.02)
        imported = load()
        if imported.processor is not None:
            preprocessing.want_same(imported.processor)
        want_countable(imported.module)
        stages.enter("optimise the graph", 0.4)
        optimised = optimise(imported, order, stages, compile_graph)
        module, pipeline = optimised.module, optimised.pipeline
        stages.enter("make kernels", 0.5)
        kernels = Kernels.of(module, target)
        gained = gains.of_compile(imported, order, kernels, optimised.left, compile_graph)
        if order.tune:
            stages.enter("tune", 0.5)
            kernels = kernels.tune(order.tune_time, stages.within(0.5, 0.62))
            stages.enter("make kernels", 0.62)
        code, target = kernels.code(), kernels.target
        stages.enter("write weights", 0.65)
        plans = make_plans(module, kernels.calls)
        build = Build(folder, module, plans, target, order.name or imported.name, order.cc, imported.adapters)
        build.write(code)
        embed.write_form(order.form, folder, build.program, code, target, order.cc)
        if order.keep is not None:
            sources = {"module.c": build.program, **code.sources}
            keep(Path(order.keep), imported, optimised, sources, order.say)
        stages.enter("self-test", 0.9)
        cases, source = optimised.cases, optimised.source
        accepted = record(folder, module, cases, source, build.build_id, halves=kernels.backend.halves)
        if imported.tokenizer is not None:
            imported.tokenizer.write(folder / tokens.FILE)
        if imported.chat_template is not None:
            (folder / chat_template.FILE).write_text(imported.chat_template, encoding="utf-8")
        fields = manifest(imported, build, pipeline, folder)
        fields |= {"quantisation": optimised.quantisation, "effects": optimised.effects}
        fields |= {"selftest": accepted, "products": kernels.products()}
        if optimised.losses:
            fields["losses"] = [loss.to_dict() for loss in optimised.losses]
        if added := extensions.described():
            fields["extensions"] = added
        (folder / MANIFEST).write_text(json.dumps(seal(fields), indent=1))
        check(folder, target, optimised)
        stages.leave()
    return _report(order, stages, optimised, kernels, plans, gained)


def _report(
    order: Order,
    stages: Stages,
    optimised: Optimised,
    kernels: Kernels,
    plans: Mapping[str, Plan],
    gained: gains.Gains | None,
) -> CompileReport:
    return CompileReport(
        path=order.output,
        seconds=stages.seconds,
        sizes={p.name: p.stat().st_size for p in sorted(order.output.iterdir())},
        target=kernels.target.name,
        pipeline=optimised.pipeline,
        nodes=sum(len(graph.nodes) for graph in optimised.module.functions.values()),
        kernels=len({call.kernel.symbol for call in kernels.every}),
        steps=sum(len(plan.leaves) for plan in plans.values()),
        cached=kernels.kept.found,
        runs_here=bool(order.backend.runs_here(order.target)),
        products=kernels.products(),
        losses=[loss.to_dict() for loss in optimised.losses],
        effects=optimised.effects,
        gains=None if gained is None else gained.to_dict(),
    )
