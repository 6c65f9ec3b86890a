"""manifest.json: its fields, how they are checked, and the seal that tells an edited file from a written one.

The table of fields is in format.md. The compiler builds a plain dict and calls `seal`; the runtime calls
`read_manifest`, which trusts nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError
from llmc.runtime.encoder import TokenizerEntry, read_entry
from llmc.runtime.fields import Field
from llmc.runtime.generation_entry import GenerationEntry, read_generation

FORMAT = 2
MANIFEST, MODULE, WEIGHTS = "manifest.json", "module.so", "weights.bin"
DTYPES = ("f32", "f16", "bf16", "i8", "u8", "i32", "i64", "bool", "f64")
MAX_RANK, MAX_DIMS = 8, 16
MAX_SIZE = 2**62


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file of the artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorEntry:
    """One input or output. `shape` holds ints and expressions over the dims; `range` is inclusive."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    default: float | None = None
    range: tuple[int, int] | None = None


@dataclass(frozen=True)
class FunctionEntry:
    """One function: its inputs and outputs, in the order of the C interface."""

    name: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class StateEntry:
    """What a session keeps from call to call. `grows` is the axis that grows, None where the shape stays."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    grows: int | None = None


@dataclass(frozen=True)
class Variant:
    """Code for one set of CPU features; best first in the manifest."""

    name: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; `raw` is the JSON object itself. Fields as in format.md."""

    path: Path
    llmc: str
    name: str
    build_id: str
    task: str
    functions: tuple[FunctionEntry, ...]
    states: tuple[StateEntry, ...]
    dims: Mapping[str, tuple[int, int]]
    target: str
    machine: str
    variants: tuple[Variant, ...]
    pipeline: str
    quantisation: str
    files: Mapping[str, FileEntry]
    selftest: tuple[float, float] | None
    labels: tuple[str, ...] | None
    tokenizer: TokenizerEntry | None
    generation: GenerationEntry | None
    adapters: tuple[str, ...]
    postprocess: Mapping[str, Any]
    sizes: Mapping[str, int]
    raw: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        """Of the first function."""
        return self.functions[0].inputs

    @property
    def outputs(self) -> tuple[TensorEntry, ...]:
        """Of the first function."""
        return self.functions[0].outputs


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with "sha256" added: the hash of all the others as canonical JSON.

    Raises:
        ValueError: a field is no JSON value.
    """
    rest = {key: value for key, value in fields.items() if key != "sha256"}
    return {**rest, "sha256": _digest(rest)}


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check `folder`/manifest.json; no other file is opened.

    Raises:
        LlmcError: the file is missing, not JSON, edited, of another format, or a field is wrong.
    """
    path = Path(folder) / MANIFEST
    root = Field(_parse(path), str(path), "")
    number = root["format"].integer(1, MAX_SIZE)
    if number != FORMAT:
        raise _other_format(number, path)
    _check_seal(root)
    return _manifest(root, path)


def _other_format(number: int, path: Path) -> LlmcError:
    if number > FORMAT:
        advice = "a newer llmc wrote it: update llmc"
    else:
        advice = "an older llmc wrote it: compile the model again (docs/compatibility.md)"
    return LlmcError(f"artifact format {number} is not supported, only {FORMAT}", at=str(path), hint=advice)


def _digest(rest: Mapping[str, Any]) -> str:
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise LlmcError(
            f"cannot read {MANIFEST}: {error.strerror or error}",
            at=str(path),
            hint="give the folder that `llmc compile` wrote",
        ) from None
    except (ValueError, RecursionError) as error:
        raise LlmcError(
            f"{MANIFEST} is not JSON: {error}", at=str(path), hint="copy the artifact again"
        ) from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _check_seal(root: Field) -> None:
    stored = root["sha256"].sha256()
    rest = {key: value for key, value in root.value.items() if key != "sha256"}
    try:
        found = _digest(rest)
    except (ValueError, RecursionError) as error:
        raise LlmcError(f"{MANIFEST} is damaged: {error}", at=root.file) from None
    if stored != found:
        raise LlmcError(
            f"{MANIFEST} was edited or damaged",
            at=root.file,
            found=f"sha256 {found[:12]}... of its fields, {stored[:12]}... on record",
            hint="copy the artifact again, or compile the model again",
        )


