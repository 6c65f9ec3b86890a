"""bench/peers.py against stand-ins: what is compared, what is refused, what is printed."""

import argparse
import importlib
from pathlib import Path

import numpy as np
import pytest

from llmc.errors import LlmcError

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def peers(monkeypatch):
    """bench/peers.py as a module."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("peers")


def constant(value):
    return lambda arrays: {"logits": np.full((len(arrays["input_ids"]), 2), value, np.float32)}


def test_shapes(peers):
    assert peers.parse_shapes("1x128,8x64") == [(1, 128), (8, 64)]
    for wrong in ("1x", "x", "8", "1x2x3", "0x5", "-1x5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="1x128,8x64"):
            peers.parse_shapes(wrong)


def test_peers_that_disagree_do_not_race(peers):
    arrays = peers.sample(100, 2, 3)
    for wrong in (1.01, np.nan):
        with pytest.raises(LlmcError, match="llmc and pytorch disagree"):
            peers.agree({"pytorch": constant(1.0), "llmc": constant(wrong)}, "logits", arrays)


def test_a_race_is_measured_and_printed(peers, capsys):
    trio = {"pytorch": constant(1.0), "onnxruntime": constant(1.0), "llmc": constant(1.0)}
    row = peers.measure(trio, "logits", peers.sample(100, 2, 3), 0.0, 1)
    assert (row["batch"], row["seq"], row["rounds"]) == (2, 3, 15)
    assert set(row["llmc_over"]) == {"pytorch", "onnxruntime"}
    value, low, high = row["llmc_over"]["pytorch"]
    assert low <= value <= high
    peers.show([row])
    out = capsys.readouterr().out
    assert "llmc / onnxruntime" in out
    assert "2 x 3" in out
