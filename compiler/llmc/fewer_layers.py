"""A model with some of its layers, or of its neurons, to be taught by the whole: Sanh et al. 2019, "DistilBERT"."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from llmc.errors import LlmcError, many
from llmc.units import Units, bias_of, let_train

_WIDTHS = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "d_ff")


def kept_of(whole: int, count: int) -> list[int]:
    """Which layers stay: `count` of `whole`, evenly spread from the first on."""
    return [place * whole // count for place in range(count)]


def fewer(model: Any, count: int) -> Any:
    """A model of the same class with `count` layers, which begin as every k-th of `model`'s.

    Raises:
        LlmcError: the model has no more than so many, or it is not one stack of layers.
    """
    whole = getattr(model.config, "num_hidden_layers", None)
    if not isinstance(whole, int) or len(stacks := _stacks(model, whole)) != 1:
        raise LlmcError(f"{type(model).__name__} is not one stack of layers", at=f"--layers {count}")
    if count >= whole:
        raise LlmcError(
            f"the model has {many(whole, 'layers')}",
            at=f"--layers {count}",
            hint=f"give from 1 to {whole - 1}",
        )
    kept = kept_of(whole, count)
    student = type(model)(_config(model.config, whole, kept))
    student.load_state_dict(_renamed(model.state_dict(), stacks[0], kept))
    return student.eval()


def freeze(model: Any, count: int | None) -> int:
    """Leave only what comes after the first `count` layers to train, None: two thirds of them; returns how many.

    Raises:
        LlmcError: there are no more than so many, or it is not one stack of layers.
    """
    whole = getattr(model.config, "num_hidden_layers", None)
    if not isinstance(whole, int) or len(stacks := _stacks(model, whole)) != 1:
        raise LlmcError(f"{type(model).__name__} is not one stack of layers", at="--freeze")
    kept = whole * 2 // 3 if count is None else count
    if kept >= whole:
        raise LlmcError(
            f"the model has {many(whole, 'layers')}",
            at=f"--freeze {kept}",
            hint=f"give from 0 to {whole - 1}",
        )
    let_train(model)
    named = list(model.named_parameters())
    begins = next(i for i, (name, _) in enumerate(named) if name.startswith(f"{stacks[0]}.{kept}."))
    for _, weight in named[:begins]:  # the embeddings, which come first, and the lower layers
        weight.requires_grad_(False)
    return kept


def narrower(model: Any, units: Units) -> Any:
    """A model of the same class whose feed-forward blocks have the neurons that `units` keeps.

    Raises:
        LlmcError: config.json cannot say so.
    """
    import torch

    weights = dict(model.state_dict())
    whole = {group.count for group, _ in units.kept()}
    names = [name for name in _WIDTHS if getattr(model.config, name, 0) in (*whole, None)]
    if len(whole) != 1 or not names:
        raise LlmcError(f"{type(model).__name__} has no one width of its feed-forward blocks", at="--neurons")
    for group, kept in units.kept():
        index = torch.from_numpy(kept)
        for rows in group.made:
            weights[rows.name] = weights[rows.name].index_select(int(rows.turned), index)
            if (bias := bias_of(rows.name)) in weights:
                weights[bias] = weights[bias][index]
        for part in group.read:
            weights[part.name] = weights[part.name].index_select(1 - int(part.turned), index)
    config = copy.deepcopy(model.config)
    setattr(config, names[0], len(kept))
    student = type(model)(config)
    student.load_state_dict(weights)
    return student.eval()


def _stacks(model: Any, whole: int) -> Sequence[str]:
    import torch

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == whole and not _within(name)
    ]


def _within(name: str) -> bool:
    """Whether a module is a part of a layer of some list."""
    return any(part.isdecimal() for part in name.split("."))


def _config(config: Any, whole: int, kept: Sequence[int]) -> Any:
    """With fewer layers; what it says of each layer stays for those that stay."""
    made = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == whole and not name.startswith("_"):
            setattr(made, name, [value[layer] for layer in kept])
    made.num_hidden_layers = len(kept)
    return made


def _renamed(weights: Mapping[str, Any], stack: str, kept: Sequence[int]) -> dict[str, Any]:
    place_of = {str(layer): place for place, layer in enumerate(kept)}
    found = {}
    for name, value in weights.items():
        if not name.startswith(f"{stack}."):
            found[name] = value
            continue
        layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if layer in place_of:
            found[f"{stack}.{place_of[layer]}.{rest}"] = value
    return found
