"""`llmc inspect`: what is in an artifact or a model; only model files are imported for it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llmc.cli.fixed_dims import dim_option
from llmc.cli.output import (
    adapter_options,
    extension_option,
    is_artifact,
    json_option,
    lengths_of,
    print_json,
    print_table,
    require_folder,
    size_text,
)
from llmc.compiler.frontends.axes import Asked
from llmc.compiler.frontends.dispatch import is_model_file
from llmc.compiler.frontends.hub import snapshot
from llmc.errors import LlmcError

_EPILOG = """\b
Examples:
  llmc inspect my-model.llmc            signature, sizes, code variants, pipeline, kernels
  llmc inspect my-model.llmc --batch 8 --seq 128     what a run of that size takes
  llmc inspect decoder.llmc --past 500 --sessions 4
  llmc inspect ./my-model               architecture, task, parameters, and whether llmc can compile it
  llmc inspect model.onnx               inputs, outputs, bounds, ops; says at once what cannot be compiled
  llmc inspect my-model.llmc --json     the whole manifest
"""


@click.command("inspect", epilog=_EPILOG, short_help="Show what an artifact or a model folder holds.")
@click.argument("path", type=click.Path(path_type=Path))
@extension_option
@click.option("--batch", type=click.IntRange(min=1), help="Rows of a call whose memory is wanted.")
@click.option("--seq", type=click.IntRange(min=1), help="Its tokens in a row.")
@click.option("--past", type=click.IntRange(min=0), help="Positions that the states hold before it.")
@click.option("--sessions", type=click.IntRange(min=1), help="Sequences held at a time.  [default: 1]")
@adapter_options
@dim_option
@json_option
def command(
    path: Path,
    batch: int | None,
    seq: int | None,
    past: int | None,
    sessions: int | None,
    base: Path | None,
    adapter: Path | None,
    dims: dict[str, Asked] | None,
    fixed: dict[str, float] | None,
    as_json: bool,
) -> None:
    """Show what PATH, an artifact or a model, holds, and what a run of some size takes. Nothing of it is run."""
    sizes = {name: n for name, n in (("batch", batch), ("seq", seq), ("past", past)) if n is not None}
    wants_memory = bool(sizes) or sessions is not None
    if wants_memory and (is_model_file(path) or not is_artifact(path)):
        raise click.UsageError("--batch, --seq, --past and --sessions are for artifacts.")
    if (base or adapter) and (is_model_file(path) or is_artifact(path)):
        raise click.UsageError("--base and --adapter are for model folders.")
    if (dims or fixed) and path.suffix.lower() != ".onnx":
        raise click.UsageError("--dim and --fix are for ONNX files.")
    if is_model_file(path) and path.suffix.lower() != ".gguf":
        _show_file(path, _file(path, dims, fixed), as_json)
        return
    if not is_model_file(path):
        require_folder(path, "a model or an artifact")
    if not is_model_file(path) and not _is_model(path):
        raise LlmcError(
            "neither a model nor an artifact",
            at=str(path),
            found="no config.json and no manifest.json",
            hint="give a Hugging Face folder or something that `llmc compile` wrote",
        )
    facts = _artifact(path) if is_artifact(path) else _model(path, base, adapter)
    if wants_memory:
        facts["memory"] = _memory(path, sizes, sessions or 1)
    if as_json:
        print_json(facts)
    elif is_artifact(path):
        _show_artifact(path, facts)
    else:
        _show(f"model {path}", facts)


# one of these is in every artifact and every model's folder
_MARKS = ("manifest.json", "config.json", "modules.json", "adapter_config.json")


def _is_model(path: Path) -> bool:
    return (
        any((path / name).is_file() for name in _MARKS) or any(path.glob("*.gguf")) or snapshot(path) != path
    )


def _artifact(path: Path) -> dict[str, Any]:
    from llmc.runtime.manifest import read_manifest

    return dict(read_manifest(path).raw)


def _memory(path: Path, sizes: dict[str, int], sessions: int) -> list[dict[str, Any]]:
    """What one call of each function takes, by the program's own arithmetic."""
    import llmc

    with llmc.load(path, threads=1) as model:
        if "past" in sizes:
            sizes |= dict.fromkeys(lengths_of(model), sizes.pop("past"))
        found = []
        for name in model.functions:
            needed = model.memory_needed(name, **sizes)
            each = needed.arena + needed.states
            found.append(
                {
                    "name": name,
                    "weights": needed.weights,
                    "arena": needed.arena,
                    "states": needed.states,
                    "sessions": sessions,
                    "total": needed.weights + sessions * each,
                }
            )
    return found


def _model(path: Path, base: Path | None, adapter: Path | None) -> dict[str, Any]:
    from llmc.compiler.frontends import plain_folder

    summary, parts = plain_folder.look(plain_folder.origin(path, base, adapter))
    return {**_plain_fields(summary), **parts}


