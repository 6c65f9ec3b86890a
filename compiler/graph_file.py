"""A graph or module in two files: FILE.txt says what it computes, FILE.npz beside it holds the weights.

The text names weights by digest, so what is read is what was written. FILE.npz also holds texts that go with the
model, such as its tokenizer: `model.json` says at least the version of these files.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.compiler.graph import Graph, TensorType, Weight, dtype_name
from llmc.compiler.module import Module
from llmc.compiler.module_text import parse_module, text_of
from llmc.compiler.npz import NpzError, as_npz_errors
from llmc.compiler.parse import parse_graph
from llmc.compiler.text import DIGITS, INLINE, weights_of, written_out
from llmc.compiler.weight_file import Stored, plain_name, read_weights, write_weights
from llmc.compiler.whole_file import renamed
from llmc.errors import LlmcError

FORMAT = 1
MODEL = "model.json"
PIPELINE = "pipeline: "  # begins the comment that names passes
_WEIGHT = re.compile(
    r'weight\((?P<name>"(?:[^"\\]|\\.)*")(?:, "(?P<digest>[0-9a-f]{16})")?\)(?:\} : (?P<type>\w+\[.*?\]))?'
)


@dataclass(frozen=True)
class GraphFile:
    """What was read.

    Args:
        pipeline: the passes that the text names to be run, None if it names none.
        texts: what else lies in FILE.npz, by name.
        weights: all of FILE.npz, by digest.
    """

    module: Module
    pipeline: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, Weight] = field(default_factory=dict)

    @property
    def facts(self) -> Mapping[str, Any]:
        """`model.json`, empty if there is none."""
        return facts_of(self.texts, "")


def weights_path(path: Path) -> Path:
    """The file of the weights beside a text."""
    return path.with_suffix(".npz")


def want_place(path: Path) -> None:
    """Check that a graph may be written there.

    Raises:
        LlmcError: its name is not one of a text, it is a device or a folder, or the weights would take the place of
            what llmc did not write.
    """
    beside = weights_path(path)
    if path.exists() and not path.is_file():
        raise LlmcError("the output is there, and is no file", at=str(path), hint="choose another name")
    if path == beside:
        raise LlmcError("this is the name of the weights", at=str(path), hint="name the text: FILE.txt")
    if beside.exists() and not _ours(beside):
        raise LlmcError(
            f"the weights of {path.name} would take the place of a file that llmc did not write",
            at=str(beside),
            hint="choose another name",
        )


def _ours(path: Path) -> bool:
    with suppress(OSError, NpzError), as_npz_errors(), zipfile.ZipFile(path) as archive:
        return MODEL in archive.namelist()
    return False


def write_graph(
    path: Path, graph: Graph | Module, texts: Mapping[str, str] | None = None, head: Sequence[str] = ()
) -> None:
    """Write both files; each takes its name once it is whole.

    Args:
        texts: more texts to keep, by names that end in .json.
        head: comments that begin the text.

    Raises:
        LlmcError: as `want_place`; or they cannot be written.
    """
    want_place(path)
    module = Module.of(graph)
    weights = {
        d: w for g in module.functions.values() for d, w in weights_of(g).items() if not written_out(w)
    }
    lines = "".join(f"# {' '.join(line.split())}\n" for line in head)
    try:
        with renamed(path) as text, renamed(weights_path(path)) as archive:
            text.write((lines + text_of(module)).encode())
            write_weights(archive, weights.values(), {MODEL: json.dumps({"format": FORMAT}), **(texts or {})})
    except OSError as error:
        raise LlmcError(f"cannot write a graph: {error.strerror or error}", at=str(path)) from error


def read_graph(path: Path, known: Mapping[str, Weight] | None = None) -> GraphFile:
    """The graph of a text, with the weights beside it.

    Args:
        known: digest -> Weight, for what is not there.

    Raises:
        LlmcError: a file cannot be read or is malformed, or the two do not belong together.
    """
    text = _text(path)
    beside = weights_path(path)
    stored = read_weights(beside) if beside.is_file() else Stored(beside, {}, {})
    facts_of(stored.texts, str(beside))
    own = {weight.digest: weight for weight in stored.weights.values()}
    if beside.is_file():
        _want_own(text, stored, {*own, *(known or {})})
    try:
        module = parsed(text, {**(known or {}), **own})
    except LlmcError as error:
        at = f"{path}, {error.at}" if error.at else str(path)
        raise LlmcError(error.problem, at=at, found=error.found, hint=_hint(error)) from None
    lines = (line for line in text.splitlines() if line.startswith(f"# {PIPELINE}"))
    pipeline = next((line.removeprefix(f"# {PIPELINE}") for line in lines), None)
    return GraphFile(module, pipeline, stored.texts, own)


def parsed(text: str, weights: Mapping[str, Weight]) -> Module:
    """The module, or the graph as its only function, of a text.

    Raises:
        LlmcError: it is malformed, or names a weight that is not given.
    """
    if re.search(r"^\s*function ", text, re.MULTILINE):
        return parse_module(text, weights)
    return Module.of(parse_graph(text, weights))


def _hint(error: LlmcError) -> str | None:
    if not error.problem.startswith("no weight with digest"):
        return error.hint
    return "--weights FOLDER, or a model's file, names what it was made from; weights made by passes are not there"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        hint = "give a model folder, an .onnx or .pt2 file, or a graph written by `llmc opt -o`"
        raise LlmcError("not a graph's text", at=str(path), hint=hint) from None
    except OSError as error:
        raise LlmcError(f"cannot read the graph: {error.strerror or error}", at=str(path)) from None


def facts_of(texts: Mapping[str, str], at: str) -> Mapping[str, Any]:
    """What `model.json` says, nothing if there is none.

    Args:
        at: the file that holds it.

    Raises:
        LlmcError: it is not of this version of llmc.
    """
    try:
        facts = json.loads(texts.get(MODEL, "{}"))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise LlmcError(f"{MODEL} is not a JSON object", at=at)
    if facts.get("format", FORMAT) != FORMAT:
        raise LlmcError(
            f"the graph's files are of version {facts['format']}, this llmc reads {FORMAT}",
            at=at,
            hint="use the llmc that wrote them",
        )
    return facts


def _want_own(text: str, stored: Stored, known: set[str]) -> None:
    """The arrays must be those that the text names."""
    known = {digest[:DIGITS] for digest in known}
    named = list(_WEIGHT.finditer(text))
    for match in named:
        if match["digest"] and match["digest"] not in known:
            raise _missing(json.loads(match["name"]), match["digest"], match["type"], stored)
    wanted = {match["digest"] or plain_name(json.loads(match["name"])) for match in named}
    for key, weight in stored.weights.items():
        if not {weight.digest[:DIGITS], weight.name} & wanted and weight.array.size > INLINE:
            raise LlmcError(
                "the weights hold an array that the text does not name",
                at=str(stored.path),
                found=key,
                hint="are they of another graph? a line `%w = constant() ...` may stay though nothing reads it",
            )


def _missing(name: str, digest: str, kind: str | None, stored: Stored) -> LlmcError:
    """Why there are no such values: others of that digest or name, or none at all."""
    at, hint = str(stored.path), "do both files come from one run? write the graph again"
    exact = stored.weights.get(f"{plain_name(name)}.{digest}")
    if exact is not None and kind in (None, _type(exact)):
        problem = f"the weight {name!r} has not the values that it was written with"
        return LlmcError(problem, at=at, hint="the file is damaged: copy it again")
    other = exact or next((w for w in stored.weights.values() if w.name == plain_name(name)), None)
    if other is None:
        return LlmcError(
            f"no weight {name!r} in there", at=at, found=f"{len(stored.weights)} others", hint=hint
        )
    if kind not in (None, _type(other)):
        return LlmcError(f"the weight {name!r} is {_type(other)}, the text says {kind}", at=at, hint=hint)
    return LlmcError(f"the weight {name!r} has other values than the text was written with", at=at, hint=hint)


def _type(weight: Weight) -> str:
    return str(TensorType(dtype_name(weight.array.dtype), weight.array.shape))
