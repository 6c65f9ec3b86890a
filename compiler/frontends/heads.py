"""A transformers model with its task's outputs, as one module to export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from llmc.compiler.frontends.sentence import Dense, Sentence, Step

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

    def run(self, values: Sequence[Any]) -> tuple[Mapping[str, Any], Any]:
        """The model's result."""
        given = dict(zip(self.names, values, strict=True))
        result: Mapping[str, Any] = self.model(
            **given, **dict.fromkeys(self.fixed, self.zero), return_dict=True
        )
        return result, given.get("attention_mask")

    def forward(self, *values: Any) -> tuple[Any, ...]:
        result, _ = self.run(values)
        return tuple(result[name] for name in self.outputs)


class EndHead(Head):
    """The head of BART and T5 for sequences: it classifies what stands at a row's last end token.

    Theirs picks rows by a mask, whose count depends on values; the place of that token does not.
    """

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model has such a head."""
        two = getattr(model.config, "is_encoder_decoder", False)
        return bool(two and hasattr(model, "classification_head") and model.config.eos_token_id is not None)

    def run(self, values: Sequence[Any]) -> tuple[Mapping[str, Any], Any]:
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


class SentenceHead(Head):
    """Adds pooling, and dense layers and normalisation on either side of it, as sentence-transformers does.

    Args:
        dense: makes the module of a Dense.
    """

    def __init__(self, head: Head, sentence: Sentence, dense: Callable[[Dense], nn.Module]) -> None:
        super().__init__(head.model, head.names, ("sentence_embedding", "last_hidden_state"), head.fixed)
        self.pooling, self.width = Pooling(sentence.pooling), sentence.width
        self.before, self.steps = _modules(sentence.before, dense), _modules(sentence.steps, dense)

    def forward(self, *values: Any) -> tuple[Any, ...]:
        result, mask = self.run(values)
        hidden = result["last_hidden_state"]
        vector = self.pooling(self.before(hidden), mask)
        vector = self.steps(vector)
        return vector if self.width is None else vector[:, : self.width], hidden


def _modules(steps: Sequence[Step], dense: Callable[[Dense], nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(dense(step) if isinstance(step, Dense) else Normalize() for step in steps))


class Pooling(nn.Module):
    """Token vectors f32 [batch, seq, width] and mask i64 [batch, seq] -> f32 [batch, width * modes]."""

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pooled = [POOL[mode](hidden, mask[:, :, None].to(hidden.dtype)) for mode in self.modes]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, -1)


class Normalize(nn.Module):
    """x / max(|x|, 1e-12) over the last axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, p=2.0, dim=x.ndim - 1)


class DenseLayer(nn.Module):
    """sentence-transformers' Dense: a linear and an activation."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        self.linear.weight = nn.Parameter(weight.float())
        if bias is not None:
            self.linear.bias = nn.Parameter(bias.float())
        self.activation = getattr(nn, activation)()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x))  # type: ignore[no-any-return]  # an nn.Module call is Any


def _first(hidden: Any, mask: Any) -> Any:
    """The first token of each row, wherever padding lies."""
    place = mask[:, :, 0].argmax(1)
    return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def _mean(hidden: Any, mask: Any) -> Any:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _mean_sqrt_len(hidden: Any, mask: Any) -> Any:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Any, mask: Any) -> Any:
    """Token i counts i + 1 times."""
    weights = mask * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


# mode -> function of hidden f32 [batch, seq, width] and mask f32 [batch, seq, 1]
POOL = {
    "cls": _first,
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -1e9).amax(1),
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
}
