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
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"  # what a module reads and writes


@dataclass(frozen=True)
class Dense:
    """A linear layer: its folder, the torch.nn class of its activation, whether its input is added to its output."""

    folder: Path
    bias: bool
    activation: str
    residual: bool = False


@dataclass(frozen=True)
class Layer:
    """A module whose weights say all of it, but for one number: `start`, the first layer that is weighted."""

    kind: str  # a key of LAYERS
    folder: Path
    start: int = 0


Step = Dense | Layer | str  # "normalize"
# kind of Layer -> the file with its settings, and what it reads and writes
LAYERS: Mapping[str, tuple[str, str]] = {
    "LayerNorm": ("config.json", SENTENCE),
    "CNN": ("cnn_config.json", TOKENS),
    "WeightedLayerPooling": ("config.json", TOKENS),
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class Sentence:
    """How token vectors become one sentence vector.

    Args:
        transformer: folder of the transformer, relative to the model's.
        before: what each token's vector goes through before pooling, in order.
        pooling: modes whose results are concatenated: cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken.
        steps: what follows, in order.
        text: what is done to texts.
        width: how many numbers of the vector are kept, None for all.
        pools_prompt: whether the tokens of a prompt are pooled too; if not, the model has none of its own.
        similarity: how two vectors are to be compared, None if the model does not say.
    """

    transformer: str = ""
    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[Step, ...] = ()
    before: tuple[Step, ...] = ()
    text: TextSettings = field(default_factory=TextSettings)
    width: int | None = None
    pools_prompt: bool = True
    similarity: str | None = None

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
    (width, similarity), text = _model_config(path), text_settings(path, path / kinds[0][1])
    modes, pools_prompt = _pooling(path / kinds[at][1] / "config.json")
    before, steps = _steps(path, kinds[1:at], TOKENS), _steps(path, kinds[at + 1 :], SENTENCE)
    if not _gives_layers(path / kinds[0][1]):  # what is not there is not weighted
        before = tuple(s for s in before if not (isinstance(s, Layer) and s.kind == "WeightedLayerPooling"))
    if not pools_prompt and any(text.prompts.values()):
        problem = "pooling that leaves the prompt's tokens out is not supported"
        raise LlmcError(problem, at=str(path / kinds[at][1]), found="include_prompt: false")
    return Sentence(kinds[0][1], modes, steps, before, text, width, pools_prompt, similarity)


def _gives_layers(transformer: Path) -> bool:
    """Whether the transformer hands out the vectors of all its layers, as sentence-transformers asks."""
    file = transformer / "config.json"
    return file.exists() and read_object(file).get("output_hidden_states") is True


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


def _model_config(path: Path) -> tuple[int | None, str | None]:
    """`truncate_dim` and `similarity_fn_name`.

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
    similarity = config.get("similarity_fn_name")
    if similarity is not None and similarity not in SIMILARITIES:
        hint = f"one of {', '.join(SIMILARITIES)}"
        raise LlmcError(f"no similarity {similarity!r:.60}", at=str(file), hint=hint)
    return width, similarity


def _steps(path: Path, kinds: Iterable[tuple[str, str]], reads: str) -> tuple[Step, ...]:
    """The modules on one side of the pooling, all of which must read what is there and write it back."""
    made = (_step(kind, path / folder, path / "modules.json", reads) for kind, folder in kinds)
    return tuple(step for step in made if step is not None)


_PLAIN = ("Dense", "Normalize", "Dropout")
_NOT_HERE = {
    "LSTM": "it wants the lengths of the rows, which a Transformer does not hand on: sentence-transformers "
    "cannot run it either",
    "Router": "it takes another way for queries than for documents: save each as a model of its own",
    "Pooling": "only one pooling is supported",
}


def _step(kind: str, folder: Path, at: Path, reads: str) -> Step | None:
    if kind not in (*_PLAIN, *LAYERS):
        raise LlmcError(
            f"sentence-transformers module {kind} is not supported" + (" twice" if kind == "Pooling" else ""),
            at=str(at),
            hint=_NOT_HERE.get(
                kind, f"supported: Transformer, Pooling, Dense, Normalize, Dropout, {', '.join(LAYERS)}"
            ),
        )
    if kind == "Dropout":
        return None
    file = folder / LAYERS.get(kind, ("config.json",))[0]
    config = read_object(file) if kind != "Normalize" or (folder != at.parent and file.exists()) else {}
    name = config.get("module_input_name") or LAYERS.get(kind, ("", SENTENCE))[1]
    if (name, config.get("module_output_name") or name) != (reads, reads):
        place = "before" if reads == TOKENS else "after"
        raise LlmcError(
            f"{kind} {place} the pooling reads and writes {reads} only",
            at=str(file),
            found=f"it reads {name}, writes {config.get('module_output_name') or name}",
        )
    if kind in LAYERS:
        return _layer(kind, folder, config, str(file))
    return "normalize" if kind == "Normalize" else _dense(folder, config)


def _layer(kind: str, folder: Path, config: Mapping[str, Any], at: str) -> Layer:
    """Convolutions keep the number of tokens here: with other steps the mask would not be theirs."""
    start = config.get("layer_start", 4) if kind == "WeightedLayerPooling" else 0
    if type(start) is not int or start < 0:
        raise LlmcError("layer_start is not a number of a layer", at=at, found=repr(start)[:60])
    sizes, strides = config.get("kernel_sizes") or (), config.get("stride_sizes") or ()
    if any(type(n) is not int or n % 2 != 1 for n in sizes) or any(n != 1 for n in strides):
        found = f"kernel_sizes {sizes}, stride_sizes {strides}"[:80]
        raise LlmcError("a CNN that changes the number of tokens is not supported", at=at, found=found)
    return Layer(kind, folder, start)


def _pooling(file: Path) -> tuple[tuple[str, ...], bool]:
    """The modes, and whether tokens of a prompt are pooled."""
    config = read_object(file)
    named = config.get("pooling_mode")
    modes = tuple(mode for key, mode in POOLING.items() if config.get(key))
    if named:
        modes = (named,) if isinstance(named, str) else tuple(named)
    for mode in modes:
        if mode not in POOLING.values():
            hint = f"supported: {', '.join(POOLING.values())}"
            raise LlmcError(f"pooling mode {mode!r} is not supported", at=str(file), hint=hint)
    return modes or ("mean",), config.get("include_prompt", True) is not False


def _dense(folder: Path, config: Mapping[str, Any]) -> Dense:
    at = str(folder / "config.json")
    full = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = full.rpartition(".")[2]
    if activation not in ACTIVATIONS or not full.startswith("torch."):
        hint = f"supported: {', '.join(ACTIVATIONS)} of torch.nn"
        raise LlmcError(f"activation {full} is not supported", at=at, hint=hint)
    return Dense(folder, bool(config.get("bias", True)), activation, bool(config.get("use_residual")))
