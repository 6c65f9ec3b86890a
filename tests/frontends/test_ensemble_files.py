"""Weights and stacks of ensembles: files that do not fit or are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ensembles import (
    NAMES,
    of_numbers,
    refused,
    three,
    written,
)
from safetensors.numpy import save_file

from llmc.compiler.frontends.combining import method_of
from llmc.compiler.frontends.combining_files import read_head, read_weights_of
from llmc.errors import LlmcError


@pytest.mark.parametrize("text", ["men", "weights.txt", "stack", ""])
def test_a_method_that_is_none(text: str) -> None:
    with pytest.raises(LlmcError, match="no ensemble"):
        method_of(text, NAMES)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ("[1, 2, 3]", "not a JSON object"),
        ('{"weights": 3}', "holds no weights"),
        ('{"weights": [1, 2]}', "2 weights for 3 members"),
        ('{"weights": [1, 2, -1]}', "the weight of c is no positive number"),
        ('{"weights": [1, 2, 0]}', "the weight of c is no positive number"),
        ('{"weights": [1, true, 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, "2", 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, NaN, 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, Infinity, 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, 1e-200, 2]}', "a weight is nothing beside the others"),
        ('{"a": 1, "b": 2}', "there is no weight of c"),
        ('{"a": 1, "b": 2, "c": 3, "d": 4}', "'d' is no member's name"),
        ("{}", "there is no weight of a"),
    ],
)
def test_damaged_weights(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "weights.json"
    file.write_text(content)
    with pytest.raises(LlmcError, match=told) as caught:
        read_weights_of(file, NAMES)
    assert caught.value.at == str(file)


def test_weights_of_any_size_are_shares(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text('{"weights": [1e299, 1e299, 2e299]}')
    assert read_weights_of(file, NAMES) == pytest.approx((0.25, 0.25, 0.5))
    with pytest.raises(LlmcError, match="no such file"):
        read_weights_of(tmp_path / "none.json", NAMES)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("head.bin", b"", "no kind of file"),
        ("head.json", b"{", "not valid JSON"),
        ("head.json", b'{"bias": [1]}', "has no weight"),
        ("head.json", b'{"weight": [[1, 2], [3]]}', "is not rows of one length"),
        ("head.json", b'{"weight": [1, 2]}', "is not rows of one length"),
        ("head.json", b'{"weight": [["a"]]}', "is not rows of one length"),
        ("head.json", b'{"weight": [[1]], "bias": [[1]]}', "bias is not a row"),
        ("head.json", b'{"weight": [[NaN]]}', "not finite"),
        ("head.json", b'{"weight": [[1e300]]}', "not finite"),
        ("head.json", b'{"weight": [[1]], "inputs": "labels"}', "inputs are of another kind"),
        ("head.json", b'{"weight": [[1]], "inputs": []}', "inputs are of another kind"),
        ("head.json", b'{"weight": [[1]], "scale": 2}', "'scale' is nothing of a stack's"),
        ("head.npz", b"PK\x03\x04 and so on", "damaged, or no .npz file"),
        ("head.safetensors", b"\xff" * 40, "corrupt or truncated"),
    ],
)
def test_damaged_stacks(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(LlmcError, match=told) as caught:
        read_head(file)
    assert caught.value.at == str(file)


def test_a_stack_that_is_cut_or_holds_objects(tmp_path: Path) -> None:
    file = written(tmp_path / "head.npz", np.ones((3, 9)), None, None)
    data = file.read_bytes()
    for end in (10, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:end])
        with pytest.raises(LlmcError, match=r"damaged, or no .npz file"):
            read_head(file)
    np.savez(file, weight=np.array([[object()]], dtype=object))
    with pytest.raises(LlmcError, match="Python objects"):
        read_head(file)
    whole = tmp_path / "whole.safetensors"
    save_file({"weight": np.ones((3, 9), np.int64)}, whole)
    with pytest.raises(LlmcError, match="is I64"):
        read_head(whole)
    with pytest.raises(LlmcError, match="no such file"):
        read_head(tmp_path / "none.npz")


@pytest.mark.parametrize("shape", [(3, 8), (2, 9), (9, 3)])
def test_a_stack_of_another_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    file = written(tmp_path / "head.npz", np.ones(shape), None, None)
    error = refused(three(), f"stack:{file}")
    assert error.problem == "the stack's weight does not fit the members' logits"
    assert f"{list(shape)}, wanted [3, 9]" in str(error.found)
    file = written(tmp_path / "head.npz", np.ones((3, 9)), np.ones(2), None)
    assert "bias has 2 numbers" in refused(three(), f"stack:{file}").problem


def test_a_regression_of_one_row_is_told_what_to_do(tmp_path: Path) -> None:
    file = written(tmp_path / "head.npz", np.ones((1, 4)), None, None)
    assert "the rows 0 and w" in str(refused(of_numbers([1, 2], [3, 4]), f"stack:{file}").hint)
