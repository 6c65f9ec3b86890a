"""The sentence-transformers settings of a folder: pooling, dense layers, normalisation. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.json_file import read_json, read_object
from llmc.errors import LlmcError

# key in 1_Pooling/config.json -> mode, in the order sentence-transformers concatenates them
POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling: the folder with its weights, and the torch.nn class of its activation."""

    folder: Path
    bias: bool
    activation: str


@dataclass(frozen=True)
class Sentence:
    """How token vectors become one sentence vector.

    Args:
        transformer: folder of the transformer, relative to the model's.
        pooling: modes whose results are concatenated: cls, max, mean, mean_sqrt_len_tokens, weightedmean.
        steps: what follows, in order: a Dense or "normalize".
        max_length: most tokens of a text, None if not stated.
    """

    transformer: str = ""
    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[Dense | str, ...] = ()
    max_length: int | None = None

    @property
    def normalized(self) -> bool:
        """Whether the vector has length 1."""
        return bool(self.steps) and self.steps[-1] == "normalize"


def read_modules(path: Path) -> Sentence | None:
    """The settings in modules.json and the folders it names; None if the folder is a plain transformers one.

    Raises:
        LlmcError: a file is broken or asks for a module that is not supported.
    """
    file = path / "modules.json"
    if not file.exists():
        return None
    entries = read_json(file)
    if not isinstance(entries, list) or not entries:
        raise LlmcError("modules.json is not a list of modules", at=str(file))
    kinds = [(_kind(entry, file), str(entry.get("path", ""))) for entry in entries]
    if kinds[0][0] != "Transformer":
        raise LlmcError(
            f"the first sentence-transformers module is {kinds[0][0]}, not Transformer", at=str(file)
        )
    pooling: tuple[str, ...] = ()
    steps: list[Dense | str] = []
    for kind, folder in kinds[1:]:
        match kind:
            case "Pooling" if not pooling:
                pooling = _pooling(path / folder / "config.json")
            case "Normalize":
                steps.append("normalize")
            case "Dense":
                steps.append(_dense(path / folder))
            case _:
                raise LlmcError(
                    f"sentence-transformers module {kind} is not supported",
                    at=str(file),
                    hint="supported: Transformer, Pooling, Dense, Normalize",
                )
    return Sentence(kinds[0][1], pooling or ("mean",), tuple(steps), _max_length(path, kinds[0][1]))


def _kind(entry: Any, file: Path) -> str:
    """`sentence_transformers.models.Pooling` -> `Pooling`"""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
        raise LlmcError("modules.json has an entry without a type", at=str(file))
    return str(entry["type"].rpartition(".")[2])


def _pooling(file: Path) -> tuple[str, ...]:
    config = read_object(file)
    named = config.get("pooling_mode")
    modes = tuple(mode for key, mode in POOLING.items() if config.get(key))
    if named:
        modes = (named,) if isinstance(named, str) else tuple(named)
    for mode in modes or ("none",):
        if mode == "lasttoken" or mode not in POOLING.values():
            raise LlmcError(
                f"pooling mode {mode!r} is not supported",
                at=str(file),
                hint="supported: cls, max, mean, mean_sqrt_len_tokens, weightedmean",
            )
    return modes


def _dense(folder: Path) -> Dense:
    file = folder / "config.json"
    config = read_object(file)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise LlmcError(
            f"activation {activation} is not supported",
            at=str(file),
            hint=f"supported: {', '.join(ACTIVATIONS)}",
        )
    return Dense(folder, bool(config.get("bias", True)), activation)


def _max_length(path: Path, transformer: str) -> int | None:
    file = path / transformer / "sentence_bert_config.json"
    value = read_object(file).get("max_seq_length") if file.exists() else None
    return value if isinstance(value, int) and value > 0 else None
