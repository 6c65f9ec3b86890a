"""Imported models kept between runs: `torch.export` takes seconds for each, and its import some more."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import kept

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph, Node

# The frontends import no other part of llmc: docs/structure.md.
_MAKERS = ("compiler", "tests/kept.py", "tests/kept_graphs.py")
_PACKAGES = ("torch", "transformers", "numpy", "sympy", "safetensors", "tokenizers")


def imported(model: Any, **options: Any) -> Imported:
    """What `huggingface.load(folder of the model, **options)` gives."""
    parts = (identity(model), repr(sorted(options.items())))
    return _unpacked(kept.made("imported", (*parts, *_made_by()), lambda: _packed(_load(model, **options))))


def identity(model: Any) -> str:
    """A text for all that a model computes: its class, its configuration and every number in it.

    Its seed is not enough: PyTorch draws other numbers on another processor.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode() + value.numpy().tobytes())
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=repr)
    return f"{type(model).__module__}.{type(model).__qualname__} {config} {digest.hexdigest()}"


def exported(model: Any, path: Path, options: str, write: Callable[[Path], object]) -> Path:
    """`path` as `write(path)` writes it by torch's own exporters, and what that writes beside it."""
    if not type(model).__module__.startswith("transformers."):  # its code is a test's
        write(path)
        return path

    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / path.name)
            return pickle.dumps({file.name: file.read_bytes() for file in Path(folder).iterdir()})

    made_by = (kept.versions(*_EXPORTERS), kept.sources("tests/exported.py", "tests/kept_graphs.py"))
    content = kept.made("exported", (identity(model), path.name, options, *made_by), make)
    for name, data in pickle.loads(content).items():
        path.with_name(name).write_bytes(data)
    return path


_EXPORTERS = ("torch", "transformers", "onnx", "onnxscript")


def _made_by() -> tuple[str, str]:
    return kept.versions(*_PACKAGES), kept.sources(*_MAKERS)


def _load(model: Any, **options: Any) -> Imported:
    from llmc.compiler.frontends import huggingface

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return huggingface.load(Path(folder), **options)


def _packed(found: Imported) -> bytes:
    """Nodes one after the other: pickle would follow a deep graph too deep, and it takes no read-only mappings."""
    assert found.tokenizer is None  # it names a file
    graphs = dict(found.functions) or {"": found.graph}
    rest = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in ("graph", "functions")}
    return pickle.dumps(({name: _listed(graph) for name, graph in graphs.items()}, rest))


def _listed(graph: Graph) -> Any:
    number = {node: i for i, node in enumerate(graph.nodes)}
    assert not any(node.bodies for node in graph.nodes)
    nodes = [(n.op, [number[i] for i in n.inputs], dict(n.attributes), n.type, n.source) for n in graph.nodes]
    roots, updates = (
        {name: number[n] for name, n in found.items()} for found in (graph.outputs, graph.updates)
    )
    inputs, states = ([number[n] for n in part] for part in (graph.inputs, graph.states))
    return nodes, inputs, roots, {k: tuple(v) for k, v in graph.dims.items()}, states, updates


def _graph(stored: Any) -> Graph:
    listed, inputs, roots, dims, states, updates = stored
    nodes: list[Node] = []
    for op, reads, attributes, kind, source in listed:
        nodes.append(Node(op, tuple(nodes[i] for i in reads), attributes, kind, source))
    outputs, after = ({name: nodes[i] for name, i in part.items()} for part in (roots, updates))
    takes, keeps = (tuple(nodes[i] for i in part) for part in (inputs, states))
    return Graph(takes, outputs, dims, keeps, after)


def _unpacked(content: bytes) -> Imported:
    stored, rest = pickle.loads(content)
    graphs = {name: _graph(one) for name, one in stored.items()}
    functions = {} if "" in graphs else graphs
    return Imported(graph=next(iter(graphs.values())), functions=functions, **rest)
