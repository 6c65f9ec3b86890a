"""A Hugging Face model folder -> Graph.

The architecture is transformers' own code, traced by `torch.export` with dynamic batch and sequence; weights
come from safetensors or, unpickled with `weights_only=True`, from pytorch_model.bin. Nothing is fetched and no
code from the folder is run.
"""

from __future__ import annotations

import inspect as signatures
import logging
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.folder import Summary, Tokenizer, inspect
from llmc.compiler.frontends.sentence import Dense, Sentence
from llmc.compiler.frontends.tasks import FAMILIES
from llmc.compiler.graph import Graph
from llmc.errors import LlmcError

__all__ = ["Imported", "inspect", "load"]

MAX_BATCH = 1024
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Imported:
    """A model ready for the passes, and what its package needs to know.

    Args:
        graph: inputs `input_ids`, `attention_mask` (default 1) and, where the model tells segments apart,
            `token_type_ids` (default 0), all i64 [batch, seq]; outputs named as transformers names them.
        task: a name in `tasks.TASKS`.
        architecture: transformers' class.
        labels: class names, empty if the task has none.
        tokenizer: None if the folder has no tokenizer.json.
        sentence: pooling and normalisation, computed in the graph; None for other tasks.
    """

    graph: Graph
    name: str
    task: str
    model_type: str
    architecture: str
    labels: tuple[str, ...]
    tokenizer: Tokenizer | None
    sentence: Sentence | None


def load(path: str | Path, task: str = "auto", max_batch: int = MAX_BATCH, max_seq: int | None = None) -> Imported:
    """Import a model folder.

    Args:
        path: folder with config.json and weights.
        task: "auto" takes it from config.json and modules.json; see `tasks.TASKS`. "feature-extraction" gives
            `last_hidden_state`, and `pooler_output` if the checkpoint holds the pooler's weights.
            "sentence-embedding" gives `sentence_embedding` and `last_hidden_state`.
        max_batch, max_seq: upper bounds of the dims; the default of max_seq is what the positions allow.

    Raises:
        LlmcError: the folder, the weights, the architecture or an op of the model is not usable.
    """
    summary = inspect(path, task)
    max_seq = _bounds(summary, max_batch, max_seq)
    with _quiet():
        model, outputs = _model(summary)
        graph = _graph(summary, model, outputs, max_batch, max_seq)
    return Imported(
        graph=graph,
        name=summary.path.resolve().name,
        task=summary.task.name,
        model_type=summary.model_type,
        architecture=type(model).__name__,
        labels=summary.labels,
        tokenizer=summary.tokenizer,
        sentence=summary.sentence,
    )


def _bounds(summary: Summary, max_batch: int, max_seq: int | None) -> int:
    for name, value in (("max_batch", max_batch), ("max_seq", max_seq)):
        if value is not None and value < 1:
            raise LlmcError(f"{name} is {value}", hint="give a number from 1 on")
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


# --- building the model


def _model(summary: Summary) -> tuple[Any, tuple[str, ...]]:
    """The model with all its weights in f32, and the outputs it has."""
    import transformers

    name = FAMILIES[summary.model_type].prefix + summary.task.suffix
    kind = getattr(transformers, name, None)
    if kind is None:
        raise LlmcError(f"transformers has no {name}", hint="choose another task")
    outputs = summary.task.outputs
    can_pool = "add_pooling_layer" in signatures.signature(kind.__init__).parameters
    if "pooler_output" not in outputs:
        return _checked(summary, kind, {"add_pooling_layer": False} if can_pool else {}), outputs
    if can_pool:
        model, info = _loaded(summary, kind, {})
        if not any("pooler." in key for key in info["missing_keys"]):
            _check_weights(summary, model, info)
            return model, outputs
    # a pooler without trained weights must not be exported
    return _checked(summary, kind, {"add_pooling_layer": False} if can_pool else {}), outputs[:1]


def _checked(summary: Summary, kind: Any, options: Mapping[str, Any]) -> Any:
    model, info = _loaded(summary, kind, options)
    _check_weights(summary, model, info)
    return model


