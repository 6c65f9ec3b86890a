"""`llmc compile`, `inspect` and `opt` on .onnx and .pt2 files; all-MiniLM-L6-v2 by every road."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import to_onnx, to_pt2

import llmc
from llmc.compiler.frontends.dispatch import load
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.driver import compile_graph
from llmc.passes import LEVELS, PASSES

pytestmark = pytest.mark.xdist_group("model-files")
O3 = Pipeline.parse(LEVELS[3], PASSES)


@pytest.fixture(scope="module")
def tiny() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(**sizes, vocab_size=50, max_position_embeddings=32)
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def reference(model: Any, ids: Any, mask: Any) -> Any:
    import torch

    with torch.no_grad():
        hidden = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    return np.where(mask[..., None], hidden, 0)  # artifacts give zeros at padding


@pytest.mark.parametrize("kind", ["script.onnx", "dynamo.onnx", "pt2"])
def test_compile_and_run(kind: str, tiny: Any, cli: Any, tmp_path: Path) -> None:
    file = tmp_path / f"tiny.{kind.rpartition('.')[2]}"
    if kind == "pt2":
        to_pt2(tiny, file, max_seq=32)
    else:
        to_onnx(tiny, file, kind.partition(".")[0], max_seq=32)
    done = cli("compile", str(file), "-o", str(tmp_path / "tiny.llmc"))
    assert done.code == 0, done.err
    ids = np.array([[2, 3, 4, 5, 6], [7, 8, 9, 0, 0]])
    mask = (ids > 0).astype(np.int64)
    with llmc.load(tmp_path / "tiny.llmc") as model:
        assert (model.name, model.task) == ("tiny", "generic")
        got = model(input_ids=ids, attention_mask=mask)["last_hidden_state"]
    np.testing.assert_allclose(got, reference(tiny, ids, mask), rtol=0, atol=1e-5)


def test_inspect_and_opt(tiny: Any, cli: Any, tmp_path: Path) -> None:
    file = to_onnx(tiny, tmp_path / "tiny.onnx", "script", max_seq=32)
    facts = json.loads(cli("inspect", str(file), "--json").out)
    assert [i["name"] for i in facts["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert facts["dims"] == {"batch": [1, 1024], "seq": [1, 32]}
    assert facts["written_by"].startswith("pytorch")
    shown = cli("inspect", str(file))
    assert "last_hidden_state" in shown.out
    text = cli("opt", str(file)).out
    assert text.count(" = mha") == 1


def test_a_file_that_is_no_model(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"<html>not found</html>")
    for command in (("inspect",), ("opt",), ("compile", "-o", str(tmp_path / "m.llmc"))):
        done = cli(command[0], str(tmp_path / "m.onnx"), *command[1:])
        assert done.code == 1
        assert "error: the file" in done.err
    assert not (tmp_path / "m.llmc").exists()


def blocks(graph: Graph) -> list[int]:
    """How many of each op a transformer's blocks are made of."""
    after, _ = O3.run(graph)
    ops = Counter(n.op for n in after.nodes)
    assert ops["linear"] - ("pooler_output" in after.outputs) == 24
    return [ops[op] for op in ("mha", "layer_norm", "embed_norm", "matmul", "softmax", "gelu", "chain")]


@cache
def blocks_of_folder(folder: Path) -> list[int]:
    return blocks(load(folder, task="feature-extraction").graph)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["script.onnx", "dynamo.onnx", "pt2"])
def test_minilm_by_every_road(kind: str, minilm: Path, tmp_path: Path) -> None:
    """The file compiles to the same blocks as the folder, and the artifact answers as PyTorch does."""
    import transformers

    eager = {"attn_implementation": "eager"} if "11" in kind else {}
    model = transformers.AutoModel.from_pretrained(minilm, **eager).eval()
    file = tmp_path / f"minilm.{kind.rpartition('.')[2]}"
    if kind == "pt2":
        to_pt2(model, file, max_seq=512)
    else:
        to_onnx(model, file, kind[:6], 11 if eager else None, max_seq=512)
    graph = load(file).graph
    assert blocks(graph) == blocks_of_folder(minilm) == [6, 12, 1, 0, 0, 0, 0]

    compile_graph(graph, tmp_path / "m.llmc", padding="zero")

    rng = np.random.default_rng(0)
    with llmc.load(tmp_path / "m.llmc") as compiled:
        for batch, seq in ((1, 1), (2, 9), (3, 64)):
            ids = rng.integers(1000, 30000, (batch, seq))
            mask = (np.arange(seq) < rng.integers(1, seq + 1, (batch, 1))).astype(np.int64)
            got = compiled(input_ids=ids, attention_mask=mask)["last_hidden_state"]
            np.testing.assert_allclose(got, reference(model, ids, mask), rtol=0, atol=1e-4)
