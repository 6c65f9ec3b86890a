"""A model that skips padding beside the same model that computes it: equal bits at every token, zeros elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from random_families import random_model

import llmc
from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.driver import compile_graph
from llmc.errors import LlmcError

pytestmark = pytest.mark.xdist_group("ragged")


def masks(batch: int, seq: int) -> Iterator[np.ndarray[Any, Any]]:
    """All tokens, padding on the right and on the left, holes, one token, a row of none, none at all."""
    rng = np.random.default_rng(seq)
    right = (np.arange(seq) < rng.integers(1, seq + 1, (batch, 1))).astype(np.int64)
    yield np.ones_like(right)
    yield right
    yield right[:, ::-1].copy()
    yield rng.integers(0, 2, (batch, seq))
    yield (np.arange(seq) < np.ones((batch, 1))).astype(np.int64)
    yield np.concatenate([right[1:], np.zeros((1, seq), np.int64)])
    yield np.zeros_like(right)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The default, and what `--padding computed` makes."""
    folder = tmp_path_factory.mktemp("ragged")
    random_model("bert", "Model", max_position_embeddings=160).save_pretrained(folder / "bert")
    reports = {}
    for padding, target in (("zero", "x86"), ("computed", "native")):
        path = folder / f"{padding}.llmc"
        reports[padding] = llmc.compile(folder / "bert", path, target=target, max_batch=8, padding=padding)
    return SimpleNamespace(folder=folder, reports=reports)


def test_the_pipeline_says_what_was_done(made: SimpleNamespace) -> None:
    assert made.reports["zero"].pipeline.endswith("cse,blank,ragged")
    assert "ragged" not in made.reports["computed"].pipeline
    with llmc.load(made.folder / "zero.llmc") as model:
        assert model.selftest().passed
        assert set(model.dims) == {"batch", "seq"}


def test_same_bits_at_tokens(made: SimpleNamespace, variants: Any) -> None:
    with llmc.load(made.folder / "computed.llmc", threads=1) as whole:
        for variant in variants(made.folder / "zero.llmc"):
            for threads in (1, 3):
                with llmc.load(made.folder / "zero.llmc", threads=threads, variant=variant) as model:
                    check(model, whole)


def check(model: Any, whole: Any) -> None:
    for batch, seq in ((1, 1), (3, 17), (4, 130)):
        ids = np.random.default_rng(seq).integers(2, 100, (batch, seq))
        for mask in masks(batch, seq):
            found, expected = (m(input_ids=ids, attention_mask=mask) for m in (model, whole))
            np.testing.assert_array_equal(found["pooler_output"], expected["pooler_output"])
            hidden = np.where(mask[..., None] != 0, expected["last_hidden_state"], 0)
            np.testing.assert_array_equal(found["last_hidden_state"], hidden)
        np.testing.assert_array_equal(
            model(input_ids=ids)["last_hidden_state"], whole(input_ids=ids)["last_hidden_state"]
        )


def test_a_benchmark_counts_what_is_run(made: SimpleNamespace) -> None:
    with llmc.load(made.folder / "zero.llmc") as model, llmc.load(made.folder / "computed.llmc") as whole:
        full = [m.benchmark(batch=2, seq=32, duration=0.01).flops for m in (model, whole)]
        short = model.benchmark(batch=8, seq=32, shortest=1, duration=0.01).flops
        with pytest.raises(LlmcError, match="shortest is 0"):
            model.benchmark(shortest=0)
    assert full[0] == pytest.approx(full[1], rel=0.01)
    assert short < 0.9 * 4 * full[0]


def test_outputs_as_large_as_the_data_says(tmp_path: Path) -> None:
    """A graph may give rows of tokens: their number is part of the output's shape."""
    b, s, t = (symbol(name) for name in ("batch", "seq", "tokens"))
    x, mask = input_("x", "f32", (b, s, 3)), input_("mask", "bool", (b, s), default=1)
    index = make("pack_index", (mask,), tokens=t)
    rows = make("embedding", (make("reshape", (x,), shape=(b * s, 3)), index))
    dims = {"batch": (1, 4), "seq": (1, 9), "tokens": (1, 36)}
    graph = Graph((x, mask), {"rows": rows, "offsets": make("pack_offsets", (mask,))}, dims)
    compile_graph(graph, tmp_path / "m.llmc")
    with llmc.load(tmp_path / "m.llmc") as model:
        for given in ({}, {"mask": np.array([[True, False, True], [False, False, False]])}):
            inputs = {"x": np.arange(18, dtype=np.float32).reshape(2, 3, 3), **given}
            for name, value in interpret.run(graph, inputs).items():
                np.testing.assert_array_equal(model(**inputs)[name], value)


def test_a_padding_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="no padding 'left'"):
        llmc.compile(tmp_path, tmp_path / "m.llmc", padding="left")