def _file(path: Path, dims: dict[str, Asked] | None, fixed: dict[str, float] | None) -> dict[str, Any]:
    """What an .onnx or .pt2 file or a graph's text holds, as llmc imports it."""
    from llmc.compiler.frontends import dispatch

    imported = dispatch.load(path, dims=dims, fixed=fixed)
    module = imported.module
    nodes = [node for graph in module.functions.values() for node in graph.nodes]
    ops = Counter(n.op for n in nodes if n.op not in ("input", "state", "constant"))
    facts = {
        "path": str(path),
        "written_by": imported.architecture,
        "task": imported.task,
        "labels": list(imported.labels),
        "parameters": _parameters(module.functions),
        "tokenizer": str(imported.tokenizer.file) if imported.tokenizer else None,
        "ops": dict(ops.most_common()),
    }
    functions = {name: _signature(graph) for name, graph in module.functions.items()}
    if len(functions) > 1:
        facts["functions"] = functions
    facts |= next(iter(functions.values()))
    if module.states:
        facts["states"] = {name: str(state) for name, state in module.states.items()}
    return facts | {"dims": {name: list(bounds) for name, bounds in _dims(module).items()}}


def _signature(graph: Any) -> dict[str, Any]:
    from llmc.compiler.program import signature

    names = ("inputs", "outputs")
    found = zip(names, signature(graph), strict=True)
    return {key: [{"name": t.name, "type": str(t.type)} for t in tensors] for key, tensors in found}


def _dims(module: Any) -> dict[str, Any]:
    return {name: bounds for graph in module.functions.values() for name, bounds in graph.dims.items()}


def _parameters(functions: Mapping[str, Any]) -> int:
    """Floats in constants; what functions share counts once."""
    found = {}
    for function in functions.values():
        constants = [n.attributes["value"] for n in function.nodes if n.op == "constant"]
        for i, weight in enumerate(constants):
            found[weight.name or i, weight.array.shape] = weight.array
    return sum(int(array.size) for array in found.values() if array.dtype.kind == "f")


def _show_file(path: Path, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    tables = ("inputs", "outputs", "states", "dims")
    _show(f"model {path}", {k: v for k, v in facts.items() if k not in (*tables, "functions")})
    for name, function in facts.get("functions", {}).items():
        for key, records in function.items():
            _show_records(f"{key} of {name}", records)
    for key in tables if "functions" not in facts else tables[2:]:
        if facts.get(key):
            _show_records(key, facts[key])


def _plain_fields(summary: Any) -> dict[str, Any]:
    """A summary of a model folder as JSON values; of its own config.json only the path is kept."""
    facts: dict[str, Any] = {}
    for field in dataclasses.fields(summary):
        value = getattr(summary, field.name)
        if field.name == "config":
            continue
        if field.name == "task":
            value = getattr(value, "name", value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {k: v for k, v in dataclasses.asdict(value).items() if v is not None}
        facts[field.name] = str(value) if isinstance(value, Path) else value
    return facts


# Shown as tables of their own, in this order, when the manifest has them.
_TABLES = ("states", "dims", "memory", "files", "variants", "kernels", "products", "effects")


def _show_artifact(path: Path, manifest: dict[str, Any]) -> None:
    facts = {k: v for k, v in manifest.items() if k not in (*_TABLES, "functions")}
    joined = manifest.get("ensemble")
    if joined:
        facts["ensemble"] = f"{joined['method']} of {len(joined['members'])} members"
    _show(f"artifact {path}", facts)
    if joined:
        _show_records("members", joined["members"])
    for function in manifest["functions"]:
        of = f" of {function['name']}" if len(manifest["functions"]) > 1 else ""
        for key in ("inputs", "outputs"):
            _show_records(key + of, function[key])
    for key in _TABLES:
        if manifest.get(key):
            _show_records(key, manifest[key])


def _show(title: str, facts: Mapping[str, Any]) -> None:
    said = {
        name: value for name, value in facts.items() if value is not None and value not in ("", (), [], {})
    }
    print_table(title, ["", ""], [(name, _text(value)) for name, value in said.items()])


def _show_records(title: str, records: Any) -> None:
    """A list of mappings, or a mapping of names to mappings or plain values, as a table."""
    rows = [{"name": n, **(r if isinstance(r, Mapping) else {"value": r})} for n, r in _named(records)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print_table(title, columns, [[_cell(column, row.get(column, "")) for column in columns] for row in rows])


_BYTES = ("bytes", "weights", "arena", "states", "total")


def _cell(column: str, value: Any) -> str:
    if value is None:  # such as the axis that grows, of a state whose shape stays
        return ""
    return size_text(value) if column in _BYTES and isinstance(value, int) else _text(value)


def _named(records: Any) -> list[tuple[str, Any]]:
    if isinstance(records, Mapping):
        return list(records.items())
    plain = (
        ({k: v for k, v in r.items() if k != "name"}, r.get("name", i)) if isinstance(r, Mapping) else (r, i)
        for i, r in enumerate(records)
    )
    return [(str(name), record) for record, name in plain]


def _text(value: Any) -> str:
    """A value on one line; sha256 and other long hex is cut to what a person compares."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        joined = ", ".join(_text(v) for v in value)
        return f"[{joined}]" if len(joined) < 120 else f"{len(value)} entries: {joined[:100]} ..."
    text = str(value)
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:12]
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else text
    )
