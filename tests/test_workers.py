"""`llmc recover --workers N`: steps that workers of a Ray cluster share, and members that they train side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import recovering
import torch
from recovering import SETTINGS, weights

from llmc import workers
from llmc.errors import LlmcError, extras_named
from llmc.members import train
from llmc.recover import recover
from llmc.training import Lost
from llmc.workers import Cluster, working

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
CREW: dict[str, Any] = {"workers": 2, "threads": 1}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recovering.bert(tmp_path_factory.mktemp("models") / "bert", **SMALL)


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    """A cluster of this machine, which `working` takes as it is."""
    ray = pytest.importorskip("ray")
    workers._begin(2)
    yield
    ray.shutdown()


def same(a: Path, b: Path) -> bool:
    """Whether all weights are."""
    one, other = weights(a), weights(b)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_worker_that_is_gone_costs_a_step(classifier, tmp_path, started, monkeypatch):
    """What was left of the training ends, resumed, as an unbroken one does; nearly as one of a single process."""
    import ray

    data = recovering.labelled(tmp_path / "train.jsonl")
    settings = replace(SETTINGS, steps=4)
    recover(classifier, data, tmp_path / "one", settings)
    recover(classifier, data, tmp_path / "whole", settings, **CREW)
    start, one, whole = (weights(folder) for folder in (classifier, tmp_path / "one", tmp_path / "whole"))
    apart, moved = (sum(float((each[n] - one[n]).abs().sum()) for n in one) for each in (whole, start))
    assert apart < 0.05 * moved  # AdamW's first steps go by signs, of gradients that are nearly 0 too
    honest = Cluster.__call__

    def dying(self: Cluster, training: Any, rows: Any) -> float:
        if training.step == 2:
            ray.kill(self.seats[1])
        return honest(self, training, rows)

    monkeypatch.setattr(Cluster, "__call__", dying)
    told: list[str] = []
    with pytest.raises(Lost, match="a worker is gone\n  at:    worker 2 of 2"):
        recover(classifier, data, tmp_path / "out", settings, say=told.append, **CREW)
    assert told[0] == "recover: 2 workers, 1 threads each"
    assert "after step 2 " in told[-1]
    assert "--resume goes on" in told[-1]
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Cluster, "__call__", honest)
    recover(classifier, data, tmp_path / "out", settings, resume=True, **CREW)
    assert same(tmp_path / "whole", tmp_path / "out")
    assert not (tmp_path / "out.checkpoint").exists()


def test_members_side_by_side_are_those_of_one_process(classifier, tmp_path, started, monkeypatch):
    data = tmp_path / "rows.jsonl"
    rows = [{"text": t, "label": ("negative", "positive")["good" in t]} for t in recovering.sentences(1000)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = replace(SETTINGS, prune=None, bag=3, steps=2, batch=32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train(classifier, data, tmp_path / "alone", settings)
        honest, count = workers.save, iter(range(9))

        def full(state: Any, folder: Path) -> None:
            if next(count) == 2:
                raise LlmcError("the disk is full")
            honest(state, folder)

        monkeypatch.setattr(workers, "save", full)
        with pytest.raises(LlmcError, match="the disk is full"):
            train(classifier, data, tmp_path / "out", settings, **CREW)
        kept = sorted((tmp_path / "out.checkpoint").rglob("state.pt"))
        assert len(kept) == 2
        found = train(classifier, data, tmp_path / "out", settings, resume=True, **CREW)
    finally:
        torch.set_num_threads(threads)
    assert found.accuracy == alone.accuracy
    assert found.steps == alone.steps == 6
    for name in found.members:
        assert same(tmp_path / "alone" / name, tmp_path / "out" / name)


def test_without_ray(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(LlmcError, match=r"needs the package ray\n.*pip install 'llmc\[ray\]'"),
        extras_named(),
    ):
        recover(classifier, recovering.labelled(tmp_path / "train.jsonl"), tmp_path / "out", SETTINGS, **CREW)


def test_a_cluster_that_is_not_there(monkeypatch):
    ray = pytest.importorskip("ray")

    def fails(**asked: Any) -> None:
        raise ConnectionError(f"no answer from {asked['address']}\nand more")

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with (
        pytest.raises(LlmcError, match=r"cannot reach the Ray cluster: no answer from 10\.0\.0\.1:6379\n"),
        working(2, None, "auto", lambda line: None),
    ):
        pass


def test_a_cluster_without_room(started):
    with (
        pytest.raises(
            LlmcError, match=r"no room for 2 workers of 64 threads\n.*\n.* processors in 1 machines"
        ),
        working(2, 64, "auto", lambda line: None),
    ):
        pass


def test_threads_of_each_worker_are_of_one_machine():
    nodes = [{"CPU": 12.0, "GPU": 1.0}, {"CPU": 4.0}, {"memory": 1e9}]
    assert [workers._room(nodes, "CPU", count) for count in (1, 2, 3, 4, 5, 16, 17)] == [12, 6, 4, 4, 3, 1, 0]
    assert workers._seats(nodes, "GPU", 1) == 1
