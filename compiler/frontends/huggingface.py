"""A Hugging Face model folder -> Graph.

The architecture is transformers' own code, traced by `torch.export` with dynamic batch and sequence; weights
come from safetensors, or from pytorch_model.bin unpickled with `weights_only=True`. Nothing is fetched and
no code from the folder is run.
"""

from __future__ import annotations

import inspect as signatures
import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends import forward, images
from llmc.compiler.frontends import tokenizer as tokenizers
from llmc.compiler.frontends.folder import Summary, inspect
from llmc.compiler.frontends.imported import MAX_BATCH, Imported, want_bound
from llmc.compiler.frontends.pretrained import build, first_line
from llmc.compiler.frontends.sentence import Dense, Sentence
from llmc.compiler.frontends.tasks import FAMILIES, scores_of
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.frontends.versions import warn_if_untested
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph

__all__ = ["Imported", "inspect", "load"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


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
            "sentence-embedding" gives `sentence_embedding` and `last_hidden_state`.
        max_batch, max_seq: upper bounds of the dims; the default of max_seq is what the positions allow.
        ignore_unused: leave out weights that the task has no use for, which is an error otherwise.

    Raises:
        LlmcError: the folder, the weights, the architecture or an op of the model is not usable.
    """
    summary = inspect(path, task, ignore_unused)
    max_seq = _bounds(summary, max_batch, max_seq)
    warn_if_untested("torch", "transformers")
    with _quiet():
        tokenizer = tokenizer_of(summary)
        model, outputs = build(summary, ignore_unused)
        graph = _graph(summary, model, outputs, max_batch, max_seq)
    return Imported(
        graph=graph,
        name=summary.path.resolve().name,
        task=summary.task.name,
        model_type=summary.model_type,
        architecture=type(model).__name__,
        labels=summary.labels,
        tokenizer=tokenizer,
        sentence=summary.sentence,
        preprocess=images.preprocessing(summary.root) if _is_vision(summary) else {},
        scores=scores_of(summary.config, summary.task.name, len(summary.labels), str(summary.root)),
    )


def tokenizer_of(summary: Summary) -> Tokenizer | None:
    """The folder's tokenizer as transformers builds it.

    Raises:
        LlmcError: it cannot be built, or pads where the pooling does not look.
    """
    if _is_vision(summary):
        return None
    told = summary.sentence.text if summary.sentence else None
    made = tokenizers.build(summary.tokenizer, summary.root, summary.max_positions, told)
    counted = summary.sentence is not None and "weightedmean" in summary.sentence.pooling
    if made is not None and made.padding_side == "left" and counted:
        raise LlmcError(
            "padding on the left is not supported where the pooling is weightedmean",
            at=str(summary.root / "tokenizer_config.json"),
            found="padding_side: left",
            hint="set it to right if the model was trained so",
        )
    return made


@dataclass(frozen=True)
class TorchModel:
    """The folder's model in PyTorch, called as its artifact is.

    Args:
        names: inputs it takes, i64 `[batch, seq]`.
        outputs: their names, in order.
        run: one tensor for each input -> one for each output.
        tokenizer: None if the folder has none.
    """

    names: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Any
    tokenizer: Tokenizer | None


def load_torch(path: str | Path, task: str = "auto") -> TorchModel:
    """A model folder as PyTorch runs it, to compare with.

    Raises:
        LlmcError: as `load`.
    """
    summary = inspect(path, task, ignore_unused=True)
    with _quiet():
        model, outputs = build(summary, ignore_unused=True)
        names, fixed = _inputs(model)
        head = _head(summary, model, names, fixed, outputs)
        tokenizer = tokenizer_of(summary)
    return TorchModel(tuple(names), tuple(outputs), head, tokenizer)


def _is_vision(summary: Summary) -> bool:
    return FAMILIES[summary.model_type].kind == "vision"


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor progress bars of the libraries; their settings are put back."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as library

        level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
        disabled = logging.root.manager.disable
        library.set_verbosity_error()
        library.disable_progress_bar()
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


def _graph(summary: Summary, model: Any, outputs: tuple[str, ...], max_batch: int, max_seq: int) -> Graph:
    from llmc.compiler.frontends.heads import ROOT
    from llmc.compiler.frontends.torch_export import Declared, to_graph

    if _is_vision(summary):
        return images.graph(summary, model, outputs, max_batch)
    names, fixed = _inputs(model)
    head = _head(summary, model, names, fixed, outputs)
    forward.one_pass(model, max_seq)
    bounds = {"batch": (1, max_batch), "seq": (1, max_seq)}
    if FAMILIES[summary.model_type].own_attention:
        _tabulate(model, max_seq)
    program = _export(head, len(names), bounds, str(summary.root / "config.json"))
    ranges: Mapping[str, Mapping[str, int]] = {
        "attention_mask": {"default": 1, "low": 0, "high": 1},
        "token_type_ids": {"default": 0},
    }
    declared = [Declared(name, ("batch", "seq"), **ranges.get(name, {})) for name in names]
    return to_graph(program, declared, outputs, bounds, ROOT)


def _inputs(model: Any) -> tuple[list[str], list[str]]:
    """Inputs of the graph, and those with one legal value: segments where the model has only one."""
    accepted = signatures.signature(model.forward).parameters
    names = [name for name in INPUTS if name in accepted]
    segments = getattr(model.config, "type_vocab_size", 0)
    if segments > 1 or "token_type_ids" not in names:
        return names, []
    names.remove("token_type_ids")
    return names, ["token_type_ids"] if segments == 1 else []


def _head(
    summary: Summary, model: Any, names: Sequence[str], fixed: Sequence[str], outputs: Sequence[str]
) -> Any:
    from llmc.compiler.frontends.heads import Head, SentenceHead

    forward.whole(model)
    head = Head(model, names, outputs, fixed)
    if summary.task.name != "sentence-embedding":
        return head.eval()
    sentence = summary.sentence or Sentence()
    return SentenceHead(head, sentence, _dense).eval()


def _dense(step: Dense) -> Any:
    """The Dense module with its weights."""
    import torch
    from safetensors.torch import load_file

    from llmc.compiler.frontends.folder import PICKLED, SAFETENSORS, read_weights
    from llmc.compiler.frontends.heads import DenseLayer
    from llmc.compiler.frontends.regular_file import want_all_regular

    want_all_regular(step.folder)
    known = read_weights(step.folder)
    try:
        if known is not None:
            state = load_file(step.folder / SAFETENSORS)
        else:
            state = torch.load(step.folder / PICKLED, weights_only=True, map_location="cpu")
        used = {"linear.weight", "linear.bias"} if step.bias else {"linear.weight"}
        if left := sorted(set(state) - used):
            at = str(step.folder)
            raise LlmcError(f"the Dense layer has weights that it does not use: {', '.join(left)}", at=at)
        return DenseLayer(
            state["linear.weight"], state["linear.bias"] if step.bias else None, step.activation
        )
    except (KeyError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise LlmcError(f"cannot load the Dense layer: {first_line(error)}", at=str(step.folder)) from None


def _export(head: Any, inputs: int, bounds: Mapping[str, tuple[int, int]], at: str) -> Any:
    """torch.export with dynamic axes; a dim whose bound is 1 is static.

    Raises:
        LlmcError: the model does not run as config.json, which is `at`, describes it.
    """
    import torch

    from llmc.compiler.frontends.tracing import trace

    shape = tuple(min(high, sample) for sample, (_, high) in zip((2, 7), bounds.values(), strict=True))
    axes = {
        axis: torch.export.Dim(name, min=low, max=high)
        for axis, (name, (low, high)) in enumerate(bounds.items())
        if high > 1
    }
    sample = tuple(torch.zeros(shape, dtype=torch.long) for _ in range(inputs))
    with torch.no_grad():
        _make_tables(head, sample, at)
        return trace(head, sample, tuple(axes for _ in sample))


def _make_tables(head: Any, sample: Sequence[Any], at: str) -> None:
    """One run, in which models make the tables that they keep.

    Raises:
        LlmcError: config.json says what the model cannot be run with.
    """
    try:
        head(*sample)
    except Exception as error:  # anything that transformers and torch raise
        raise LlmcError(
            f"transformers cannot run the model: {first_line(error)}",
            at=at,
            found=type(error).__name__,
            hint="is config.json the one saved with these weights?",
        ) from error


def _tabulate(model: Any, max_seq: int) -> None:
    """Relative-position buckets as tables, in the families that have them."""
    from llmc.compiler.frontends.buckets import tabulate

    tabulate(model, max_seq)
