"""Compressed artifacts: smaller on disk, they pass their self-test, and their pipeline replays.

For AVX2 alone, which LLVM is quickest with: what reads compressed weights runs on every variant in tests/targets.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from random_families import random_model

import llmc
from llmc.errors import LlmcError
from llmc.evaluate import evaluate
from llmc.runtime.weights import HEADER_BYTES


def compiled(model: Path, output: Path, **options: object) -> llmc.Model:
    llmc.compile(model, output, **{"target": "x86-avx2", "max_batch": 8} | options)
    return llmc.load(output)


@pytest.mark.parametrize("kind", ["prune", "share", "heads"])
def test_artifacts_shrink_and_replay(small_model: Path, small: Path, tmp_path: Path, kind: str) -> None:
    options = {
        "prune": {"prune": "sparsity=0.5,least=256"},
        "share": {"share": "clusters=16,least=256"},
        "heads": {"prune": ["heads:0.5", "neurons:0.5"], "factorize": "energy=0.8,least=256"},
    }[kind]
    own, again = tmp_path / "own.llmc", tmp_path / "again.llmc"
    if kind == "heads":  # feed-forward blocks that are no wider inside have no neurons to prune
        small_model = tmp_path / "wide"
        random_model("bert", "ForSequenceClassification", intermediate_size=64).save_pretrained(small_model)
    compiled(small_model, own, **options)  # runs the self-test
    assert (own / "weights.bin").stat().st_size < (small / "weights.bin").stat().st_size
    pipeline = json.loads((own / "manifest.json").read_text())["pipeline"]
    compiled(small_model, again, passes=pipeline)
    first, second = ((path / "weights.bin").read_bytes() for path in (own, again))
    assert first[HEADER_BYTES:] == second[HEADER_BYTES:]
    ids = np.arange(1, 9).reshape(2, 4)
    answers = []
    for path in (own, again):
        with llmc.load(path) as model:
            answers.append(model(input_ids=ids)["logits"])
    np.testing.assert_array_equal(*answers)


def test_eval_beside_pytorch(small_model: Path, small: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    texts = ["a b c", "d", "e f g h a b", "h h", "c a d"]
    data.write_text(
        "text,label\n"
        + "".join(f"{t},{label}\n" for t, label in zip(texts, ("bad", "good", 1, 0, 2), strict=True))
    )
    found = evaluate(small, data, small_model, threads=1)
    assert (found.rows, found.agreement, found.difference) == (5, 1.0, 0.0)
    assert found.accuracy == found.baseline_accuracy


def test_a_compile_that_verifies_each_pass(small_model: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from llmc.compiler.ops import make\n"
        "from llmc.compiler.rewrite import RewritePass\n\n"
        "def tanh_for_gelu(node):\n"
        '    """gelu(x) -> tanh(x), which is wrong"""\n'
        '    if node.op == "gelu":\n'
        '        return make("tanh", node.inputs, node.source)\n\n'
        "class Wrong(RewritePass):\n"
        "    rules = (tanh_for_gelu,)\n"
    )
    output = tmp_path / "m.llmc"
    with pytest.raises(LlmcError) as caught:
        llmc.compile(small_model, output, passes=f"simplify,{wrong}:Wrong,fuse", verify_each=True)
    assert "Wrong promises exact and breaks it" in caught.value.problem
    assert "tanh_for_gelu at gelu" in caught.value.found
    assert "intermediate" in caught.value.at
    assert not output.exists()
