"""What a checkpoint holds beside the model that is imported: nobody loses a trained head unasked. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError

FLAG = "--ignore-unused-weights"
# files of a head, by the start of their names; what is listed has no place in a transformers model
HEADS = (
    "model_head.",
    "config_setfit.",
    "pytorch_model_head.",
    "head_config.",
    "value_head.",
    "v_head.",
    "crf.",
)
SETFIT = ("model_head.", "config_setfit.")
CRF = (
    "crf.",
    "crf_layer.",
    "model.crf.",
)  # how a conditional random field is called after a token classifier
_BUFFERS = ("position_ids", "token_type_ids")
_NEXT_SENTENCE = (
    "cls.seq_relationship.",
    "sop_classifier.",
)  # pre-training's other head, of no use to a user


def want_whole(folder: Path, ignore_unused: bool) -> None:
    """Refuse what transformers alone would leave out, or would take only where other packages are installed.

    Raises:
        LlmcError: an adapter lies beside the base weights, or a head in a file of its own.
    """
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if adapters := [n for n in names if n.startswith(("adapter_config.", "adapter_model."))]:
        raise LlmcError(
            "the folder has a PEFT adapter beside its base weights",
            at=str(folder),
            found=", ".join(adapters),
            hint=f"--adapter {folder} merges it; remove it to compile the base",
        )
    heads = [n for n in names if n.startswith(HEADS)]
    if not heads or ignore_unused:
        return
    setfit = [n for n in heads if n.startswith(SETFIT)]
    raise LlmcError(
        "the folder has a SetFit head, which is a pickle and was not opened"
        if setfit
        else "the folder has a head in a file of its own, which is not supported",
        at=str(folder),
        found=", ".join(heads),
        hint=f"{FLAG} compiles the embeddings; classify them by the head where you trust it"
        if setfit
        else f"{FLAG} compiles the model without it",
    )


def of_trunk(model: Any, unexpected: Sequence[str]) -> list[str]:
    """Unused weights of the layers that all heads share: config.json is of another model."""
    trunk = {name for name, _ in model.base_model.named_children()}
    trunk |= {name.split(".")[0] for name, _ in model.base_model.named_parameters()}
    return [k for k in _counted(unexpected) if _local(model, k).split(".")[0] in trunk - {"pooler"}]


def of_heads(model: Any, unexpected: Sequence[str], task: str) -> list[str]:
    """Unused weights of everything else, but for poolers of models that have none and the next-sentence head."""
    idle = _NEXT_SENTENCE if task == "fill-mask" else ()
    trunk = set(of_trunk(model, unexpected))
    return [
        k
        for k in _counted(unexpected)
        if k not in trunk and not k.startswith(idle) and not _local(model, k).startswith("pooler.")
    ]


def want_used(model: Any, unexpected: Sequence[str], task: str, at: str, config: Mapping[str, Any]) -> None:
    """Refuse heads that the import leaves out.

    Raises:
        LlmcError: there are some, all listed.
    """
    left = of_heads(model, unexpected, task)
    if not left:
        return
    if any(name.startswith(CRF) for name in left):
        advice = "the CRF decodes what the model gives: compile the scores of each token and decode them by its weights"
    elif config.get("architectures"):
        advice = "choose the task the model was trained for by --task"
    else:
        advice = "config.json names no architectures: say what the model is for by --task"
    raise LlmcError(
        f"the import does not use all weights of the checkpoint: {', '.join(left)}",
        at=at,
        found=f"{type(model).__name__} for {task}",
        hint=f"{advice}, or leave them out by {FLAG}",
    )


def _counted(unexpected: Sequence[str]) -> list[str]:
    """Position buffers are no weights."""
    return sorted(k for k in unexpected if not k.endswith(_BUFFERS))


def _local(model: Any, name: str) -> str:
    return name.removeprefix(f"{model.base_model_prefix}.")
