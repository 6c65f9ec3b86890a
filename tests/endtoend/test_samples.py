"""A batch so large that it runs as several smaller ones: the bits of each sample alone, in memory for one of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_families import random_model

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import OPS, input_, make
from llmc.compiler.ops.traits import first_input
from llmc.driver import compile_graph
from llmc.errors import LlmcError

pytestmark = pytest.mark.xdist_group("samples")

BATCH, SEQ = 512, 64
ROOM = 4 << 20  # LLMC_SAMPLES_ROOM of samples.c, for each thread

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, shared: Callable[..., Path]) -> Path:
    """A small encoder that packs its tokens, in int8."""
    folder = tmp_path_factory.mktemp("samples")
    random_model("bert", "ForTokenClassification").save_pretrained(folder / "bert")
    return shared(
        "samples.llmc", lambda path: llmc.compile(folder / "bert", path, quant="int8", max_batch=BATCH)
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, shared: Callable[..., Path]) -> Path:
    """A convolution, a pool and a head."""
    nn = torch.nn
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 32 * 32, 5)
    )
    sample = {"x": torch.zeros(2, 3, 64, 64)}
    return shared(
        "sample_images.llmc", lambda path: llmc.compile_module(module.eval(), sample, path, max_batch=64)
    )


def some_texts(batch: int) -> Arrays:
    rng = np.random.default_rng(batch)
    mask = (np.arange(SEQ) < rng.integers(0, SEQ + 1, (batch, 1))).astype(np.int64)
    mask[::7] = rng.integers(0, 2, mask[::7].shape)
    return {"input_ids": rng.integers(0, 20, mask.shape), "attention_mask": mask}


def arena(model: llmc.Model, **sizes: int) -> int:
    return model.memory_needed(**sizes).arena


@pytest.mark.parametrize("threads", [1, 3])
def test_texts(texts: Path, threads: int) -> None:
    inputs = some_texts(BATCH)
    with llmc.load(texts, threads=threads) as model:
        together = model.run(inputs)
        for first in range(0, BATCH, 37):  # of other sizes, at other places of their run
            part = model.run({name: value[first : first + 5] for name, value in inputs.items()})
            for name, value in part.items():
                assert np.array_equal(value, together[name][first : first + 5]), (name, first)
        assert arena(model, batch=BATCH, seq=SEQ) < 2 * ROOM * threads
        assert arena(model, batch=1, seq=SEQ) * BATCH > ROOM * threads, "one run would do"


def test_a_mask_that_is_absent(texts: Path) -> None:
    inputs = some_texts(BATCH)
    with llmc.load(texts, threads=1) as model:
        given = model.run({**inputs, "attention_mask": np.ones((BATCH, SEQ), np.int64)})
        absent = model.run({"input_ids": inputs["input_ids"]})
        for name, value in given.items():
            assert np.array_equal(value, absent[name])


@pytest.mark.parametrize("threads", [1, 2])
def test_images(images: Path, threads: int) -> None:
    x = np.random.default_rng(0).normal(size=(64, 3, 64, 64)).astype(np.float32)
    with llmc.load(images, threads=threads) as model:
        (name,) = model.inputs
        (out,) = model.outputs
        together = model.run({name: x})[out]
        alone = np.concatenate([model.run({name: x[i : i + 1]})[out] for i in range(64)])
        assert np.array_equal(together, alone)
        assert arena(model, batch=64) < 2 * ROOM * threads


def test_bounded_memory_is_for_what_runs_at_once(texts: Path) -> None:
    with llmc.load(texts, threads=1, max_memory=2 * ROOM) as model:
        inputs = some_texts(BATCH)
        assert model.run(inputs)
        with pytest.raises(LlmcError):
            llmc.load(texts, threads=1, max_memory=1000).run(inputs)


def test_what_a_batch_needs_is_enough_for_less(texts: Path) -> None:
    """Fewer samples, or more padding, take no more memory than all samples without any."""
    with llmc.load(texts, threads=1) as model:
        needed = [model.memory_needed(batch=n, seq=SEQ).arena for n in range(1, BATCH + 1)]
    assert needed == sorted(needed)
    with llmc.load(texts, threads=1, max_memory=needed[-1]) as model:
        for batch, tokens in ((BATCH, 3), (BATCH, 9), (BATCH, 20), (BATCH // 4, 40), (BATCH // 5, SEQ)):
            inputs = some_texts(batch)
            inputs["attention_mask"] = np.broadcast_to(np.arange(SEQ) < tokens, (batch, SEQ)).astype(np.int64)
            together = model.run(inputs)
            alone = model.run({name: value[-1:] for name, value in inputs.items()})
            for name, value in alone.items():
                assert np.array_equal(value, together[name][-1:]), (name, batch, tokens)


def test_texts_in_order_of_their_lengths(texts: Path) -> None:
    """Runs of few long samples, then of many short ones, each in the memory that is there."""
    inputs = some_texts(BATCH)
    lengths = np.sort(np.random.default_rng(0).integers(1, SEQ + 1, (BATCH, 1)), axis=0)[::-1]
    inputs["attention_mask"] = (np.arange(SEQ) < lengths).astype(np.int64)
    with llmc.load(texts, threads=1, max_memory=2 * ROOM) as model:
        together = model.run(inputs)
        for first in range(0, BATCH, 61):
            part = model.run({name: value[first : first + 2] for name, value in inputs.items()})
            for name, value in part.items():
                assert np.array_equal(value, together[name][first : first + 2]), (name, first)


def test_inputs_with_several_rows_for_each_sample(tmp_path: Path) -> None:
    """Cut along with the others, in the checks of a compile too."""
    batch, seq = symbol("batch"), symbol("seq")
    rows = input_("rows", "f32", (batch * seq, 4096))
    x = input_("x", "f32", (batch, seq, 4096))
    pairs = input_("pairs", "f32", (2 * batch, 4096))
    together = make(
        "add", (make("tanh", (make("softmax", (x,), axis=1),)), make("reshape", (rows,), shape=x.shape))
    )
    outputs = {
        "y": make("softmax", (together,), axis=1),
        "p": make("softmax", (make("neg", (pairs,)),), axis=1),
    }
    graph = Graph((rows, x, pairs), outputs, {"batch": (1, 256), "seq": (1, 8)})
    compile_graph(graph, tmp_path / "rows.llmc", target="x86-avx2")
    rng = np.random.default_rng(0)
    inputs = {
        "rows": rng.normal(size=(256 * 3, 4096)).astype(np.float32),
        "x": rng.normal(size=(256, 3, 4096)).astype(np.float32),
        "pairs": rng.normal(size=(512, 4096)).astype(np.float32),
    }
    with llmc.load(tmp_path / "rows.llmc", threads=1) as model:
        assert arena(model, batch=1, seq=3) * 256 > 2 * ROOM, "one run would do"
        whole = model.run(inputs)
        for at in (0, 7, 100, 255):
            one = model.run({k: v[at * len(v) // 256 : (at + 1) * len(v) // 256] for k, v in inputs.items()})
            assert np.array_equal(one["y"], whole["y"][at : at + 1])
            assert np.array_equal(one["p"], whole["p"][2 * at : 2 * at + 2])


def test_a_deadline_between_two_of_them(texts: Path) -> None:
    inputs = some_texts(BATCH)
    with llmc.load(texts, threads=1) as model:
        expected = model.run(inputs)
        begin = time.perf_counter()
        model.run(inputs)
        took = time.perf_counter() - begin
        with model.session() as session:
            with pytest.raises(LlmcError, match="timeout"):
                session.run(inputs, timeout=took / 1000)
            again = session.run(inputs)
        for name, value in expected.items():
            assert np.array_equal(value, again[name])


def test_an_op_that_says_what_is_not_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running sum over the samples that claims to work on each for itself: right at every size that is tried."""
    x = input_("x", "f32", (symbol("batch"), 8))
    graph = Graph((x,), {"y": make("cumsum", (x,), axis=0)}, {"batch": (1, 64)})
    compile_graph(graph, tmp_path / "right.llmc")
    monkeypatch.setitem(OPS, "cumsum", replace(OPS["cumsum"], first_axis=first_input))
    with pytest.raises(LlmcError) as info:
        compile_graph(graph, tmp_path / "wrong.llmc")
    assert "y of one sample is off by" in str(info.value)
    assert not (tmp_path / "wrong.llmc").exists()
