"""A folder's transformers model with every weight from its files.

transformers would initialise a head that the checkpoint does not hold at random; here that is an error.
"""

from __future__ import annotations

import inspect as signatures
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from llmc.compiler.frontends import classes, leftovers
from llmc.compiler.frontends.folder import Summary
from llmc.compiler.frontends.tasks import Task, read_by
from llmc.errors import LlmcError, first_line


def build(summary: Summary, ignore_unused: bool = False) -> tuple[Any, Task]:
    """The model in eval mode with all its weights in f32, and the task that it does, by what it reads.

    Attention is transformers' own ("eager"): see `implementations`.

    Args:
        ignore_unused: whether the checkpoint may hold weights of heads that the task has no use for.

    Raises:
        LlmcError: there is no such class, or the weights are not those of the model, or cannot be read.
    """
    root = str(summary.root)
    config = classes.config_of(root, summary.config)
    kind = classes.class_of(config, summary.architecture, summary.task, f"{root}/config.json")
    task = read_by(summary.task, kind.__name__, reads(kind.main_input_name))
    can_pool = "add_pooling_layer" in signatures.signature(kind.__init__).parameters
    pools = can_pool and "pooler_output" in task.outputs
    without = {"add_pooling_layer": False} if can_pool else {}
    model, info = _loaded(summary, kind, {} if pools else without)
    if pools and any("pooler." in key for key in info["missing_keys"]):
        # a pooler without trained weights must not be exported
        model, info = _loaded(summary, kind, without)
    _check_weights(summary, model, info)
    if not ignore_unused:
        left = info["unexpected_keys"]
        leftovers.want_used(model, left, task.name, root, summary.config)
    return model, task


_READS = {"input_values": "audio", "input_features": "audio", "pixel_values": "image"}


def reads(main: str | Sequence[str]) -> str:
    """What the first input of a class is; some name several."""
    names = [main] if isinstance(main, str) else main
    return _READS.get(names[0], "") if names else ""


def _loaded(summary: Summary, kind: Any, options: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    import torch

    try:
        model, info = kind.from_pretrained(
            str(summary.root),
            local_files_only=True,
            weights_only=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported by name below
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
            f"transformers cannot load the model: {first_line(error)}",
            at=str(summary.root),
            found=type(error).__name__,
            hint="is config.json the one saved with these weights?",
        ) from error
    return model.eval().requires_grad_(False), info


def _check_weights(summary: Summary, model: Any, info: Mapping[str, Any]) -> None:
    """Every weight of the model must come from the files, and none of the trunk's may be left over."""
    at = str(summary.root)
    if misfits := sorted(info["mismatched_keys"]):
        shapes = [f"{name} is {list(has)}, wanted {list(wants)}" for name, has, wants in misfits]
        raise LlmcError(
            f"weights do not fit config.json: {_some([name for name, *_ in misfits])}",
            at=at,
            found=_some(shapes),
            hint="config.json and weights are of different models",
        )
    wanted = f"{type(model).__name__} for {summary.task.name}"
    if missing := sorted(info["missing_keys"]):
        raise LlmcError(
            f"the checkpoint has no weights for {_some(missing)}",
            at=at,
            found=f"a {summary.architecture} checkpoint, wanted {wanted}",
            hint="choose the task the model was trained for, or fine-tune it first",
        )
    if left := leftovers.of_trunk(model, info["unexpected_keys"]):
        raise LlmcError(
            f"the checkpoint has weights that the model of config.json lacks: {_some(left)}",
            at=at,
            hint="config.json and weights are of different models",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
