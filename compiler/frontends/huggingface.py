"""A Hugging Face model folder -> Graph.

The architecture is transformers' own code, traced by `torch.export` with dynamic batch and sequence; weights
come from safetensors, or from pytorch_model.bin unpickled with `weights_only=True`. Nothing is fetched and
no code from the folder is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends import (
    forward,
    limits,
    padded_rows,
    processors,
    seq2seq_folder,
    vision_folder,
    vision_processors,
)
from llmc.compiler.frontends import tokenizer as tokenizers
from llmc.compiler.frontends.ctc import decoder_of
from llmc.compiler.frontends.folder import Summary, inspect
from llmc.compiler.frontends.imported import MAX_BATCH, Imported, want_bound
from llmc.compiler.frontends.inputs import TEXT, inputs_of
from llmc.compiler.frontends.pretrained import build
from llmc.compiler.frontends.program import asked, export, head_of
from llmc.compiler.frontends.quiet import quiet
from llmc.compiler.frontends.tasks import GENERATION, SCORING, TASKS, Task, scores_of
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.frontends.versions import warn_if_untested
from llmc.errors import LlmcError, LlmcWarning

if TYPE_CHECKING:
    from llmc.compiler.frontends.eyes import Eyes
    from llmc.compiler.frontends.processors import Processor
    from llmc.compiler.graph import Graph

__all__ = ["Imported", "inspect", "load"]

BUCKETED = ("MPNetEncoder", "DebertaV2Encoder")  # whose relative positions come in logarithmic buckets


def load(
    path: str | Path,
    task: str = "auto",
    max_batch: int = MAX_BATCH,
    max_seq: int | None = None,
    ignore_unused: bool = False,
) -> Imported:
    """Import a model folder.

    Args:
        path: folder with config.json and weights.
        task: "auto" takes it from config.json and modules.json; see `tasks.TASKS`. "feature-extraction" gives
            `last_hidden_state`, and `pooler_output` if the checkpoint holds the pooler's weights.
            "sentence-embedding" gives `sentence_embedding` and `last_hidden_state`. "text-generation" gives the
            function `step`, which keeps states from call to call (see `stepping`), encoder-decoders `encode` and `step`
            (see `seq2seq`), and "language-modeling" the logits of whole texts; the latter stands in, with a warning,
            where the states cannot be placed.
        max_batch, max_seq: upper bounds of the dims; the default of max_seq is what the positions allow.
        ignore_unused: leave out weights that the task has no use for, which is an error otherwise.

    Raises:
        LlmcError: the folder, the weights, the architecture or an op of the model is not usable.
    """
    summary = inspect(path, task, ignore_unused)
    max_seq = _bounds(summary, max_batch, max_seq)
    warn_if_untested("torch", "transformers")
    with quiet():
        model, does = build(summary, ignore_unused)
        tokenizer = tokenizer_of(summary) if _reads_texts(model, does) else None
        padding = padded_rows.fault(model, does.name, summary.config, tokenizer)
        limits.want_within(model, max_seq, str(summary.root / "config.json"))
        made = _functions(summary, model, does, max_seq)
        steps = next(iter(made.functions.values()), None)
        graph = steps or _whole(summary, model, made.does, max_batch, max_seq)
        shapes = {node.attributes["name"]: node.shape for node in graph.inputs}
        processor = _processor(summary.root, shapes, made.eyes)
        decoder = decoder_of(summary.root, type(model).__name__)
        asked_for = inputs_of(model, summary.root, max_batch, max_seq).bounds if steps is None else {}
    _tell_narrowed(graph, asked_for, summary.root)
    for told in filter(None, (_idle_batch(steps, max_batch), _whole_only(made.lacks), padding)):
        warnings.warn(LlmcWarning(f"{summary.root}: {told}"), stacklevel=2)
    return Imported(
        graph=graph,
        name=summary.path.resolve().name,
        task=made.does.name,
        model_type=summary.model_type,
        architecture=type(model).__name__,
        labels=decoder.tokens if decoder else summary.labels,
        tokenizer=tokenizer if TEXT in shapes or made.functions else None,
        sentence=summary.sentence,
        preprocess=dict(processor.steps) if processor else {},
        processor=processor,
        scores=_scores(summary, model, made.does),
        decoder=decoder.facts if decoder else {},
        **_generates(summary, made, max_seq, tokenizer),
    )


@dataclass(frozen=True)
class _Made:
    """What a model is for: its functions if it generates text, why it does not token by token, how it sees."""

    does: Task
    functions: Mapping[str, Graph]
    lacks: str = ""
    eyes: Eyes | None = None


def _functions(summary: Summary, model: Any, does: Task, max_seq: int) -> _Made:
    if vision_folder.is_one(model, does.name):
        functions, eyes = vision_folder.load(summary, model, max_seq)
        return _Made(TASKS[vision_folder.TASK], functions, eyes=eyes)
    functions, lacks = _generating(summary, model, does, max_seq)
    return _Made(TASKS[SCORING] if lacks else does, functions, lacks)


def _reads_texts(model: Any, does: Task) -> bool:
    return TEXT in signature(model.forward).parameters or seq2seq_folder.is_one(model, does.name)


def _processor(root: Path, shapes: Mapping[str, Any], eyes: Eyes | None) -> Processor | None:
    return processors.for_inputs(root, shapes) if eyes is None else vision_processors.of(root, eyes)


def _scores(summary: Summary, model: Any, does: Task) -> str | None:
    """What makes the logits what is told; SigLIP has one for each pair by itself."""
    said = scores_of(summary.config, does.name, len(summary.labels), str(summary.root))
    return said or ("sigmoid" if hasattr(model, "logit_bias") else None)


def _generating(summary: Summary, model: Any, does: Task, max_seq: int) -> tuple[Mapping[str, Graph], str]:
    """The functions of a model that generates text, the first one first; none, and why, where that cannot be had."""
    from llmc.compiler.frontends.stepping import STEP

    if seq2seq_folder.is_one(model, does.name):
        return seq2seq_folder.load(summary, model, max_seq)
    if does.name != GENERATION:
        return {}, ""
    step, lacks = _steps(summary, model, max_seq)
    return {STEP: step} if step is not None else {}, lacks


def _idle_batch(steps: Graph | None, max_batch: int) -> str:
    if steps is None or max_batch == MAX_BATCH:
        return ""
    return (
        "max_batch has no effect on a model that generates: a session holds one text; task language-modeling "
        "takes batches"
    )


def _whole_only(lacks: str) -> str:
    return lacks and f"it gives the logits of whole texts and cannot generate token by token: {lacks}"


def _generates(summary: Summary, made: _Made, max_seq: int, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Of a model that generates text: its functions, and what its folder says."""
    from llmc.compiler.frontends import generation_config

    if made.eyes is not None:
        return vision_folder.generates(summary, made.functions, made.eyes, tokenizer)
    if not made.functions:
        return {}
    if len(made.functions) > 1:
        return seq2seq_folder.generates(summary, made.functions)
    return generation_config.of_functions(summary.root, summary.config, made.functions, max_seq)


