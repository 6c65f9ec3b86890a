"""Text in: the tokenizer of the artifact `tiny` knows the words a to h."""

from __future__ import annotations

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime import load


@pytest.fixture(scope="module")
def model(tiny):
    with load(tiny, threads=1) as model:
        yield model


@pytest.mark.parametrize(
    ("texts", "ids", "mask"),
    [
        ("a b", [[2, 3]], [[1, 1]]),
        (["a b", "h"], [[2, 3], [9, 0]], [[1, 1], [1, 0]]),
        (("a b", "c"), [[2, 3, 4]], [[1, 1, 1]]),
        ([("a", "b"), "c zzz d"], [[2, 3, 0], [4, 1, 5]], [[1, 1, 0], [1, 1, 1]]),
        ("a " * 300, [[2] * 128], [[1] * 128]),
    ],
)
def test_run_text(model, expected, texts, ids, mask):
    found = model.run_text(texts)
    np.testing.assert_array_equal(found["hidden"], expected(ids, mask)["hidden"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there are no texts"),
        ("", "the texts have no tokens"),
        ([1], "not a text or a pair of texts: 1"),
        ([("a", "b", "c")], "not a text or a pair of texts"),
        (["a"] * 65, "batch is 65 in axis 0 of input input_ids, must be within 1..64"),
    ],
)
def test_refuses(model, texts, message):
    with pytest.raises(LlmcError) as caught:
        model.run_text(texts)
    assert message in str(caught.value)


def test_too_long(model):
    with pytest.raises(LlmcError, match="a text has 300 tokens, the model takes 128"):
        model.run_text("a " * 300, truncate=False)


def test_no_tokenizer(copy_of_tiny, build):
    (copy_of_tiny / "tokenizer.json").unlink()
    build.write_manifest(copy_of_tiny)
    with load(copy_of_tiny) as model, pytest.raises(LlmcError, match="the artifact has no tokenizer"):
        model.run_text("a")


def test_bad_tokenizer(copy_of_tiny, build):
    (copy_of_tiny / "tokenizer.json").write_text("{}")
    build.write_manifest(copy_of_tiny)
    with load(copy_of_tiny) as model, pytest.raises(LlmcError, match=r"tokenizer\.json is no tokenizer"):
        model.run_text("a")
