"""A graph's text -> Imported, and back: `model.json` beside the weights says what else the import had found out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.imported import GENERIC, Imported
from llmc.compiler.frontends.sentence import LAYERS, Dense, Layer, Sentence, Step
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.errors import LlmcError

SUFFIX = ".txt"
TOKENIZER = "tokenizer.json"
_FIRST = re.compile(r"dims\b|function \w+$|graph \d+$|%\w+ = ")  # what a text begins with, comments apart
_NAMES = frozenset({"format", "name", "model_type", "architecture", "ensemble"})  # change no answer
_SIDES = ("left", "right")
_SCORES = ("softmax", "sigmoid", "none", None)
_TEXTS = ("name", "task", "model_type", "architecture")
_SETTINGS: Mapping[str, Any] = {  # of a tokenizer, and the types that JSON gives them
    "max_length": int,
    "pad_id": int,
    "pad_token": (str, type(None)),
    "truncation_side": str,
    "padding_side": str,
    "inputs": list,
    "prompts": (dict, type(None)),
    "prompt": (str, type(None)),
}


def is_graph_text(path: Path) -> bool:
    """Whether a file is a graph's text: by its name, or by its first line."""
    if path.suffix.lower() == SUFFIX:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        lines = file.read(1 << 16).decode(errors="replace").splitlines()
    first = next((line for line in map(str.strip, lines) if line and not line.startswith("#")), "")
    return _FIRST.match(first) is not None


def load(
    path: str | Path,
    task: str = "auto",
    max_batch: int | None = None,
    max_seq: int | None = None,
    known: Mapping[str, Any] | None = None,
) -> Imported:
    """Read a graph or module that `llmc opt -o` or `llmc compile --keep` wrote, or a text written by hand.

    Args:
        task: "auto" is what it was imported for.
        max_batch, max_seq: lower upper bounds of the dims than those of the text.
        known: digest -> Weight, for weights that are not beside it.

    Raises:
        LlmcError: a file is damaged, the two do not belong together, or what is asked for does not fit them.
    """
    from llmc.compiler.graph_file import read_graph, weights_path
    from llmc.compiler.verify import verify_module

    path = Path(path)
    found = read_graph(path, known)
    module = found.module.each(lambda _, graph: _bounded(graph, path, batch=max_batch, seq=max_seq))
    verify_module(module)
    imported = of_module(module, found.texts, path, weights_path(path))
    return _for_task(replace(imported, pipeline=found.pipeline), task, path)


def of_module(module: Any, texts: Mapping[str, str], path: Path, beside: Path) -> Imported:
    """A module with what else its import knew.

    Args:
        texts: as `texts_of` makes them, which lie in the file `beside`.
        path: what it is called by, if they do not say.

    Raises:
        LlmcError: they are not as llmc writes them.
    """
    from llmc.compiler.graph_file import facts_of

    graph = next(iter(module.functions.values()))
    functions = {} if len(module.functions) == 1 and "forward" in module.functions else module.functions
    try:
        imported = _imported(graph, path, facts_of(texts, str(beside)), texts.get(TOKENIZER), beside)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"model.json is not as llmc writes it: {type(error).__name__} {error}"
        raise LlmcError(problem, at=str(beside), hint="write the graph again") from None
    return replace(imported, functions=functions)


def _bounded(graph: Any, path: Path, **asked: int | None) -> Any:
    """The graph with lower bounds, where they are asked for."""
    dims = dict(graph.dims)
    for name, most in asked.items():
        if most is None or name not in dims:
            continue
        low, high = dims[name]
        if not max(low, 1) <= most <= high:
            raise LlmcError(
                f"max_{name} {most} is not within the graph's bounds",
                at=str(path),
                found=f"{name}={low}..{high}",
            )
        dims[name] = (low, most)
    return replace(graph, dims=dims)


def _imported(
    graph: Any, path: Path, facts: Mapping[str, Any], tokenizer: str | None, beside: Path
) -> Imported:
    usual = {"name": path.stem, "task": GENERIC}
    said = {key: _of(facts.get(key, usual.get(key, "")), str) for key in _TEXTS}
    return Imported(
        graph,
        **said,
        labels=tuple(_of(label, str) for label in _of(facts.get("labels", []), list)),
        tokenizer=None if tokenizer is None else _tokenizer(_of(facts["tokenizer"], dict), tokenizer, beside),
        sentence=_sentence(_of(facts["sentence"], dict)) if facts.get("sentence") else None,
        preprocess=_of(facts.get("preprocess", {}), dict),
        scores=_one_of(facts.get("scores"), _SCORES),
        decoder=_of(facts.get("decoder", {}), dict),
        generation=_of(facts.get("generation", {}), dict),
        ensemble=_of(facts.get("ensemble", {}), dict),
        chat_template=_of(facts.get("chat_template"), (str, type(None))),
    )


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(repr(value)[:60])
    return value


