"""Decoders and vision models compiled and run, against PyTorch: one artifact for each kind.

Those that are compiled have, together, every kind of kernel of all; tests/frontends compares the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined import join, part
from kernel_kinds import kernels_of, kinds
from random_others import CONFIGS, VISION, WHOLE, difference, imported, sample

import llmc
from llmc.driver import compile_graph

SHAPES = [(1, 1), (3, 17), (2, 64)]
GROUPS = {"decoders": ("gpt2", "llama", "mistral-window"), "vision": VISION}
pytestmark = pytest.mark.xdist_group("others")


@pytest.mark.parametrize("group", GROUPS)
def test_against_pytorch(group: str, tmp_path: Path, variants: Any, bits_agree: Any) -> None:
    models, graphs = {}, {}
    for name in GROUPS[group]:
        _, models[name], found = imported(name)
        graphs[name] = found.graph
    path = tmp_path / "all.llmc"
    compile_graph(join(graphs, shared=True), path, target="x86")

    for shape in SHAPES:
        inputs, runs = sample(GROUPS[group][0], *shape), []
        for variant in variants(path):
            for threads in (1, 3):
                with llmc.load(path, threads=threads, variant=variant) as model:
                    runs.append(model(**inputs))
        assert bits_agree(runs), shape
        for name, model in models.items():
            assert difference(model, inputs, part(runs[0], name)["logits"]) <= 1e-4, (name, shape)


def test_every_kind_of_kernel_is_compiled() -> None:
    """A model that brings a new kind is added to GROUPS."""
    found = {name: kinds(kernels_of(imported(name)[2].graph, target="x86")) for name in CONFIGS}
    compiled = frozenset().union(*(found[name] for names in GROUPS.values() for name in names))
    assert not {name: new for name, has in found.items() if (new := has - compiled)}


def test_padding_changes_no_bit(tmp_path: Path) -> None:
    """A row padded to the length of another is what it is alone."""
    llmc.compile(imported("llama")[0], tmp_path / "llama.llmc", task=WHOLE, max_batch=4)
    inputs = sample("llama", 3, 17)
    with llmc.load(tmp_path / "llama.llmc") as model:
        whole = model(**inputs)["logits"]
        for row, mask in enumerate(inputs["attention_mask"]):
            count = int(mask.sum())
            alone = model(input_ids=inputs["input_ids"][row : row + 1, :count])["logits"]
            np.testing.assert_array_equal(alone[0], whole[row, :count])
