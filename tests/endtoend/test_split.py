"""`--matmul int8x3`: one artifact whose variants agree in every bit, near to the answers of fma."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import instruction_sets
import numpy as np
import pytest

import llmc


@pytest.fixture(scope="module")
def made(small_model: Path, shared: Callable[..., Path]) -> Path:
    options = {"target": "x86", "max_batch": 8, "matmul": "int8x3"}
    with instruction_sets.code_of_this_processor():
        return shared("small-int8x3.llmc", partial(llmc.compile, small_model, **options))


def given(batch: int, seq: int) -> dict[str, Any]:
    ids = np.random.default_rng(seq).integers(2, 9, (batch, seq))
    mask = np.ones_like(ids)
    mask[1:, seq // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_the_manifest_says_so(made: Path, small: Path) -> None:
    ours, plain = llmc.runtime.read_manifest(made), llmc.runtime.read_manifest(small)
    assert ours.raw["pipeline"] == f"{plain.raw['pipeline']},split,cse"
    assert [v.name for v in ours.variants] == ["avx512amx", "avx512vnni", "avx512", "avx2vnni", "avx2"]


def test_bits(made: Path, small: Path, variants: Any, bits_agree: Any) -> None:
    """On every variant and number of threads; a row alone, padded and in a batch."""
    inputs, runs = given(3, 20), []
    for name in variants(made):
        for threads in (1, 2, 3):
            with llmc.load(made, variant=name, threads=threads) as model:
                assert model.selftest().passed
                runs.append(model(**inputs))
                for i, length in ((0, 20), (2, 10)):
                    alone = model(**{n: a[i : i + 1, :length] for n, a in inputs.items()})
                    assert np.array_equal(alone["logits"][0], runs[-1]["logits"][i])
    assert bits_agree(runs)
    with llmc.load(small) as plain:
        np.testing.assert_allclose(runs[0]["logits"], plain(**inputs)["logits"], rtol=1e-4, atol=1e-5)
