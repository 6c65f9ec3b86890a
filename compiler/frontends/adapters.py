"""PEFT adapters: what their files say, and where their base is. `merging` makes one model of the two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.regular_file import want_all_regular
from llmc.compiler.frontends.safetensors_file import Tensor, read_header
from llmc.compiler.frontends.tasks import architecture_of
from llmc.errors import LlmcError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# task_type of adapter_config.json -> the end of the name of the class that was trained
SUFFIXES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
MOST_RANK = 1 << 16
MOST_ALPHA = 1 << 20
# they add tokens or layers of their own: no weight of the base could hold them
UNMERGEABLE = (
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "XLORA",
    "POLY",
)


@dataclass(frozen=True)
class Adapter:
    """A checked adapter.

    Args:
        path: its folder.
        kind: its `peft_type`.
        task: its `task_type`, if it states one.
        base: name or path of its base model as it states it, empty if it does not.
    """

    path: Path
    kind: str
    task: str | None
    base: str


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (path / CONFIG).is_file()


def is_file_of(name: str) -> bool:
    """Whether a file of this name belongs to an adapter alone."""
    return name.startswith(("adapter_config.", "adapter_model."))


def read(path: Path) -> Adapter:
    """Read and check an adapter's folder; its weights are not opened beyond their header.

    Raises:
        LlmcError: a file is missing or damaged, or the adapter is of a kind that no weights can hold.
    """
    want_all_regular(path)
    config, at = read_object(path / CONFIG), str(path / CONFIG)
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise LlmcError("adapter_config.json has no peft_type", at=at, hint="is this an adapter of peft?")
    if kind in UNMERGEABLE:
        raise LlmcError(
            f"an adapter of the type {kind} cannot be merged into the weights of its base",
            at=at,
            hint="it adds tokens or layers of its own; train LoRA, IA3 or another kind that merges",
        )
    file = next((path / name for name in WEIGHTS if (path / name).exists()), None)
    if file is None:
        raise LlmcError(
            "the adapter has no weights", at=str(path), hint=f"llmc reads {' and '.join(WEIGHTS)}"
        )
    _want_ranks(config, file, at)
    _want_alphas(config, at)
    base = config.get("base_model_name_or_path")
    task = config.get("task_type")
    return Adapter(path, kind, task if isinstance(task, str) else None, base if isinstance(base, str) else "")


def _want_ranks(config: Mapping[str, Any], file: Path, at: str) -> None:
    """Refuse ranks that no weight has: peft makes matrices of them before it looks."""
    most = MOST_RANK
    if file.suffix == ".safetensors":
        most = max((size for t in read_header(file).values() for size in t.shape), default=1)
    least = 1 if config["peft_type"] == "LORA" else 0  # other kinds mean by 0 that another setting says it
    usual, others = config.get("r"), _pattern(config, "rank_pattern")
    lowest = 0 if others else least  # where a pattern may say that of every module
    for rank, low in ((usual if usual is not None else most, lowest), *((rank, least) for rank in others)):
        if type(rank) is not int or not low <= rank <= most:
            raise LlmcError("a rank of the adapter is none of its weights'", at=at, found=repr(rank)[:60])


def _want_alphas(config: Mapping[str, Any], at: str) -> None:
    """Refuse factors that no training has, before they make weights infinite."""
    usual = config.get("lora_alpha")
    for alpha in (*(usual,)[: usual is not None], *_pattern(config, "alpha_pattern")):
        if type(alpha) not in (int, float) or not abs(alpha) <= MOST_ALPHA:
            raise LlmcError(
                "lora_alpha is no number that an adapter was trained with",
                at=at,
                found=repr(alpha)[:60],
                hint=f"it lies between {-MOST_ALPHA} and {MOST_ALPHA}",
            )


def _pattern(config: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """What a pattern of peft's says of modules, by their names."""
    pattern = config.get(name)
    return tuple(pattern.values()) if isinstance(pattern, dict) else ()


def find_base(adapter: Adapter) -> Path:
    """The base model's folder on this machine, by the name that the adapter states.

    Raises:
        LlmcError: it is nowhere.
    """
    for place in _places(adapter):
        if (place / "config.json").is_file() or (place / "refs" / "main").is_file():
            return place
    stated = f"it was trained on {adapter.base!r}" if adapter.base else "it does not say which"
    raise LlmcError(
        "the folder holds a PEFT adapter without its base model",
        at=str(adapter.path),
        found=stated,
        hint="--base DIR names the folder of the base model",
    )


def _places(adapter: Adapter) -> list[Path]:
    """Where the base may be: as stated, from here or from the adapter, beside it, in the same cache."""
    name = adapter.base.rstrip("/")
    if not name or "\0" in name:
        return []
    home = adapter.path.resolve()
    last = name.rpartition("/")[2]
    caches = [p.parent for p in home.parents if p.name.startswith("models--")]
    cached = [cache / f"models--{name.replace('/', '--')}" for cache in caches]
    places = [Path(name), home / name, *([home.parent / last] if last not in (".", "..") else []), *cached]
    return [place for place in places if place.resolve() != home]


def head(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the merged model's config.json says otherwise than its base's, without a look at the weights."""
    suffix = SUFFIXES.get(adapter.task or "")
    name = architecture_of(config)
    if suffix is None or not name:
        return {}
    changed: dict[str, Any] = {"architectures": [re.split(r"For[A-Z]|Model$|LMHead", name)[0] + suffix]}
    sizes = [t.shape[0] for name, t in _header(adapter).items() if "lora_" not in name and len(t.shape) == 2]
    if sizes and min(sizes) != len(config.get("id2label") or ()):
        changed["id2label"] = {str(i): f"LABEL_{i}" for i in range(min(sizes))}
    return changed


def _header(adapter: Adapter) -> Mapping[str, Tensor]:
    file = adapter.path / WEIGHTS[0]
    return read_header(file) if file.exists() else {}