def _manifest(root: Field, path: Path) -> Manifest:
    dims = {k: f.pair(0, MAX_SIZE) for k, f in root["dims"].mapping().items()}
    if len(dims) > MAX_DIMS:
        raise root["dims"].wrong(f"at most {MAX_DIMS} dims")
    files = {k: FileEntry(f["bytes"].integer(0, MAX_SIZE), f["sha256"].sha256()) for k, f in _files(root)}
    functions = _functions(root["functions"])
    return Manifest(
        path=path,
        llmc=root["llmc"].text(),
        name=root["name"].text(),
        build_id=root["build_id"].sha256(),
        task=root["task"].text(),
        functions=functions,
        states=_states(root["states"]),
        dims=dims,
        target=root["target"].text(),
        machine=root["machine"].text() if "machine" in root else "x86_64",
        variants=tuple(
            Variant(v["name"].text(), tuple(f.text() for f in v["features"].items()))
            for v in root["variants"].items()
        ),
        pipeline=root["pipeline"].text(),
        quantisation=root["quantisation"].text(),
        files=files,
        selftest=_selftest(root),
        labels=tuple(f.text() for f in root["labels"].items()) if "labels" in root else None,
        tokenizer=read_entry(root["tokenizer"], files) if "tokenizer" in root else None,
        generation=read_generation(root["generation"], {f.name: f for f in functions}, files, dims)
        if "generation" in root
        else None,
        adapters=tuple(f.text() for f in root["adapters"].items()) if "adapters" in root else (),
        postprocess={k: f.scalar() for k, f in root["postprocess"].mapping().items()},
        sizes={k: f.integer(0, MAX_SIZE) for k, f in root["sizes"].mapping().items()},
        raw=root.value,
    )


def _files(root: Field) -> list[tuple[str, Field]]:
    files = root["files"].mapping()
    for name, entry in files.items():
        if "/" in name or "\0" in name or name in ("", ".", "..", MANIFEST):
            raise entry.wrong("a plain file name as key")
    for name in (MODULE, WEIGHTS):
        if name not in files:
            raise root["files"].wrong(f"an entry for {name}")
    return list(files.items())


def _functions(entries: Field) -> tuple[FunctionEntry, ...]:
    functions = tuple(
        FunctionEntry(e["name"].text(), _tensors(e["inputs"]), _tensors(e["outputs"]))
        for e in entries.items()
    )
    if not functions:
        raise entries.wrong("at least one function")
    if len({f.name for f in functions}) != len(functions):
        raise entries.wrong("different names")
    return functions


def _states(entries: Field) -> tuple[StateEntry, ...]:
    states = tuple(_state(entry) for entry in entries.items())
    if len({s.name for s in states}) != len(states):
        raise entries.wrong("different names")
    return states


def _state(entry: Field) -> StateEntry:
    shape = _shape(entry["shape"])
    grows = entry["grows"].integer(0, len(shape) - 1) if "grows" in entry else None
    return StateEntry(entry["name"].text(), entry["dtype"].one_of(DTYPES), shape, grows)


def _shape(entry: Field) -> tuple[int | str, ...]:
    axes = entry.items()
    if len(axes) > MAX_RANK:
        raise entry.wrong(f"at most {MAX_RANK} axes")
    return tuple(a.text() if isinstance(a.value, str) else a.integer(0, MAX_SIZE) for a in axes)


def _tensors(entries: Field) -> tuple[TensorEntry, ...]:
    tensors = tuple(_tensor(entry) for entry in entries.items())
    if len({t.name for t in tensors}) != len(tensors):
        raise entries.wrong("different names")
    return tensors


def _tensor(entry: Field) -> TensorEntry:
    return TensorEntry(
        name=entry["name"].text(),
        dtype=entry["dtype"].one_of(DTYPES),
        shape=_shape(entry["shape"]),
        default=entry["default"].number() if "default" in entry else None,
        range=entry["range"].pair(-(2**63), 2**63 - 1) if "range" in entry else None,
    )


def _selftest(root: Field) -> tuple[float, float] | None:
    if "selftest" not in root:
        return None
    entry = root["selftest"]
    return entry["rtol"].number(0), entry["atol"].number(0)
