"""Every family against PyTorch, and what the imported graphs look like.

What the passes make of them, and what is compiled of it, is in tests/endtoend.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from random_families import cases, imported, layers, reference, sample
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from llmc.compiler.frontends.buckets import tabulate
from llmc.compiler.frontends.huggingface import load
from llmc.compiler.frontends.sizes import positions, reserved
from llmc.compiler.interpret import run
from llmc.compiler.parse import parse_graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.text import print_graph, weights_of
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.ragged import ragged_steps

SHAPES = [(1, 1), (3, 17), (2, 64)]
FEW = {
    **{f: (f, t) for f, t in cases()},
    **{t.name: (f, t) for f, t in cases()},
}.values()  # each family, each head
CASES = [
    pytest.param(f, t, id=f"{f}-{t.name}", marks=[pytest.mark.imports] if (f, t) in FEW else [])
    for f, t in cases()
]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_family_and_head(family: str, task: Any, difference: Any) -> None:
    model, found = imported(family, task.suffix)

    verify(found.graph)
    assert found.task == task.name
    assert set(found.graph.outputs) <= set(task.outputs)
    assert difference(model, found.graph, SHAPES) < 1e-5


def test_pooler_output_only_with_trained_weights(saved: Any) -> None:
    assert tuple(imported("bert", "Model")[1].graph.outputs) == ("last_hidden_state", "pooler_output")

    folder, _ = saved("bert", "ForTokenClassification")
    assert tuple(load(folder, task="feature-extraction", ignore_unused=True).graph.outputs) == (
        "last_hidden_state",
    )


def test_inputs(saved: Any) -> None:
    graph = load(saved("bert", "Model")[0], max_batch=5, max_seq=30).graph

    described = [
        (str(n.type), *(n.attributes[k] for k in ("name", "default", "low", "high"))) for n in graph.inputs
    ]
    assert described == [
        ("i64[batch, seq]", "input_ids", None, 0, 99),
        ("i64[batch, seq]", "attention_mask", 1, 0, 1),
        ("i64[batch, seq]", "token_type_ids", 0, 0, 1),
    ]
    assert dict(graph.dims) == {"batch": (1, 5), "seq": (1, 30)}


def test_one_segment_needs_no_input() -> None:
    graph = imported("roberta", "Model")[1].graph

    assert [n.attributes["name"] for n in graph.inputs] == ["input_ids", "attention_mask"]
    assert graph.dims["seq"] == (1, 64)  # 66 positions, of which 2 are reserved


def test_positions_start_after_the_padding(saved: Any, difference: Any) -> None:
    folder, model = saved("roberta", "Model", pad_token_id=3, max_position_embeddings=34, **layers("x"))
    graph = load(folder, task="feature-extraction", max_batch=2).graph
    assert graph.dims["seq"] == (1, 30)
    assert difference(model, graph, [(2, 30)]) < 1e-5
    with pytest.raises(LlmcError, match="no position is left"):
        positions(
            {"model_type": "roberta", "max_position_embeddings": 34, "pad_token_id": 33}, {}, "config.json"
        )
    assert [reserved({"model_type": name, "pad_token_id": 5}) for name in ("mpnet", "bert", "camembert")] == [
        2,
        0,
        6,
    ]
    assert reserved({"model_type": "roberta", "pad_token_id": -1}) == 0


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2", "bert"])
def test_a_row_without_tokens(family: str) -> None:
    """PyTorch's values: of a mask that adds, attention is even; as imported, fused, and on rows of tokens."""
    model, found = imported(family, "ForSequenceClassification")
    inputs = sample(found.graph, 3, 6)
    inputs["attention_mask"][1] = 0
    expected = reference(model, inputs)["logits"]
    fused = Pipeline.parse(LEVELS[3], PASSES).run(found.graph)[0]
    for graph in (found.graph, fused, ragged_steps(fused, blank=True).run(fused)[0]):
        np.testing.assert_allclose(run(graph, inputs)["logits"], expected, rtol=0, atol=2e-5)


def test_a_feed_forward_by_chunks(saved: Any, difference: Any) -> None:
    folder, model = saved("bert", "Model", chunk_size_feed_forward=3, **layers("x"))
    assert difference(model, load(folder, max_batch=2).graph, [(2, 6)]) < 1e-5


