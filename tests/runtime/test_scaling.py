"""bench/scaling.py: what the pool's own rule makes of a list of jobs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def scaling() -> Any:
    path = Path(__file__).parents[2] / "bench" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds(scaling: Any) -> None:
    """Ten chunks of one item: one thread takes ten rounds, four take three, and hand over once."""

    def cut(items: int, cost: int, threads: int) -> int:
        return 0 if threads == 1 else 1

    assert scaling.call_time(10, 7, 1, cut, 100) == 70
    assert scaling.call_time(10, 7, 4, cut, 100) == 3 * 7 + 100
    assert scaling.speedups([(10, 70), (1000, 70)], [4, 64], cut, 0) == {4: 70700 / 17710, 64: 70700 / 1190}


def test_the_rule_is_the_pools(scaling: Any, tmp_path: Path) -> None:
    """Little work stays with one thread; much is cut so that every thread gets several chunks."""
    cut = scaling.pool_rule(tmp_path)
    assert cut(100, 10, 4) == 0
    assert cut(1, 10**9, 64) == 0
    for threads in (2, 16, 64):
        assert 4 * threads <= -(-10_000 // cut(10_000, 10**5, threads)) <= 16 * threads
    assert cut(10**6, 1, 64) >= 10_000  # cheap items stick together
