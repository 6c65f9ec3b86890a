"""Every family with every head, compiled and run, against PyTorch.

The heads of several families are compiled as one graph: the code and the passes are those of each alone, and
kernels that are equal are made once.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import instruction_sets
import numpy as np
import pytest
from joined import join, part
from random_families import cases, group, imported, reference, sample

import llmc
from llmc.driver import compile_graph

SHAPES = [(1, 1), (3, 17), (2, 64)]
GROUPS = {
    name: [(f, t) for f, t in cases() if group(f) == name] for name in sorted({group(f) for f, _ in cases()})
}
PICKED = [("mpnet", "fill-mask"), ("deberta-v2", "question-answering")]


def build(pairs: list[Any], folder: Path, **options: Any) -> SimpleNamespace:
    """The models, their graphs, and one artifact of all."""
    models, graphs = {}, {}
    for family, task in pairs:
        label = f"{family}-{task.name}"
        models[label], found = imported(family, task.suffix)
        assert found.task == task.name
        graphs[label] = found.graph
    path = folder / "all.llmc"
    compile_graph(join(graphs, shared=True), path, **options)
    return SimpleNamespace(path=path, models=models, graphs=graphs)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`built(group)`, compiled once with the code of every processor."""
    done: dict[str, Any] = {}

    def of(group: str) -> Any:
        if group not in done:
            done[group] = build(GROUPS[group], tmp_path_factory.mktemp(group), target="x86")
            done[group].outputs = all_outputs(done[group])
        return done[group]

    return of


def all_outputs(made: SimpleNamespace) -> dict[Any, Any]:
    """(variant, shape) -> inputs and outputs, for every variant that runs here."""
    found = {}
    for name in instruction_sets.choose(v.name for v in llmc.runtime.read_manifest(made.path).variants):
        with llmc.load(made.path, threads=2, variant=name) as model:
            for shape in SHAPES:
                inputs = inputs_of(made, shape)
                found[name, shape] = inputs, model(**inputs)
    return found


def inputs_of(made: SimpleNamespace, shape: tuple[int, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for graph in made.graphs.values():
        values = {**sample(graph, *shape), **values}
    return values


def difference(made: SimpleNamespace, label: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> float:
    """The largest difference to PyTorch as a fraction of the output's largest value."""
    own = {n.attributes["name"] for n in made.graphs[label].inputs}
    expected = reference(made.models[label], {k: v for k, v in inputs.items() if k in own})
    found, worst = part(outputs, label), 0.0
    assert set(found) == set(made.graphs[label].outputs)
    for name, value in found.items():
        assert value.shape == expected[name].shape
        worst = max(worst, float(np.abs(value - expected[name]).max() / np.abs(expected[name]).max()))
    return worst


@pytest.mark.parametrize(
    ("group", "label"),
    [
        pytest.param(group, f"{family}-{task.name}", marks=pytest.mark.xdist_group(group))
        for group, pairs in GROUPS.items()
        for family, task in pairs
    ],
)
def test_family_and_head(group: str, label: str, built: Any) -> None:
    made = built(group)
    differences = {
        key: difference(made, label, inputs, outputs) for key, (inputs, outputs) in made.outputs.items()
    }
    assert max(differences.values()) <= 1e-4, differences


@pytest.mark.parametrize("group", [pytest.param(g, marks=pytest.mark.xdist_group(g)) for g in GROUPS])
def test_same_bits_at_every_thread_count_and_variant(group: str, built: Any, bits_agree: Any) -> None:
    made = built(group)
    for shape in SHAPES:
        runs = [outputs for (_, s), (_, outputs) in made.outputs.items() if s == shape]
        for threads in (1, 3, 4):
            with llmc.load(made.path, threads=threads) as model:
                runs.append(model(**inputs_of(made, shape)))
        assert bits_agree(runs), shape


@pytest.mark.slow
@pytest.mark.xdist_group("families-biased")
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_agrees(level: int, tmp_path: Path) -> None:
    pairs = [next((f, t) for f, t in cases() if (f, t.name) == picked) for picked in PICKED]
    made = build(pairs, tmp_path, level=level)

    with llmc.load(made.path) as model:
        for shape in SHAPES:
            inputs = inputs_of(made, shape)
            outputs = model(**inputs)
            for label in made.models:
                assert difference(made, label, inputs, outputs) <= 1e-4