def _loaded(summary: Summary, kind: Any, options: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    import torch

    from llmc.compiler.frontends.masks import ADDED, WHOLE, register

    register()
    added = FAMILIES[summary.model_type].own_attention
    try:
        model, info = kind.from_pretrained(
            str(summary.root),
            local_files_only=True,
            weights_only=True,
            dtype=torch.float32,
            attn_implementation=ADDED if added else WHOLE,
            output_loading_info=True,
            **options,
        )
    except pickle.UnpicklingError:
        raise LlmcError(
            "pytorch_model.bin holds more than weights and was not opened",
            at=str(summary.root),
            hint="save the model as safetensors where you trust it",
        ) from None
    except Exception as error:  # anything transformers and torch raise for a folder they cannot read
        raise LlmcError(
            f"transformers cannot load the model: {_first_line(error)}", at=str(summary.root), found=type(error).__name__
        ) from error
    return model.eval().requires_grad_(False), info


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _check_weights(summary: Summary, model: Any, info: Mapping[str, Any]) -> None:
    """Every weight of the model must come from the files, and none of the trunk's may be left over."""
    at = str(summary.root)
    if missing := sorted(info["missing_keys"]):
        raise LlmcError(
            f"the checkpoint has no weights for {_some(missing)}",
            at=at,
            found=f"a {summary.architecture} checkpoint, wanted {type(model).__name__} for {summary.task.name}",
            hint="choose the task the model was trained for, or fine-tune it first",
        )
    if info.get("mismatched_keys") or info.get("error_msgs"):
        what = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get("mismatched_keys") or ())
        raise LlmcError(
            f"weights do not fit config.json: {_some(what or list(info['error_msgs']))}",
            at=at,
            hint="config.json and weights are of different models",
        )
    if left := _left_over(model, info["unexpected_keys"]):
        raise LlmcError(
            f"the checkpoint has weights that the model of config.json lacks: {_some(left)}",
            at=at,
            hint="config.json and weights are of different models",
        )


def _left_over(model: Any, unexpected: Sequence[str]) -> list[str]:
    """Unused weights of the trunk; other heads and position buffers may be left over."""
    trunk = {name.split(".")[0] for name, _ in model.base_model.named_parameters()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    buffers = ("position_ids", "token_type_ids")
    return sorted(k for k in unexpected if k.removeprefix(prefix).split(".")[0] in trunk and not k.endswith(buffers))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# --- exporting it


def _graph(summary: Summary, model: Any, outputs: tuple[str, ...], max_batch: int, max_seq: int) -> Graph:
    from llmc.compiler.frontends.heads import ROOT
    from llmc.compiler.frontends.torch_export import Declared, to_graph

    names, fixed = _inputs(model)
    head = _head(summary, model, names, fixed, outputs)
    bounds = {"batch": (1, max_batch), "seq": (1, max_seq)}
    program = _export(head, len(names), bounds)
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


def _head(summary: Summary, model: Any, names: Sequence[str], fixed: Sequence[str], outputs: Sequence[str]) -> Any:
    from llmc.compiler.frontends.heads import Head, SentenceHead

    _whole_activations(model)
    head = Head(model, names, outputs, fixed)
    if summary.task.name != "sentence-embedding":
        return head.eval()
    sentence = summary.sentence or Sentence()
    layers = [_dense(step) for step in sentence.steps if isinstance(step, Dense)]
    return SentenceHead(head, sentence, layers).eval()


def _dense(step: Dense) -> Any:
    """The Dense module with its weights."""
    import torch
    from safetensors.torch import load_file

    from llmc.compiler.frontends.folder import PICKLED, SAFETENSORS, read_weights
    from llmc.compiler.frontends.heads import DenseLayer

    known = read_weights(step.folder)
    try:
        if known is not None:
            state = load_file(step.folder / SAFETENSORS)
        else:
            state = torch.load(step.folder / PICKLED, weights_only=True, map_location="cpu")
        return DenseLayer(state["linear.weight"], state["linear.bias"] if step.bias else None, step.activation)
    except (KeyError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise LlmcError(f"cannot load the Dense layer: {_first_line(error)}", at=str(step.folder)) from None


def _whole_activations(model: Any) -> None:
    """gelu's tanh form written out in Python -> torch's gelu, which the graph keeps whole."""
    import torch
    from transformers import activations

    spelled = (activations.NewGELUActivation, activations.FastGELUActivation)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, spelled):
                setattr(module, name, torch.nn.GELU("tanh"))


def _export(head: Any, inputs: int, bounds: Mapping[str, tuple[int, int]]) -> Any:
    """torch.export with dynamic axes; a dim whose bound is 1 is static."""
    import torch

    from llmc.compiler.frontends.buckets import tabulated

    shape = tuple(min(high, sample) for sample, (_, high) in zip((2, 7), bounds.values(), strict=True))
    axes = {
        axis: torch.export.Dim(name, min=low, max=high)
        for axis, (name, (low, high)) in enumerate(bounds.items())
        if high > 1
    }
    sample = tuple(torch.zeros(shape, dtype=torch.long) for _ in range(inputs))
    with torch.no_grad(), tabulated(bounds["seq"][1]):
        head(*sample)
        return _traced(lambda: torch.export.export(head, sample, dynamic_shapes=(tuple(axes for _ in sample),)))


def _traced(export: Callable[[], Any]) -> Any:
    """The exported program; what the tracer cannot follow becomes one error with the model's line."""
    try:
        return export()
    except Exception as error:  # torch.export raises many kinds, all about the model's code
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "transformers" in f.filename]
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None
        raise LlmcError(
            f"torch.export cannot trace the model: {_first_line(error)}",
            at=at,
            found=type(error).__name__,
            hint="control flow on tensor values, or on sizes other than batch and seq, cannot be compiled",
        ) from error
