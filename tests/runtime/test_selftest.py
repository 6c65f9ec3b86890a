"""selftest.bin: written, read, run."""

from __future__ import annotations

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime import load
from llmc.runtime.selftest import Call, difference, read_selftest, write_selftest


def test_passes(tiny):
    with load(tiny, threads=1) as model:
        result = model.selftest()
    assert (result.cases, result.passed, result.largest_error) == (2, True, 0.0)


def test_fails(copy_of_tiny, build, expected):
    ids = np.array([[1, 2]])
    wrong = expected(ids)
    wrong["sums"][0, 1] += 0.25
    write_selftest(
        copy_of_tiny / "selftest.bin", build.build_id, [[Call("forward", {"input_ids": ids}, wrong)]]
    )
    build.write_manifest(copy_of_tiny)
    with load(copy_of_tiny) as model:
        result = model.selftest()
    assert not result.passed
    assert result.failures == ("case 0: sums is off by 0.25",)


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((2, 3)).astype(np.float32),
        "b": np.array(5, np.int64),
        "ü": np.zeros((0, 4), np.bool_),
        "h": rng.standard_normal(7).astype(np.float16),
    }
    write_selftest(tmp_path / "s", "a" * 64, [[Call("f", arrays, {}), Call("ü", {}, arrays)], []])
    build_id, cases = read_selftest(tmp_path / "s")
    assert (build_id, [len(case) for case in cases]) == ("a" * 64, [2, 0])
    assert [call.function for call in cases[0]] == ["f", "ü"]
    for found in (cases[0][0].inputs, cases[0][1].outputs):
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_damaged(tiny, tmp_path):
    """Every truncation and 300 random changes of bytes: read, or a clear error."""
    data, rng = (tiny / "selftest.bin").read_bytes(), np.random.default_rng(0)
    damaged = [data[:n] for n in range(len(data))]
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        damaged.append(bytes(changed))
    for content in damaged:
        (tmp_path / "s").write_bytes(content)
        problem = ""
        try:
            read_selftest(tmp_path / "s")
        except LlmcError as error:
            problem = error.problem
        assert "selftest.bin is damaged" in problem or len(content) == len(data)


def test_other_build(copy_of_tiny, build):
    write_selftest(copy_of_tiny / "selftest.bin", "b" * 64, [])
    build.write_manifest(copy_of_tiny)
    with load(copy_of_tiny) as model, pytest.raises(LlmcError, match="belongs to another build"):
        model.selftest()


@pytest.mark.parametrize(("recorded", "within"), [(np.nan, False), (np.inf, False), (None, True)])
def test_what_is_not_finite_is_compared_too(recorded, within):
    found = np.array([1.0, np.nan, np.inf, -np.inf], np.float32)
    expected = found.copy()
    if recorded is not None:
        expected[0] = recorded
    assert difference(found, expected, 1e-3, 1e-3)[1] is within
    assert difference(expected, found, 1e-3, 1e-3)[1] is within
