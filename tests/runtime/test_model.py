"""The Python runtime on the artifact `tiny`: what it accepts, refuses and gives."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtime import TensorInfo, load


@pytest.fixture(scope="module")
def model(tiny):
    with load(tiny, threads=2) as model:
        yield model


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 64), (64, 512), (2, 5)])
def test_run(tiny, expected, threads, shape):
    rng = np.random.default_rng(0)
    with load(tiny, threads=threads) as model:
        ids, mask = rng.integers(0, 10, shape), rng.integers(0, 2, shape)
        same(model(input_ids=ids, attention_mask=mask), expected(ids, mask))
        same(model(input_ids=ids), expected(ids))


def test_signature(model):
    assert model.inputs["input_ids"] == TensorInfo("i64", ("batch", "seq"), None, (0, 9))
    assert list(model.outputs.items())[2] == ("ramp", TensorInfo("f32", ("2*seq + 1",)))
    assert dict(model.dims) == {"batch": (1, 64), "seq": (1, 512)}
    assert (model.labels, model.task, model.threads) == (("no", "yes"), "sentence-embedding", 2)
    assert "input_ids: i64[batch, seq]" in repr(model)
