"""Statistics in C against NumPy."""

from __future__ import annotations

from ctypes import byref, c_double

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime import load, native


@pytest.fixture(scope="module")
def library(tiny):
    return native.Library(load(tiny, threads=1).path / "module.so")


def as_c(samples):
    return (c_double * len(samples))(*samples)


def summarise(library, samples):
    summary, error = native.Summary(), native.Error()
    library.check(library.summarise(as_c(samples), len(samples), byref(summary), byref(error)), error, "")
    return summary


def compare(library, a, b):
    ratio, error = native.Ratio(), native.Error()
    library.check(library.compare_samples(as_c(a), as_c(b), len(a), byref(ratio), byref(error)), error, "")
    return ratio


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101, 5000])
def test_percentiles(library, n):
    samples = np.random.default_rng(n).lognormal(size=n)
    summary = summarise(library, samples)
    for name, q in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("min", 0), ("max", 100)):
        assert getattr(summary, name) == pytest.approx(np.percentile(samples, q), rel=1e-12)
    assert summary.mean == pytest.approx(samples.mean(), rel=1e-12)
    assert summary.n == n


def test_equal_samples(library):
    summary = summarise(library, [2.5] * 40)
    assert (summary.mean_low, summary.mean, summary.mean_high, summary.p99) == (2.5,) * 4
    ratio = compare(library, [3.0] * 9, [2.0] * 9)
    assert (ratio.low, ratio.ratio, ratio.high) == (1.5,) * 3


def test_mean_interval(library):
    """Beside the normal approximation, which holds for 400 samples."""
    samples = np.random.default_rng(0).normal(10, 2, 400)
    summary = summarise(library, samples)
    half = 1.96 * samples.std(ddof=1) / 20
    assert summary.mean_low == pytest.approx(samples.mean() - half, abs=0.1 * half)
    assert summary.mean_high == pytest.approx(samples.mean() + half, abs=0.1 * half)


def test_mean_interval_covers(library):
    """Of 200 samples of 50 from one distribution about 95 % of the intervals hold its mean."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        summary = summarise(library, rng.exponential(1.0, 50))
        held += summary.mean_low <= 1.0 <= summary.mean_high
    assert 176 <= held <= 198


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_ratio(library, n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(12, 1, n), rng.normal(10, 1, n)
    ratio = compare(library, a, b)
    assert ratio.ratio == pytest.approx(np.median(a) / np.median(b), rel=1e-12)
    assert ratio.low <= ratio.ratio <= ratio.high


def test_ratio_interval(library):
    """Beside NumPy's bootstrap over pairs; what disturbs both sides of a pair cancels."""
    rng = np.random.default_rng(3)
    noise = rng.exponential(1, 200)
    a, b = 11 + noise + rng.normal(0, 0.1, 200), 10 + noise + rng.normal(0, 0.1, 200)
    ratio = compare(library, a, b)
    picks = rng.integers(0, 200, (2000, 200))
    low, high = np.percentile(np.median(a[picks], 1) / np.median(b[picks], 1), [2.5, 97.5])
    assert ratio.low == pytest.approx(low, abs=0.3 * (high - low))
    assert ratio.high == pytest.approx(high, abs=0.3 * (high - low))


def test_deterministic(library):
    samples = np.random.default_rng(5).exponential(1, 100)
    assert summarise(library, samples).mean_low == summarise(library, samples).mean_low


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_refuses(library, samples):
    with pytest.raises(LlmcError, match="sample"):
        summarise(library, samples)
