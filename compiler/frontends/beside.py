"""What lies beside a model file: tokenizer, labels and config.json, and what all file formats share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmc.compiler.dims import Bounds
from llmc.compiler.frontends import tokenizer as tokenizers
from llmc.compiler.frontends.folder import EMBEDDING, labels
from llmc.compiler.frontends.imported import GENERIC, Imported, want_bound
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.ranges import longest
from llmc.compiler.frontends.sentence_text import TextSettings, text_settings
from llmc.compiler.frontends.sizes import reserved
from llmc.compiler.frontends.tasks import TASKS, near, scores_of
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph
from llmc.errors import LlmcError

DEFAULT_SEQ = 512  # the longest sequence of a model that states no limit
_UNBOUNDED = 1 << 20


@dataclass(frozen=True)
class Extras:
    """What is known of a model file from its folder.

    Args:
        task: a name in `tasks.TASKS`, or "generic".
        config: config.json, empty if there is none.
        max_positions: the longest sequence by config.json, None if it does not say.
        folder: where all this lies.
        text: what sentence-transformers does to texts, None for other models.
    """

    task: str
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    tokenizer: Tokenizer | None
    max_positions: int | None
    folder: Path
    text: TextSettings | None = None


def read(path: Path, task: str) -> Extras:
    """The files beside a model.

    Raises:
        LlmcError: no such task, or a file that is damaged.
    """
    task = GENERIC if task == "auto" else task
    if task != GENERIC and task not in TASKS:
        raise LlmcError(f"no task {task!r}", hint=near(task, ["auto", GENERIC, *TASKS], "tasks"))
    folder = next((f for f in (path.parent, path.parent.parent) if _is_home(f, path)), path.parent)
    config = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
    positions = _positions(config)
    labelled = task != GENERIC and TASKS[task].labelled
    embeds = task == EMBEDDING and (folder / "modules.json").exists()
    text = text_settings(folder, folder) if embeds else None
    return Extras(
        task,
        config,
        labels(config, str(folder / "config.json")) if labelled and config else (),
        tokenizers.read(folder, config, positions or DEFAULT_SEQ, text),
        positions,
        folder,
        text,
    )


def _tokenizer(extras: Extras) -> Tokenizer | None:
    """The tokenizer as transformers builds it, where anything says how."""
    told = any((extras.folder / name).exists() for name in ("tokenizer_config.json", "config.json"))
    if extras.tokenizer is None or not (told or extras.tokenizer.file.name == "tokenizer.json"):
        return None
    if not told:
        return extras.tokenizer
    return tokenizers.build(extras.tokenizer, extras.folder, extras.max_positions or DEFAULT_SEQ, extras.text)


def _is_home(folder: Path, path: Path) -> bool:
    """Beside the file, or above a folder called onnx, as hubs lay it out."""
    known = any((folder / name).exists() for name in (*tokenizers.FILES, "config.json"))
    return known and (folder == path.parent or path.parent.name == "onnx")


def _positions(config: Mapping[str, Any]) -> int | None:
    count = config.get("max_position_embeddings")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return None
    return max(count - reserved(config), 1)


def first_bounds(max_batch: int) -> dict[str, tuple[int, int]]:
    """Bounds while importing, before the limit of the sequence is known; "" stands for any other dim."""
    want_bound("max_batch", max_batch)
    return {"batch": (1, max_batch), "seq": (1, _UNBOUNDED), "": (1, DEFAULT_SEQ)}


def bounded(graph: Graph, extras: Extras, max_seq: int | None, path: Path) -> Graph:
    """The graph with the bounds of `seq`: what is asked for, or what tables and config.json allow.

    Raises:
        LlmcError: max_seq is more than the model's positions.
    """
    want_bound("max_seq", max_seq)
    if "seq" not in graph.dims:
        return graph
    limits = [n for n in (longest(graph, "seq"), extras.max_positions) if n is not None]
    limit = min(limits, default=None)
    if max_seq is not None and limit is not None and max_seq > limit:
        raise LlmcError(
            f"max_seq {max_seq} is more than the model's {limit} positions",
            at=str(path),
            hint=f"use at most {limit}",
        )
    low, stated = graph.dims["seq"]
    high = max_seq or limit or (DEFAULT_SEQ if stated == _UNBOUNDED else stated)
    return replace(graph, dims={**graph.dims, "seq": Bounds(low, min(high, stated))})


def imported(path: Path, graph: Graph, extras: Extras, producer: str) -> Imported:
    """The result of a file's import.

    Raises:
        LlmcError: the task needs an output that the file does not have.
    """
    if extras.task != GENERIC:
        graph = with_task(path, graph, extras.task)
    return Imported(
        graph=graph,
        name=path.stem,
        task=extras.task,
        model_type=str(extras.config.get("model_type", "")),
        architecture=producer,
        labels=extras.labels,
        tokenizer=_tokenizer(extras)
        if any(n.attributes["name"] == "input_ids" for n in graph.inputs)
        else None,
        sentence=None,
        scores=scores_of(extras.config, extras.task, len(extras.labels), str(extras.folder)),
    )


def with_task(path: Path, graph: Graph, task: str) -> Graph:
    """The graph with its outputs checked, and named as the task has them where there is but one."""
    wanted = TASKS[task].outputs or tuple(graph.outputs)
    if wanted[0] in graph.outputs:
        return graph
    if len(graph.outputs) == 1 and (len(wanted) == 1 or task == "feature-extraction"):
        (node,) = graph.outputs.values()
        return replace(graph, outputs={wanted[0]: node})
    raise LlmcError(
        f"the task {task} needs the output {wanted[0]!r}",
        at=str(path),
        found=f"the outputs {', '.join(graph.outputs)}",
        hint="choose another task, or leave --task out for arrays in and out",
    )
