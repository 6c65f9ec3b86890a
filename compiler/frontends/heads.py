"""A transformers model with its task's outputs, as one module to export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

ROOT = "model."  # where the wrapped model sits, to be left out of module paths


class Head(nn.Module):
    """`forward(input_ids, attention_mask, ...)` -> the named outputs of the model, in order.

    Args:
        model: a transformers model in eval mode.
        names: its inputs, in order.
        outputs: names of the outputs.
        fixed: inputs that have one legal value.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], outputs: Sequence[str], fixed: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.names, self.outputs, self.fixed = model, tuple(names), tuple(outputs), tuple(fixed)
        self.register_buffer("zero", torch.zeros((1, 1), dtype=torch.long), persistent=False)

    def run(self, values: Sequence[Any], **options: Any) -> tuple[Mapping[str, Any], Any]:
        """The model's result, and the mask."""
        given = dict(zip(self.names, values, strict=True))
        _of_one_size(given)
        result: Mapping[str, Any] = self.model(
            **given, **dict.fromkeys(self.fixed, self.zero), **options, return_dict=True
        )
        return result, given.get("attention_mask")

    def forward(self, *values: Any) -> tuple[Any, ...]:
        result, _ = self.run(values)
        return tuple(result[name] for name in self.outputs)


def _of_one_size(given: Mapping[str, Any]) -> None:
    """Tell the tracer of texts with choices, [batch, choices, seq], that all that is said of them has their sizes.

    It would find out too late: the logits' rows, counted by the mask's sizes, are divided by the ids' choices.
    """
    ids = given.get("input_ids")
    if ids is None or ids.ndim != 3:
        return
    for other in given.values():
        if other.ndim == ids.ndim:
            for size, known in zip(other.shape, ids.shape, strict=True):
                torch._check(size == known)  # type: ignore[no-untyped-call]


class EndHead(Head):
    """The head of BART and T5 for sequences: it classifies what stands at a row's last end token.

    Theirs picks rows by a mask, whose count depends on values; the place of that token does not.
    """

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model has such a head."""
        two = getattr(model.config, "is_encoder_decoder", False)
        return bool(two and hasattr(model, "classification_head") and model.config.eos_token_id is not None)

    def run(self, values: Sequence[Any], **options: Any) -> tuple[Mapping[str, Any], Any]:
        """The logits."""
        given = dict(zip(self.names, values, strict=True))
        model: Any = self.model
        ids = given["input_ids"]
        shifted = {"decoder_input_ids": model._shift_right(ids)} if hasattr(model, "_shift_right") else {}
        hidden = model.base_model(**given, **shifted, return_dict=True)[0]
        places = torch.arange(ids.shape[1])[None, :]
        last = torch.where(ids == model.config.eos_token_id, places, 0).amax(1)
        chosen = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        return {"logits": model.classification_head(chosen)}, given.get("attention_mask")
