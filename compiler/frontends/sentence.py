"""The sentence-transformers settings of a folder: pooling, dense layers, normalisation. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.json_file import read_json, read_object
from llmc.compiler.frontends.sentence_text import TextSettings, text_settings
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
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"  # what a module reads and writes


@dataclass(frozen=True)
class Dense:
    """A linear layer: the folder with its weights, and the torch.nn class of its activation."""

    folder: Path
    bias: bool
    activation: str


Step = Dense | str  # "normalize"


@dataclass(frozen=True)
class Sentence:
    """How token vectors become one sentence vector.

    Args:
        transformer: folder of the transformer, relative to the model's.
        before: what each token's vector goes through before pooling, in order.
        pooling: modes whose results are concatenated: cls, max, mean, mean_sqrt_len_tokens, weightedmean.
        steps: what follows, in order.
        text: what is done to texts.
        width: how many numbers of the vector are kept, None for all.
    """

    transformer: str = ""
    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[Step, ...] = ()
    before: tuple[Step, ...] = ()
    text: TextSettings = field(default_factory=TextSettings)
    width: int | None = None

    @property
    def normalized(self) -> bool:
        """Whether the vector has length 1."""
        return bool(self.steps) and self.steps[-1] == "normalize" and self.width is None


def transformer_folder(path: Path) -> Path:
    """Where the transformer is: modules.json may name a subfolder."""
    file = path / "modules.json"
    return path / _entries(file)[0][1] if file.exists() else path


def read_modules(path: Path) -> Sentence | None:
    """The settings in modules.json and the folders it names; None if the folder is a plain transformers one.

    Raises:
        LlmcError: a file is broken or asks for a module that is not supported.
    """
    file = path / "modules.json"
    if not file.exists():
        return None
    kinds = _entries(file)
    if kinds[0][0] != "Transformer":
        raise LlmcError(
            f"the first sentence-transformers module is {kinds[0][0]}, not Transformer", at=str(file)
        )
    at = [kind for kind, _ in kinds].index("Pooling") if ("Pooling" in dict(kinds)) else None
    if at is None:
        raise LlmcError(
            "modules.json has no Pooling, so there is no sentence embedding",
            at=str(file),
            found=", ".join(kind for kind, _ in kinds),
            hint="--task feature-extraction compiles the transformer alone",
        )
    width, text = _model_config(path), text_settings(path, path / kinds[0][1])
    modes = _pooling(path / kinds[at][1] / "config.json", text.prompts)
    before, steps = _steps(path, kinds[1:at], TOKENS), _steps(path, kinds[at + 1 :], SENTENCE)
    return Sentence(kinds[0][1], modes, steps, before, text, width)


def _entries(file: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module."""
    entries = read_json(file)
    if not isinstance(entries, list) or not entries:
        raise LlmcError("modules.json is not a list of modules", at=str(file))
    return [(_kind(entry, file), _folder(entry, file)) for entry in entries]


def _folder(entry: Mapping[str, Any], file: Path) -> str:
    """Where a module is, below the model's folder."""
    path = entry.get("path", "")
    plain, home = isinstance(path, str) and "\0" not in path, file.parent
    if not plain or not (home / path).resolve().is_relative_to(home.resolve()):
        problem = "modules.json names a folder that is not in the model's"
        raise LlmcError(problem, at=str(file), found=repr(path)[:60], hint="download the model again")
    return str(path)


def _kind(entry: Any, file: Path) -> str:
    """`sentence_transformers.models.Pooling` -> `Pooling`; a class of other code keeps its whole name."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
        raise LlmcError("modules.json has an entry without a type", at=str(file))
    name = str(entry["type"])
    return name.rpartition(".")[2] if name.startswith("sentence_transformers.") else name


def _model_config(path: Path) -> int | None:
    """`truncate_dim`.

    Raises:
        LlmcError: the folder holds another kind of model.
    """
    file = path / "config_sentence_transformers.json"
    config = read_object(file) if file.exists() else {}
    kind, width = config.get("model_type") or "SentenceTransformer", config.get("truncate_dim")
    if kind != "SentenceTransformer":
        hint = "--task names what else to compile it for"
        raise LlmcError(f"the folder holds a {kind}, not a SentenceTransformer", at=str(file), hint=hint)
    if width is not None and (type(width) is not int or width < 1):
        raise LlmcError("truncate_dim is not a positive number", at=str(file), found=repr(width)[:60])
    return width


def _steps(path: Path, kinds: Iterable[tuple[str, str]], reads: str) -> tuple[Step, ...]:
    """The modules on one side of the pooling, all of which must read what is there and write it back."""
    return tuple(_step(kind, path / folder, path / "modules.json", reads) for kind, folder in kinds)


def _step(kind: str, folder: Path, at: Path, reads: str) -> Step:
    if kind not in ("Normalize", "Dense"):
        raise LlmcError(
            f"sentence-transformers module {kind} is not supported" + (" twice" if kind == "Pooling" else ""),
            at=str(at),
            hint="supported: Transformer, Pooling, Dense, Normalize",
        )
    file = folder / "config.json"
    config = read_object(file) if kind == "Dense" or (folder != at.parent and file.exists()) else {}
    name = config.get("module_input_name") or SENTENCE
    if (name, config.get("module_output_name") or name) != (reads, reads):
        place = "before" if reads == TOKENS else "after"
        raise LlmcError(
            f"{kind} {place} the pooling reads and writes {reads} only",
            at=str(file),
            found=f"it reads {name}, writes {config.get('module_output_name') or name}",
        )
    return "normalize" if kind == "Normalize" else _dense(folder, config)


def _pooling(file: Path, prompts: Mapping[str, str]) -> tuple[str, ...]:
    config = read_object(file)
    named = config.get("pooling_mode")
    modes = tuple(mode for key, mode in POOLING.items() if config.get(key))
    if named:
        modes = (named,) if isinstance(named, str) else tuple(named)
    for mode in modes:
        if mode == "lasttoken" or mode not in POOLING.values():
            raise LlmcError(
                f"pooling mode {mode!r} is not supported",
                at=str(file),
                hint="supported: cls, max, mean, mean_sqrt_len_tokens, weightedmean",
            )
    if config.get("include_prompt", True) is False and any(prompts.values()):
        raise LlmcError(
            "pooling that leaves the prompt's tokens out is not supported",
            at=str(file),
            found="include_prompt: false",
        )
    return modes or ("mean",)


def _dense(folder: Path, config: Mapping[str, Any]) -> Dense:
    at = str(folder / "config.json")
    full = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = full.rpartition(".")[2]
    if activation not in ACTIVATIONS or not full.startswith("torch."):
        hint = f"supported: {', '.join(ACTIVATIONS)} of torch.nn"
        raise LlmcError(f"activation {full} is not supported", at=at, hint=hint)
    if config.get("use_residual"):
        raise LlmcError("a Dense layer with use_residual is not supported", at=at)
    return Dense(folder, bool(config.get("bias", True)), activation)
