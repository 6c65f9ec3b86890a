"""What -O3 makes of every family: each block is a handful of fused nodes, and the outputs stay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from random_families import cases, imported

from llmc.compiler.frontends.huggingface import load
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.pipeline import Pipeline
from llmc.passes import LEVELS, PASSES

FAMILIES = sorted(
    {family for family, _ in cases()} - {"deberta-v2-conv"}
)  # its convolution is a chain of ops
O3 = Pipeline.parse(LEVELS[3], PASSES)
LAYERS = 2
DISENTANGLED = {  # positions relative to content and content to positions, which are a bias of the attention
    "linear": 6 * LAYERS,  # q and k are read by them too, so the three projections stay apart
    "matmul": 2 * LAYERS,
    "gather": 2 * LAYERS,
    "transpose": 3 * LAYERS,
}


def count(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes if n.op not in ("input", "constant"))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_fused(family: str, sample_inputs: Any) -> None:
    before = imported(family, "ForTokenClassification")[1].graph
    after, _ = O3.run(before)
    ops = count(after)

    disentangled = DISENTANGLED if family == "deberta-v2" else {}
    assert (ops["embed_norm"], ops["mha"], ops["layer_norm"]) == (1, LAYERS, 2 * LAYERS)
    for op in ("matmul", "gather", "transpose"):
        assert ops[op] == disentangled.get(op, 0) + (op == "transpose" and family == "mpnet")
    assert ops["linear"] - disentangled.get("linear", 4 * LAYERS) in (0, 1, 2)  # head, embedding projection
    assert not {"softmax", "attention", "add", "gelu", "tanh", "erf", "add_norm"} & ops.keys()
    for seq in (1, 9, 64):
        inputs = sample_inputs(before, 3, seq)
        expected, got = run(before, inputs), run(after, inputs)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_sizes(saved: Any) -> None:
    """The whole of BERT but its weights, by kind."""
    after, report = O3.run(load(saved("bert", "ForMaskedLM")[0]).graph)

    assert count(after) == {
        "embed_norm": 1,
        "iota": 1,  # positions
        "reshape": 1,
        "cast": 1,  # of the attention mask
        "linear": 4 * LAYERS + 2,
        "mha": LAYERS,
        "layer_norm": 2 * LAYERS + 1,
    }
    assert {n.inputs[3] for n in after.nodes if n.op == "mha"} == {n for n in after.nodes if n.op == "cast"}
    assert not [event for run in report.runs for event in run.declined]


def test_tied_weights_stay_tied() -> None:
    """BERT's decoder is its word embedding; ALBERT's layers share even the merged projections."""
    after, _ = O3.run(imported("bert", "ForMaskedLM")[1].graph)
    (embeddings,) = (n for n in after.nodes if n.op == "embed_norm")
    assert after.outputs["logits"].inputs[1] is embeddings.inputs[0]

    after, _ = O3.run(imported("albert", "Model")[1].graph)
    projections = [n.inputs[0] for n in after.nodes if n.op == "mha"]
    assert projections[0] is not projections[1]
    assert projections[0].inputs[1:] == projections[1].inputs[1:]


def test_sources_name_the_model() -> None:
    """Errors and profiles of fused nodes still point into the model."""
    after, _ = O3.run(imported("distilbert", "Model")[1].graph)
    named = {n.op: str(n.source) for n in after.nodes}
    assert named["mha"].startswith("transformer.layer.1.attention")
    assert named["linear"].startswith("transformer.layer.1.ffn.lin2")
    assert named["embed_norm"].startswith("embeddings.LayerNorm")
    assert all(str(n.source) for n in after.nodes)
