"""A LoRA adapter as it is kept beside a base: two thin matrices for each product that it was trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.frontends import adapters
from llmc.compiler.frontends.adapters import CONFIG, WEIGHTS, Adapter
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.safetensors_file import read_header
from llmc.compiler.frontends.stored_floats import Floats, StoredFloats
from llmc.errors import LlmcError

PREFIX = "base_model.model."  # of every name in an adapter's file
# What says nothing of the weights, or what is read here.
_HARMLESS = frozenset(
    (
        *("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
        *("inference_mode", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        *("megatron_config", "megatron_core", "qalora_group_size", "init_lora_weights", "runtime_config"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
    )
)
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base
_NAME = re.compile(r"(.+)\.lora_([AB])\.(?:default\.)?weight")
_TWICE = "save it anew by peft: which of the two was trained is not to be seen"
_MERGE = "llmc compile BASE --adapter DIR merges it into its base"


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to a product: `x @ a.T @ b.T`, with `a` `[r, k]`, and `b` `[n, r]` scaled."""

    a: Floats
    b: Floats

    @property
    def rank(self) -> int:
        return len(self.a)


def pairs_of(folder: Path) -> Mapping[str, Pair]:
    """Module path -> what the adapter in `folder` adds there.

    Raises:
        LlmcError: it is no adapter, damaged, or not of the plain kind that can stand beside a base.
    """
    if not adapters.is_adapter(folder):
        raise LlmcError(
            "there is no adapter", at=str(folder), found=f"no {CONFIG}", hint="is the path right?"
        )
    adapter = adapters.read(folder)
    config = read_object(folder / CONFIG)
    _want_plain(adapter, config)
    file = folder / WEIGHTS[0]
    if not file.exists():
        raise LlmcError(
            f"an adapter beside a base is read from {WEIGHTS[0]}", at=str(folder), hint="save it anew by peft"
        )
    return _pairs(file, config)


def _want_plain(adapter: Adapter, config: Mapping[str, Any]) -> None:
    """Refuse what is more than two matrices for each product."""
    at = str(adapter.path / CONFIG)
    if adapter.kind != "LORA":
        raise LlmcError(
            f"an adapter of the type {adapter.kind} cannot stand beside its base", at=at, hint=_MERGE
        )
    if (begun := config.get("init_lora_weights")) not in _BEGINNINGS:
        raise LlmcError(
            f"init_lora_weights {begun!r:.40} changes the weights of the base", at=at, hint=_MERGE
        )
    for name, value in config.items():
        if name not in _HARMLESS and value and not (name == "bias" and value == "none"):
            told = f"the adapter's setting {name!r:.60} cannot be kept beside a base"
            raise LlmcError(told, at=at, found=repr(value)[:60], hint=_MERGE)


def _pairs(file: Path, config: Mapping[str, Any]) -> Mapping[str, Pair]:
    stored = StoredFloats(file)
    halves: dict[str, dict[str, str]] = {}
    for name in read_header(file):
        found = _NAME.fullmatch(name.removeprefix(PREFIX))
        if not found or name not in stored.shapes:
            told = f"the adapter has {name!r:.100}, which is no matrix of LoRA's"
            raise LlmcError(told, at=str(file), hint=_MERGE)
        if (first := halves.setdefault(found[1], {}).setdefault(found[2], name)) != name:
            told = f"the adapter holds lora_{found[2]} of a module twice"
            raise LlmcError(told, at=str(file), found=f"{first:.100} and {name:.100}", hint=_TWICE)
    if not halves:
        raise LlmcError("the adapter has no weights", at=str(file))
    return {path: _pair(file, stored, path, names, config) for path, names in halves.items()}


def _pair(
    file: Path, stored: StoredFloats, path: str, names: Mapping[str, str], config: Mapping[str, Any]
) -> Pair:
    shapes = [stored.shapes[names[half]] for half in "AB" if half in names]
    rank = _of_module(path, config.get("rank_pattern"), config.get("r"))
    if len(shapes) < 2 or any(len(s) != 2 for s in shapes) or not shapes[0][0] == shapes[1][1] == rank > 0:
        found = f"lora_A and lora_B of the shapes {', '.join(map(str, shapes))}, rank {rank}"
        raise LlmcError("the two matrices of a module do not fit", at=str(file), found=f"{path}: {found}")
    a, b = (stored.read(names[half]) for half in "AB")
    b = b * np.float32(_scale(path, rank, config, file))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise LlmcError("the adapter holds values that are not finite", at=str(file), found=path)
    return Pair(a, b)


def _scale(path: str, rank: int, config: Mapping[str, Any], file: Path) -> float:
    alpha = _of_module(path, config.get("alpha_pattern"), config.get("lora_alpha"))
    if alpha is None:
        raise LlmcError("lora_alpha is no number", at=str(file.parent / CONFIG), found=repr(alpha)[:60])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(path: str, pattern: Any, usual: Any) -> Any:
    """What a pattern of peft's says of a module: a key is an expression for the end of its path."""
    for key, value in (pattern or {}).items() if isinstance(pattern, dict) else ():
        try:
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except re.error:
            raise LlmcError(f"{key!r:.60} of a pattern is no regular expression", found=path) from None
    return usual