def _tell_narrowed(graph: Graph, asked: Mapping[str, tuple[int, int]], root: Path) -> None:
    """Sizes that were asked for and that the artifact will not take: the code of the model is another for them."""
    lost = [
        f"{name} is {graph.dims[name][0]} to {graph.dims[name][1]}, not {low} to {high} as asked"
        for name, (low, high) in asked.items()
        if name in graph.dims and tuple(graph.dims[name]) != (low, high)
    ]
    if lost:
        told = f"{root}: {'; '.join(lost)}: the model's code holds for no other sizes"
        warnings.warn(LlmcWarning(told), stacklevel=3)


def tokenizer_of(summary: Summary) -> Tokenizer | None:
    """The folder's tokenizer as transformers builds it.

    Raises:
        LlmcError: it cannot be built.
    """
    told = summary.sentence.text if summary.sentence else None
    return tokenizers.build(summary.tokenizer, summary.root, summary.max_positions, told)


def _bounds(summary: Summary, max_batch: int, max_seq: int | None) -> int:
    want_bound("max_batch", max_batch)
    want_bound("max_seq", max_seq)
    if max_seq is not None and max_seq > summary.max_positions:
        raise LlmcError(
            f"max_seq {max_seq} is more than the model's {summary.max_positions} positions",
            at=str(summary.root / "config.json"),
            hint=f"use at most {summary.max_positions}",
        )
    return max_seq or summary.max_positions


def _whole(summary: Summary, model: Any, task: Task, max_batch: int, max_seq: int) -> Graph:
    """The model's graph; what stands in its way is said by what is known of its family."""
    try:
        return _graph(summary, model, task, max_batch, max_seq)
    except LlmcError as error:
        raise limits.explained(error, model.config, str(summary.root / "config.json")) from error


def _graph(summary: Summary, model: Any, task: Task, max_batch: int, max_seq: int) -> Graph:
    """The model's graph, which computes what the model does: see `reference`."""
    import torch

    from llmc.compiler.frontends import reference
    from llmc.compiler.frontends.heads import ROOT, EndHead
    from llmc.compiler.frontends.implementations import choose
    from llmc.compiler.frontends.torch_export import to_graph

    at = str(summary.root / "config.json")
    inputs = inputs_of(model, summary.root, max_batch, max_seq)
    values = reference.sample(inputs, model.config, reference.sizes_for(model.config, max_seq))
    tensors = [torch.from_numpy(values[name]) for name in inputs.names]
    forward.in_one_piece(model)
    head, outputs = head_of(summary, model, task, inputs, tensors)

    def run() -> dict[str, Any]:
        with torch.no_grad():
            return {n: v.numpy() for n, v in zip(outputs, head(*tensors), strict=True)}

    wanted = asked(run, at)
    if EndHead.fits(model):
        head = EndHead(model, inputs.names, outputs, inputs.fixed).eval()
    choose(model, run, wanted, values, max_seq)
    forward.whole(model)
    forward.one_pass(model, max_seq)
    _tabulate(model, max_seq)
    program, inputs = export(head, inputs, model.config, at)
    graph = to_graph(program, inputs.given, outputs, inputs.bounds, ROOT)
    reference.want_same(graph, values, wanted, at)
    return graph


def _steps(summary: Summary, model: Any, max_seq: int) -> tuple[Graph | None, str]:
    """The function `step` of a model that generates text; None, and why, where it has to do without states."""
    import torch

    from llmc.compiler.frontends.implementations import EAGER, set_way
    from llmc.compiler.frontends.report import UnsupportedError
    from llmc.compiler.frontends.stepping import step_graph

    at = str(summary.root / "config.json")

    def whole(ids: Any) -> Any:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False, return_dict=True).logits.numpy()

    forward.in_one_piece(model)
    try:
        return step_graph(model, max_seq, at, lambda ids: asked(lambda: whole(ids), at)), ""
    except (UnsupportedError, LlmcError) as error:
        set_way(model, EAGER)
        return None, error.problem if isinstance(error, LlmcError) else error.reason


def _tabulate(model: Any, max_seq: int) -> None:
    """Relative-position buckets as tables, in the families that have them."""
    if not any(type(module).__name__ in BUCKETED for module in model.modules()):
        return
    from llmc.compiler.frontends.buckets import tabulate

    tabulate(model, max_seq)
