"""Members of ensembles, what they answer, and what is refused, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kept_graphs
import numpy as np
import pytest
from random_families import layers, random_model, sample
from safetensors.numpy import save_file

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.frontends.combining import Method, method_of
from llmc.compiler.frontends.ensemble import joined
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError

NAMES = ("a", "b", "c")
CLASSIFIER = "ForSequenceClassification"
Array = np.ndarray[Any, Any]


@cache
def member(seed: int, family: str = "bert", suffix: str = CLASSIFIER, **changes: Any) -> Imported:
    """A random model of one layer and three labels."""
    labelled = suffix.endswith("Classification")
    labels = {"id2label": {0: "bad", 1: "so-so", 2: "good"}} if labelled else {}
    model = random_model(family, suffix, seed, **layers(suffix), **labels, **changes)
    return kept_graphs.imported(model, max_batch=8)


def three(suffix: str = CLASSIFIER, **changes: Any) -> list[Imported]:
    return [member(seed, suffix=suffix, **changes) for seed in range(3)]


def answers(members: Sequence[Imported], output: str = "logits") -> tuple[dict[str, Array], list[Array]]:
    """Inputs with padding, and what each member says of them by itself, in float64."""
    inputs = sample(members[0].graph, 5, 9)
    found = []
    for one in members:
        names = {node.attributes["name"] for node in one.graph.inputs}
        given = {name: value for name, value in inputs.items() if name in names}
        found.append(interpret.run(one.graph, given)[output].astype(np.float64))
    return inputs, found


def run(
    members: Sequence[Imported], method: Method, inputs: dict[str, Array], output: str = "logits"
) -> Array:
    made = joined(members, NAMES[: len(members)], method)
    verify_module(made.module)
    return interpret.run(made.graph, inputs)[output]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def near(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def of_numbers(
    *rows: Sequence[float], scores: str = "softmax", task: str = "text-classification"
) -> list[Imported]:
    """Members that answer each sample with the sample itself plus a row of numbers."""
    made = []
    for row in rows:
        x = input_("x", "f32", (symbol("batch"), len(row)))
        graph = Graph(
            (x,), {"logits": make("add", (x, constant(np.array(row, np.float32))))}, {"batch": (1, 8)}
        )
        made.append(Imported(graph, "m", task, "", "", (), None, None, scores=scores))
    return made


def written(path: Path, weight: Any, bias: Any, inputs: str | None) -> Path:
    """A stack in the kind of file that the path names."""
    if path.suffix == ".json":
        said = {"weight": np.asarray(weight).tolist(), "bias": None if bias is None else bias.tolist()}
        path.write_text(json.dumps(said | ({"inputs": inputs} if inputs else {})))
        return path
    arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
    if path.suffix == ".npz":
        np.savez(path, **arrays, **({"inputs": inputs} if inputs else {}))
    else:
        floats = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
        save_file(floats, path, {"inputs": inputs} if inputs else None)
    return path


def refused(members: Sequence[Imported], text: str = "mean") -> LlmcError:
    names = NAMES[: len(members)]
    with pytest.raises(LlmcError) as caught:
        joined(members, names, method_of(text, names))
    return caught.value
