"""Every family with every head after the passes of a compile, against PyTorch; a few of them compiled and run.

LLVM takes most of a compile, and what it makes of a family is kernels that other families have too. So numbers are
compared by the interpreter, and those that are compiled have, together, every kind of kernel of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import instruction_sets
import kept
import numpy as np
import pytest
from joined import join, part
from kernel_kinds import kernels_of, kinds, whole
from random_families import cases, imported, reference, sample

import llmc
from llmc.compiler import interpret
from llmc.compiler.graph import Graph
from llmc.driver import compile_graph

SHAPES = [(1, 1), (3, 17), (2, 64)]
CASES = {f"{family}-{task.name}": (family, task) for family, task in cases()}
FIRST = {family: f"{family}-{task.name}" for family, task in reversed(cases())}  # one head of each
QUANTISED = ("none", "int8", "fp16")
COMPILED = (  # together they have every kind of kernel that a family or a head needs
    "albert-feature-extraction",
    "deberta-v2-feature-extraction",
    "deberta-v2-text-classification",
    "deberta-v2-conv-feature-extraction",
    "distilbert-feature-extraction",
    "distilbert-text-classification",
    "mpnet-feature-extraction",
    "mpnet-text-classification",
    "roberta-text-classification",
)
TIED = tuple(  # tables that are a product's weight too, stored once: in int8 they are two
    f"{family}-fill-mask" for family in ("albert", "deberta-v2", "distilbert", "mpnet", "roberta")
)
LEVELS = ("mpnet-fill-mask", "deberta-v2-question-answering")


def graph_of(label: str) -> Graph:
    family, task = CASES[label]
    found = imported(family, task.suffix)[1]
    assert found.task == task.name
    return found.graph


@cache
def kernels(label: str, quant: str) -> Any:
    return kernels_of(graph_of(label), target="x86", quant=quant)


def compiled(quant: str) -> tuple[str, ...]:
    return COMPILED if quant == "int8" else (*COMPILED, *TIED)


@cache
def compiled_kinds(quant: str) -> frozenset[str]:
    return frozenset().union(*(kinds_of(label, quant) for label in compiled(quant)))


def kinds_of(label: str, quant: str) -> frozenset[str]:
    """Kept, for every worker compares with those of all that is compiled."""
    made_by = (kept.versions("torch", "transformers"), kept.sources("compiler", "passes", "targets", "tests"))
    text = kept.made("kinds", (label, quant, *made_by), lambda: _text(kinds(kernels(label, quant))))
    return frozenset(text.decode().splitlines())


def _text(lines: Iterable[str]) -> bytes:
    return "\n".join(sorted(lines)).encode()


def assert_kinds_are_compiled(label: str, quant: str) -> None:
    new = kinds(kernels(label, quant)) - compiled_kinds(quant)
    assert not new, f"add it to COMPILED, which has no such kernels: {sorted(new)}"


def own_inputs(label: str, inputs: dict[str, Any]) -> dict[str, Any]:
    names = {n.attributes["name"] for n in graph_of(label).inputs}
    return {name: value for name, value in inputs.items() if name in names}


def difference(label: str, inputs: dict[str, Any], found: dict[str, Any]) -> float:
    """The largest difference to PyTorch as a fraction of the output's largest value."""
    family, task = CASES[label]
    expected = reference(imported(family, task.suffix)[0], own_inputs(label, inputs))
    worst = 0.0
    assert set(found) == set(graph_of(label).outputs)
    for name, value in found.items():
        assert value.shape == expected[name].shape
        worst = max(worst, float(np.abs(value - expected[name]).max() / np.abs(expected[name]).max()))
    return worst


@pytest.mark.parametrize("label", CASES)
def test_family_and_head(label: str) -> None:
    assert_kinds_are_compiled(label, "none")
    after = whole(kernels(label, "none"))
    for shape in SHAPES:
        inputs = sample(graph_of(label), *shape)
        assert difference(label, inputs, interpret.run(after, inputs)) <= 2e-5, shape


@pytest.mark.parametrize("quant", QUANTISED[1:])
@pytest.mark.parametrize("label", FIRST.values())
def test_quantised(label: str, quant: str) -> None:
    """Random weights, so near means a tenth of the answers' size."""
    assert_kinds_are_compiled(label, quant)
    inputs = sample(graph_of(label), 2, 9)
    expected, found = (interpret.run(g, inputs) for g in (graph_of(label), whole(kernels(label, quant))))
    for name, value in expected.items():
        assert np.abs(found[name] - value).mean() <= 0.1 * np.abs(value).max(), name


def inputs_of(graphs: Iterable[Graph], shape: tuple[int, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for graph in graphs:
        values = {**sample(graph, *shape), **values}
    return values


@pytest.mark.slow
@pytest.mark.parametrize("quant", QUANTISED)
def test_compiled(quant: str, tmp_path: Path, bits_agree: Any) -> None:
    """One artifact, so that equal kernels are made once: the same bits on every variant and number of threads."""
    graphs = {label: whole(kernels(label, quant)) for label in compiled(quant)}
    path = tmp_path / "all.llmc"
    with instruction_sets.code_of_this_processor():
        compile_graph(join(graphs, shared=True), path, target="x86", only_passes="")
    names = instruction_sets.choose(v.name for v in llmc.runtime.read_manifest(path).variants)
    for shape in SHAPES:
        inputs, runs = inputs_of(graphs.values(), shape), []
        for name, threads in ((names[0], 1), (names[0], 3), (names[0], 4), *((n, 2) for n in names)):
            with llmc.load(path, threads=threads, variant=name) as model:
                runs.append(model(**inputs))
        assert bits_agree(runs), shape
        for label in graphs:
            check_outputs(quant, label, inputs, part(runs[0], label))


def check_outputs(quant: str, label: str, inputs: dict[str, Any], found: dict[str, Any]) -> None:
    if quant == "none":
        assert difference(label, inputs, found) <= 1e-4, label
        return
    for name, value in interpret.run(graph_of(label), own_inputs(label, inputs)).items():
        assert np.abs(found[name] - value).mean() <= 0.1 * np.abs(value).max(), (label, name)


@pytest.mark.slow
def test_every_level_agrees(tmp_path: Path) -> None:
    """What the levels make of the same models, as one artifact."""
    graphs = {
        f"{level}/{label}": whole(kernels_of(graph_of(label), level=level))
        for level in (0, 1, 2)
        for label in LEVELS
    }
    compile_graph(join(graphs, shared=True), tmp_path / "all.llmc", only_passes="")
    with llmc.load(tmp_path / "all.llmc") as model:
        for shape in SHAPES:
            inputs = inputs_of(graphs.values(), shape)
            outputs = model(**inputs)
            for name in graphs:
                assert difference(name.partition("/")[2], inputs, part(outputs, name)) <= 1e-4, name