def test_absent_inputs_take_transformers_defaults(saved: Any) -> None:
    folder, model = saved("bert", "ForSequenceClassification")
    ids = np.arange(2, 12).reshape(2, 5)

    result = run(load(folder).graph, {"input_ids": ids})

    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(result["logits"], expected, rtol=0, atol=1e-5)


def test_bert_arrives_whole(saved: Any) -> None:
    """Nothing but the ops a reader of the model expects, and a mask over keys only."""
    graph = load(saved("bert", "ForMaskedLM")[0]).graph

    count = Counter(node.op for node in graph.nodes if node.op not in ("constant", "input"))
    assert count == {
        "embedding": 3,
        "slice": 1,
        "add": 6,
        "layer_norm": 6,
        "linear": 14,
        "reshape": 10,
        "transpose": 8,
        "cast": 1,
        "attention": 2,
        "gelu": 3,
    }
    masks = {str(node.inputs[3].type) for node in graph.nodes if node.op == "attention"}
    assert masks == {"bool[batch, 1, 1, seq]"}


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_text_form_reads_back(family: str) -> None:
    graph = imported(family, "Model")[1].graph

    text = print_graph(graph)
    assert print_graph(parse_graph(text, weights_of(graph))) == text


def test_sources() -> None:
    graph = imported("bert", "Model")[1].graph

    attention = next(node for node in graph.nodes if node.op == "attention")
    assert attention.source.path == "encoder.layer.0.attention.self"
    assert attention.source.line.startswith("modeling_bert.py:")
    weights = {node.attributes["value"].name for node in graph.nodes if node.op == "constant"}
    assert "encoder.layer.1.output.dense.weight" in weights


def test_tied_weights_are_one_node() -> None:
    """ALBERT's layers share all weights, BERT's decoder is its word embedding."""
    albert = imported("albert", "Model")[1].graph
    assert len({node.inputs[1] for node in albert.nodes if node.op == "linear"}) == 8  # of 14

    bert = imported("bert", "ForMaskedLM")[1].graph
    tables = [node.inputs[0] for node in bert.nodes if node.op == "embedding"]
    assert bert.outputs["logits"].inputs[1] in tables


def test_buckets_are_tables() -> None:
    """A logarithm next to a rounding would decide buckets by its last bit."""
    for family in ("mpnet", "deberta-v2"):
        graph = imported(family, "Model")[1].graph
        assert not {"log", "ceil"} & {node.op for node in graph.nodes}


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_tables_are_of_one_model(family: str, make_model: Any) -> None:
    """Others of the same class, in the same process, compute their buckets as before."""
    held = MPNetEncoder.relative_position_bucket, deberta.make_log_bucket_position
    changed, other = make_model(family, "Model"), make_model(family, "Model")
    tabulate(changed, 12)

    short, long = (torch.arange(n)[None] % 7 for n in (12, 13))
    assert torch.equal(changed(short)[0], other(short)[0])
    with pytest.raises(IndexError):  # 12 tokens apart are beyond the table
        changed(long)
    assert torch.isfinite(other(long)[0]).all()
    assert (MPNetEncoder.relative_position_bucket, deberta.make_log_bucket_position) == held


def test_half_precision_checkpoint_becomes_f32(saved: Any, tmp_path: Any, difference: Any) -> None:
    model = saved("bert", "Model")[1].bfloat16()
    model.save_pretrained(tmp_path / "half")

    graph = load(tmp_path / "half").graph

    assert {node.dtype for node in graph.nodes} == {"f32", "i64", "bool"}
    assert difference(model.float(), graph, [(2, 9)]) < 1e-5


def test_tanh_gelu_stays_whole(saved: Any, difference: Any) -> None:
    folder, model = saved("bert", "Model", hidden_act="gelu_new")

    graph = load(folder).graph

    assert [n.attributes["approximate"] for n in graph.nodes if n.op == "gelu"] == ["tanh", "tanh"]
    assert difference(model, graph, [(2, 9)]) < 1e-5


@pytest.mark.parametrize(("max_batch", "max_seq"), [(1, 64), (4, 1), (1, 1)])
def test_a_bound_of_one(max_batch: int, max_seq: int, saved: Any, difference: Any) -> None:
    folder, model = saved("deberta-v2", "Model")

    graph = load(folder, max_batch=max_batch, max_seq=max_seq).graph

    assert difference(model, graph, [(max_batch, max_seq)]) < 1e-5