def _one_of(value: Any, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ValueError(repr(value)[:60])
    return value


def _tokenizer(facts: Mapping[str, Any], text: str, file: Path) -> Tokenizer:
    said = {key: _of(facts.get(key), kind) for key, kind in _SETTINGS.items()}
    said["inputs"] = tuple(_of(name, str) for name in said["inputs"])
    for key in ("truncation_side", "padding_side"):
        _one_of(said[key], _SIDES)
    if said["max_length"] < 1 or said["pad_id"] < 0:
        raise ValueError(f"max_length {said['max_length']}, pad_id {said['pad_id']}")
    return Tokenizer(file=file, made=text, **said)


def _sentence(facts: Mapping[str, Any]) -> Sentence:
    """All that is said of pooling; what is done to texts is in the tokenizer by now."""
    return Sentence(
        pooling=tuple(_of(mode, str) for mode in facts["pooling"]),
        before=tuple(map(_step, facts["before"])),
        steps=tuple(map(_step, facts["steps"])),
        width=_of(facts["width"], (int, type(None))),
        pools_prompt=facts.get("pools_prompt") is not False,
        similarity=_of(facts.get("similarity"), (str, type(None))),
    )


def _step(fact: Any) -> Step:
    if not isinstance(fact, dict):
        return str(fact)
    if "kind" in fact:
        return Layer(_one_of(fact["kind"], tuple(LAYERS)), Path(), _of(fact["start"], int))
    return Dense(Path(), bool(fact["bias"]), str(fact["activation"]), bool(fact.get("residual")))


def _for_task(imported: Imported, task: str, path: Path) -> Imported:
    if task in ("auto", imported.task):
        return imported
    if imported.task != GENERIC:
        found, hint = f"--task {task}", "import the model again for another task"
        raise LlmcError(f"the graph was imported for {imported.task}", at=str(path), found=found, hint=hint)
    from llmc.compiler.frontends.beside import with_task
    from llmc.compiler.frontends.tasks import TASKS, near

    if task not in TASKS:
        raise LlmcError(f"no task {task!r}", hint=near(task, ["auto", GENERIC, *TASKS], "tasks"))
    return replace(imported, graph=with_task(path, imported.graph, task), task=task)


def write(path: Path, imported: Imported, module: Any = None) -> None:
    """Write a graph's two files; `module` is what passes have made of the import.

    Raises:
        LlmcError: they cannot be written, or would take the place of what llmc did not write.
    """
    from llmc.compiler.graph_file import write_graph

    write_graph(path, module or imported.module, texts_of(imported))


def texts_of(imported: Imported) -> dict[str, str]:
    """What else the import knows, as the texts of `load`."""
    from llmc.compiler.graph_file import FORMAT, MODEL

    facts: dict[str, Any] = {"format": FORMAT, **{key: getattr(imported, key) for key in _TEXTS}}
    facts |= {
        "labels": list(imported.labels),
        "preprocess": dict(imported.preprocess),
        "decoder": dict(imported.decoder),
        "scores": imported.scores,
    }
    if imported.generation:
        facts["generation"] = dict(imported.generation)
    if imported.ensemble:
        facts["ensemble"] = dict(imported.ensemble)
    if imported.chat_template is not None:
        facts["chat_template"] = imported.chat_template
    if imported.sentence is not None:
        facts["sentence"] = _sentence_facts(imported.sentence)
    if imported.tokenizer is None:
        return {MODEL: _json(facts)}
    settings = asdict(imported.tokenizer)
    facts["tokenizer"] = {key: settings[key] for key in _SETTINGS}
    return {MODEL: _json(facts), TOKENIZER: imported.tokenizer.text}


def said(imported: Imported) -> dict[str, Any]:
    """What else the import knows that changes answers, by name: not what the model is called."""
    from llmc.compiler.graph_file import MODEL

    texts = texts_of(imported)
    facts = json.loads(texts[MODEL])
    facts |= {f"tokenizer's {key}": value for key, value in facts.pop("tokenizer", {}).items()}
    if TOKENIZER in texts:
        facts[TOKENIZER] = f"sha256 {hashlib.sha256(texts[TOKENIZER].encode()).hexdigest()[:16]}"
    return {key: value for key, value in facts.items() if key not in _NAMES}


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in facts.items() if v not in ("", [], {}, None)}, indent=1)


def _sentence_facts(sentence: Sentence) -> dict[str, Any]:
    def plain(step: Step) -> Any:
        return step if isinstance(step, str) else {k: v for k, v in asdict(step).items() if k != "folder"}

    return {
        "pooling": list(sentence.pooling),
        "before": [plain(step) for step in sentence.before],
        "steps": [plain(step) for step in sentence.steps],
        "width": sentence.width,
        "pools_prompt": sentence.pools_prompt,
        "similarity": sentence.similarity,
    }
