"""What a Hugging Face folder holds, read and checked without importing torch or transformers.

`inspect` is for people and for failing early; it reads config.json, headers of weight files and tokenizer
settings only. Nothing is ever unpickled here.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import leftovers, sizes, tokenizer
from llmc.compiler.frontends.hub import download_hint
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.regular_file import want_all_regular
from llmc.compiler.frontends.safetensors_file import Tensor, read_header
from llmc.compiler.frontends.sentence import Sentence, read_modules, transformer_folder
from llmc.compiler.frontends.sentence_text import want_unicode
from llmc.compiler.frontends.tasks import Task, architecture_of, scores_of, task_of
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.errors import LlmcError, LlmcWarning

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
EMBEDDING = "sentence-embedding"
MOST_NUMBER = 2**31 - 1
MOST_LAYERS = 1000
FEW_LABELS, MOST_LABELS = (
    1000,
    1_000_000,
)  # so many need no proof; the most of weights that have not been opened
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


@dataclass(frozen=True)
class Summary:
    """A checked folder.

    Args:
        path: the folder given; `root` is where the transformer is, in some sentence-transformers a subfolder.
        architecture: the class that config.json names, empty if none.
        parameters: number of weights, None if they are in a pickle that has not been opened.
        dtypes: safetensors dtype -> number of weights.
        labels: names of the classes, empty if the task has none.
        max_positions: the longest sequence the position embeddings allow.
    """

    path: Path
    root: Path
    config: Mapping[str, Any]
    model_type: str
    architecture: str
    task: Task
    parameters: int | None
    dtypes: Mapping[str, int]
    labels: tuple[str, ...]
    tokenizer: Tokenizer | None
    sentence: Sentence | None
    max_positions: int


def inspect(
    path: str | Path, task: str = "auto", ignore_unused: bool = False, need_weights: bool = True
) -> Summary:
    """Read and check a model folder; takes milliseconds.

    Args:
        path: the folder.
        task: "auto" or a name in `tasks.TASKS`.
        ignore_unused: whether heads in files of their own may be left out.
        need_weights: whether a folder without weights is refused.

    Raises:
        LlmcError: what is missing, broken or not supported.
    """
    path = Path(path)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        hint = download_hint(path) or "give the folder that holds config.json"
        raise LlmcError(f"no model folder {str(path)!r}", found=found, hint=hint)
    want_all_regular(path)
    sentence = read_modules(path) if task in ("auto", EMBEDDING) else None
    root = transformer_folder(path)
    config = read_config(root)
    for folder in {path, root}:
        want_all_regular(folder)
        leftovers.want_whole(folder, ignore_unused)
    at = str(root / "config.json")
    chosen = task_of(config, task, sentence is not None, at)
    tensors = read_weights(root) if need_weights or _holds_weights(root) else None
    sizes.want_of(config, tensors, at)
    positions = sizes.positions(config, tensors, at)
    names = labels(config, at) if chosen.labelled else ()
    scores_of(config, chosen.name, len(names), str(root))  # a mistake in it shows before any work
    return Summary(
        path=path,
        root=root,
        config=config,
        model_type=config["model_type"],
        architecture=architecture_of(config),
        task=chosen,
        parameters=None if tensors is None else _count(tensors),
        dtypes=_dtypes(tensors),
        labels=names,
        tokenizer=tokenizer.read(root, config, positions, sentence.text if sentence else None),
        sentence=sentence,
        max_positions=positions,
    )


def want_readable(
    root: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor] | None, speaks: bool = True
) -> None:
    """Refuse what can be seen of config.json, the tokenizer's files and pipes before any library is imported.

    Args:
        speaks: whether the tokenizer is read from here.

    Raises:
        LlmcError: what is wrong, as `inspect` says it.
    """
    at = str(root / "config.json")
    want_all_regular(root)
    sizes.want_of(config, tensors, at)
    _named_labels(config, at)
    positions = sizes.positions(config, tensors, at)
    if speaks:
        tokenizer.read(root, config, positions, None)


def read_config(root: Path) -> Mapping[str, Any]:
    """config.json as a dict."""
    file = root / "config.json"
    if not file.exists():
        adapter = (root / "adapter_config.json").exists()
        hint = "--base DIR names the folder of its base model" if adapter else None
        raise LlmcError(
            "the folder has no config.json",
            at=str(root),
            found="a PEFT adapter without its base model" if adapter else _listing(root),
            hint=hint or "give the folder written by save_pretrained",
        )
    config = read_object(file)
    if config.get("quantization_config"):
        raise LlmcError(
            "the checkpoint is already quantised",
            at=str(file),
            hint="give the float model; llmc quantises itself",
        )
    return config


def _holds_weights(root: Path) -> bool:
    """Whether any weights lie there; an index alone is none."""
    return any(p.suffix in (".safetensors", ".bin") for p in root.iterdir())


def read_weights(root: Path) -> Mapping[str, Tensor] | None:
    """Names, dtypes and shapes of all weights; None if they are pickled.

    Raises:
        LlmcError: no weights, or a file that is damaged.
    """
    if (root / SAFETENSORS).exists():
        return read_header(root / SAFETENSORS)
    index = root / f"{SAFETENSORS}.index.json"
    if index.exists():
        return _sharded(index)
    if (root / PICKLED).exists() or (root / f"{PICKLED}.index.json").exists():
        return None
    raise LlmcError(
        "the folder has no weights",
        at=str(root),
        found=_listing(root),
        hint=f"llmc reads {SAFETENSORS} and {PICKLED}; save the model with save_pretrained",
    )


def _sharded(index: Path) -> Mapping[str, Tensor]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise LlmcError(
            "the index of the weight files has no weight_map", at=str(index), hint="download it again"
        )
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).exists() or Path(name).name != name:
            raise LlmcError(f"weight file {name} is missing", at=str(index.parent), hint="download it again")
        tensors.update(read_header(index.parent / name))
    return tensors


def _listing(root: Path) -> str:
    names = sorted(p.name for p in root.iterdir())
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "an empty folder"


def _count(tensors: Mapping[str, Tensor]) -> int:
    """How many weights there are; integers are position buffers."""
    return sum(math.prod(t.shape) for t in tensors.values() if "F" in t.dtype)


def _dtypes(tensors: Mapping[str, Tensor] | None) -> Mapping[str, int]:
    count: Counter[str] = Counter()
    for tensor in (tensors or {}).values():
        count[tensor.dtype] += math.prod(tensor.shape)
    return dict(count)


def labels(config: Mapping[str, Any], at: str = "config.json") -> tuple[str, ...]:
    """Class names in order of their ids; transformers' LABEL_0, LABEL_1 where the config has none."""
    named = _named_labels(config, at)
    if named is None:
        count = config.get("num_labels")
        return tuple(f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2))
    if missing := [i for i in range(len(named)) if i not in named]:
        told = f"{at}: id2label has no name for class {missing[0]}, which is called LABEL_{missing[0]} here"
        warnings.warn(LlmcWarning(told), stacklevel=2)
    return tuple(named.get(i, f"LABEL_{i}") for i in range(len(named)))


def _named_labels(config: Mapping[str, Any], at: str) -> dict[int, str] | None:
    """id2label, if it numbers the classes."""
    names = config.get("id2label")
    if isinstance(names, dict) and any(str(key).isdecimal() and len(str(key)) > 9 for key in names):
        raise LlmcError("a key of id2label is larger than any label's number", at=at)
    if not isinstance(names, dict) or not all(str(k).isdecimal() for k in names):
        return None
    named = {int(key): str(name) for key, name in names.items()}
    for name in named.values():
        want_unicode(name, "a label", at)
    return named


def require_tokenizer(summary: Summary) -> Tokenizer:
    """The tokenizer of a folder that must have one.

    Raises:
        LlmcError: there is none.
    """
    if summary.tokenizer is None:
        raise LlmcError(
            "the folder has no tokenizer.json, so the model cannot take text",
            at=str(summary.root),
            hint="AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes it",
        )
    return summary.tokenizer
