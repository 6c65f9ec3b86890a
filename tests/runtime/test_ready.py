"""Calls like the one before take a short way: it gives the same, and gives way where anything differs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.errors import LlmcError
from llmc.runtime import load

IDS = [np.arange(n)[None] % 9 + 1 for n in (3, 5)]


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_calls_that_follow(tiny: Path, expected: Callable[..., Any]) -> None:
    mask = np.array([[1, 0, 1]])
    odd = np.arange(12).reshape(2, 6)[:1, ::2] + 1  # not dense
    with load(tiny) as model:
        first = model.run({"input_ids": IDS[0]})
        assert len(model._ready._ready) == 1
        again = model.run({"input_ids": IDS[0]})
        assert not any(np.shares_memory(first[name], again[name]) for name in first)
        for _ in range(2):
            same(model.run({"input_ids": IDS[0]}), expected(IDS[0]))
            same(model.run({"input_ids": IDS[1]}), expected(IDS[1]))
            same(model.run({"attention_mask": mask, "input_ids": IDS[0]}), expected(IDS[0], mask))
            same(model.run({"input_ids": odd}), expected(odd))
            same(model.run({"input_ids": IDS[0].astype(np.int32)}), expected(IDS[0]))
            same(model.run({"input_ids": IDS[0].tolist()}), expected(IDS[0]))
            out = {name: np.empty_like(array) for name, array in first.items()}
            assert all(model.run({"input_ids": IDS[0]}, out)[name] is array for name, array in out.items())
            same(out, expected(IDS[0]))


def test_an_array_that_may_not_be_written_is_read(tiny: Path, expected: Callable[..., Any]) -> None:
    fixed = IDS[0].copy()
    fixed.setflags(write=False)
    with load(tiny) as model:
        for _ in range(3):
            same(model.run({"input_ids": fixed}), expected(fixed))


def test_mistakes_are_told_as_ever(tiny: Path, expected: Callable[..., Any]) -> None:
    with load(tiny) as model:
        model.run({"input_ids": IDS[0]})
        for wrong in ({"input_ids": IDS[0] - 9}, {"input_id": IDS[0]}, {}, {"input_ids": IDS[0] / 2}):
            with pytest.raises(LlmcError):
                model.run(wrong)
            same(model.run({"input_ids": IDS[0]}), expected(IDS[0]))
        model.close()
        with pytest.raises(LlmcError, match="closed"):
            model.run({"input_ids": IDS[0]})


def test_threads_do_not_share_what_is_ready(tiny: Path, expected: Callable[..., Any]) -> None:
    failures: list[BaseException] = []
    with load(tiny) as model:

        def work(offset: int) -> None:
            ids = (IDS[0] + offset) % 9
            try:
                for _ in range(200):
                    same(model.run({"input_ids": ids}), expected(ids))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_arrays_live_as_long_as_they_are_read(tiny: Path) -> None:
    """Another thread may put others into the same dict meanwhile."""
    with load(tiny) as model:
        model.run({"input_ids": IDS[0]})
        inputs = {"input_ids": IDS[0].copy()}
        there, found = weakref.ref(inputs["input_ids"]), []
        model._ready._ready[0]._run = lambda *_: found.append(inputs.clear() or there() is not None)
        model.run(inputs)
    assert found == [True]


def test_no_memory_is_told_as_ever(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: Any) -> Any:
        raise MemoryError

    with load(tiny) as model:
        model.run({"input_ids": IDS[0]})
        monkeypatch.setattr(np, "empty", empty)
        with pytest.raises(LlmcError, match="no memory for output"):
            model.run({"input_ids": IDS[0]})
