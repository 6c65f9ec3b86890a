"""The modules of sentence-transformers after the transformer, as one module to export with it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmc.compiler.frontends.heads import Head
from llmc.compiler.frontends.sentence import Dense, Layer, Sentence, Step
from llmc.errors import LlmcError, first_line

State = Mapping[str, torch.Tensor]


class SentenceHead(Head):
    """Adds pooling, and what lies on either side of it, to a model."""

    def __init__(self, head: Head, sentence: Sentence) -> None:
        super().__init__(head.model, head.names, ("sentence_embedding", "last_hidden_state"), head.fixed)
        self.pooling, self.width = Pooling(sentence.pooling), sentence.width
        self.before = nn.ModuleList(map(_module, sentence.before))
        self.steps = nn.Sequential(*map(_module, sentence.steps))
        self.weighted = any(isinstance(step, WeightedLayers) for step in self.before)

    def forward(self, *values: Any) -> tuple[Any, ...]:
        result, mask = self.run(values, **({"output_hidden_states": True} if self.weighted else {}))
        hidden = tokens = result["last_hidden_state"]
        for step in self.before:
            tokens = step(result["hidden_states"]) if isinstance(step, WeightedLayers) else step(tokens)
        vector = self.steps(self.pooling(tokens, mask))
        return vector if self.width is None else vector[:, : self.width], hidden


def _module(step: Step) -> nn.Module:
    if isinstance(step, str):
        return Normalize()
    state = _state(step.folder)
    try:
        made = _dense(step, state) if isinstance(step, Dense) else LAYERS[step.kind](step, state)
        made.load_state_dict(dict(state), strict=True)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        kind = "Dense" if isinstance(step, Dense) else step.kind
        raise LlmcError(
            f"the weights of {kind} do not fit its settings: {first_line(error)}",
            at=str(step.folder),
            found=", ".join(f"{name} {list(t.shape)}" for name, t in sorted(state.items()))[:160],
        ) from None
    return made.float()


def _state(folder: Path) -> State:
    """The weights of a module."""
    from safetensors.torch import load_file

    from llmc.compiler.frontends.folder import PICKLED, SAFETENSORS, read_weights
    from llmc.compiler.frontends.regular_file import want_all_regular

    want_all_regular(folder)
    known = read_weights(folder)
    try:
        if known is not None:
            return dict(load_file(folder / SAFETENSORS))
        return dict(torch.load(folder / PICKLED, weights_only=True, map_location="cpu"))
    except (OSError, RuntimeError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise LlmcError(f"cannot load a module's weights: {first_line(error)}", at=str(folder)) from None


def _linear(state: State, name: str) -> nn.Linear:
    rows, columns = state[f"{name}.weight"].shape
    return nn.Linear(columns, rows, f"{name}.bias" in state)


def _dense(step: Dense, state: State) -> nn.Module:
    if step.bias != ("linear.bias" in state):
        raise ValueError(f"bias is {str(step.bias).lower()} in config.json")
    return DenseLayer(state, step)


class DenseLayer(nn.Module):
    """A linear and an activation; its input may be added, through another linear where it has another width."""

    def __init__(self, state: State, step: Dense) -> None:
        super().__init__()
        self.linear, self.adds = _linear(state, "linear"), step.residual
        if "residual.weight" in state:
            self.residual = _linear(state, "residual")
        self.activation = getattr(nn, step.activation)()

    def forward(self, x: torch.Tensor) -> Any:
        made = self.activation(self.linear(x))
        return made + getattr(self, "residual", nn.Identity())(x) if self.adds else made


class Norm(nn.Module):
    """Layer normalisation of the sentence's vector."""

    def __init__(self, step: Layer, state: State) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(len(state["norm.weight"]))

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(x)


class Convolutions(nn.Module):
    """Convolutions of several widths over the tokens, side by side."""

    def __init__(self, step: Layer, state: State) -> None:
        super().__init__()
        shapes = [state[f"convs.{i}.weight"].shape for i in range(sum("weight" in name for name in state))]
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, padding=(k - 1) // 2) for o, i, k in shapes)

    def forward(self, x: torch.Tensor) -> Any:
        rows = x.transpose(1, 2)
        return torch.cat([conv(rows) for conv in self.convs], 1).transpose(1, 2)


class WeightedLayers(nn.Module):
    """The mean of the vectors after each layer, weighted."""

    def __init__(self, step: Layer, state: State) -> None:
        super().__init__()
        self.start = step.start
        self.layer_weights = nn.Parameter(torch.zeros(state["layer_weights"].shape))

    def forward(self, layers: Sequence[torch.Tensor]) -> Any:
        kept = list(layers[self.start :])
        parts = self.layer_weights / self.layer_weights.sum()
        if len(kept) != len(parts):
            problem = f"WeightedLayerPooling weights {len(parts)} layers, and the model has {len(kept)}"
            raise LlmcError(problem, found=f"layer_start {self.start}")
        return sum(part * layer for part, layer in zip(parts.unbind(), kept, strict=True))


LAYERS = {"LayerNorm": Norm, "CNN": Convolutions, "WeightedLayerPooling": WeightedLayers}


class Normalize(nn.Module):
    """x / max(|x|, 1e-12) over the last axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, p=2.0, dim=x.ndim - 1)


class Pooling(nn.Module):
    """Token vectors f32 [batch, seq, width] and mask i64 [batch, seq] -> f32 [batch, width * modes]."""

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pooled = [POOL[mode](hidden, mask[:, :, None].to(hidden.dtype)) for mode in self.modes]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, -1)


def _at(hidden: Any, place: Any) -> Any:
    """Of each row the token at `place`."""
    return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def _first(hidden: Any, mask: Any) -> Any:
    """The first token of each row, wherever padding lies."""
    return _at(hidden, mask[:, :, 0].argmax(1))


def _last(hidden: Any, mask: Any) -> Any:
    """The last token of each row; zeros of a row without tokens."""
    return _at(hidden * mask, (mask * _places(hidden))[:, :, 0].argmax(1))


def _places(hidden: Any) -> Any:
    """1, 2, 3 ... along the tokens, f32 [1, seq, 1]."""
    return torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]


def _mean(hidden: Any, mask: Any) -> Any:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _mean_sqrt_len(hidden: Any, mask: Any) -> Any:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Any, mask: Any) -> Any:
    """The first token counts once, the next one twice, and so on, wherever padding lies."""
    before = mask[:, :, 0].argmax(1).to(hidden.dtype)[:, None, None]
    weights = mask * (_places(hidden) - before)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


# mode -> function of hidden f32 [batch, seq, width] and mask f32 [batch, seq, 1]
POOL = {
    "cls": _first,
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -1e9).amax(1),
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
