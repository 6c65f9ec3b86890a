"""Many texts to vectors: all of them, in their order, by sentence-transformers' options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmc import LlmcError
from llmc.errors import TextsCut
from llmc.runtime import load
from llmc.runtime.manifest import seal

LETTERS = "abcdefgh"
TEXTS = [" ".join(LETTERS[: 1 + (i * 5) % 8]) for i in range(150)]


@pytest.fixture
def embedder(copy_of_tiny: Any, monkeypatch: Any) -> Iterator[Any]:
    """`tiny`, whose output `sums` stands for an embedding: f32 [batch, 3], the sum over the tokens."""
    file = copy_of_tiny / "manifest.json"
    fields = json.loads(file.read_text())
    fields["tokenizer"]["prompts"] = {"q": "a b ", "none": ""}
    file.write_text(json.dumps(seal(fields)))
    monkeypatch.setattr("llmc.runtime.embeddings.OUTPUT", "sums")
    with load(copy_of_tiny, threads=1) as model:
        yield model


def one_by_one(model: Any, texts: list[str]) -> Any:
    return np.concatenate([model.run_text(text)["sums"] for text in texts])


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_all_in_their_order(batch_size: int, embedder: Any) -> None:
    """More than the 64 rows that the model takes, and of all lengths."""
    found = embedder.encode(TEXTS, batch_size=batch_size)
    assert (found.shape, found.dtype) == ((150, 3), np.float32)
    np.testing.assert_array_equal(found, one_by_one(embedder, TEXTS))


def test_windows(embedder: Any, monkeypatch: Any) -> None:
    """What is held at a time is bounded; a generator is read as it goes."""
    monkeypatch.setattr("llmc.runtime.embeddings.WINDOW", 40)
    np.testing.assert_array_equal(embedder.encode(iter(TEXTS)), one_by_one(embedder, TEXTS))


def test_like_lengths_run_together(embedder: Any, monkeypatch: Any) -> None:
    seen: list[tuple[int, ...]] = []
    run = embedder.run

    def counted(inputs: Any, out: Any) -> Any:
        seen.append(inputs["input_ids"].shape)
        return run(inputs, out)

    monkeypatch.setattr(embedder, "run", counted)
    embedder.encode(TEXTS, batch_size=10)
    assert sum(rows for rows, _ in seen) == 150
    lengths = [columns for _, columns in seen]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(rows * columns for rows, columns in seen) < 1.1 * sum(len(t.split()) for t in TEXTS)


def test_one_and_none(embedder: Any) -> None:
    assert embedder.encode("a b").shape == (3,)
    empty = embedder.encode([])
    assert (empty.shape, empty.dtype) == ((0, 3), np.float32)
    assert embedder.encode([], truncate_dim=2).shape == (0, 2)
    assert not embedder.encode(["", "a"])[0].any()


def test_prompts(embedder: Any) -> None:
    wanted = one_by_one(embedder, ["a b c", "a b d"])
    np.testing.assert_array_equal(embedder.encode(["c", "d"], prompt_name="q"), wanted)
    np.testing.assert_array_equal(embedder.encode(["c", "d"], prompt="a b "), wanted)
    np.testing.assert_array_equal(embedder.encode(["c", "d"], prompt="a b ", prompt_name="none"), wanted)
    assert not np.array_equal(embedder.encode(["c", "d"]), wanted)


def test_truncation_then_length_one(embedder: Any) -> None:
    whole = embedder.encode(TEXTS[:9])
    np.testing.assert_array_equal(embedder.encode(TEXTS[:9], truncate_dim=2), whole[:, :2])
    found = embedder.encode(TEXTS[:9], truncate_dim=2, normalize=True)
    np.testing.assert_allclose(found, whole[:, :2] / np.linalg.norm(whole[:, :2], axis=1)[:, None], atol=1e-6)
    assert found.dtype == np.float32


def test_too_long_is_cut_and_told(embedder: Any) -> None:
    with pytest.warns(TextsCut, match="^2 of 3 texts were cut to the 128 tokens"):
        found = embedder.encode(["a " * 300, "a", "b " * 129])
    np.testing.assert_array_equal(found[0], embedder.encode("a " * 128))


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        (["a", 1], {}, "text 2 is no text: 1"),
        (7, {}, "not a text or texts: 7"),
        (["a", "\ud83d"], {}, "text 2 is not valid Unicode"),
        (["a"], {"batch_size": 0}, "batch_size is 0"),
        (["a"], {"truncate_dim": 4}, "truncate_dim is 4, the model's vectors have 3 numbers"),
        (["a"], {"truncate_dim": True}, "truncate_dim is True"),
        (["a"], {"prompt_name": "x"}, "the model has no prompt 'x'"),
        (["a"], {"prompt": 3}, "prompt is 3, must be a text"),
    ],
    ids=str,
)
def test_refused(texts: Any, options: dict[str, Any], words: str, embedder: Any) -> None:
    with pytest.raises(LlmcError) as caught:
        embedder.encode(texts, **options)
    assert words in str(caught.value)


def test_a_text_is_named_by_its_place_among_all(embedder: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("llmc.runtime.embeddings.WINDOW", 10)
    with pytest.raises(LlmcError, match="text 26 is not valid Unicode"):
        embedder.encode([*TEXTS[:25], "\ud83d", *TEXTS[:9]])


def test_models_without_embeddings(copy_of_tiny: Any) -> None:
    with (
        load(copy_of_tiny, threads=1) as model,
        pytest.raises(LlmcError, match="gives no embedding of a text"),
    ):
        model.encode("a")
    file = copy_of_tiny / "manifest.json"
    file.write_text(json.dumps(seal({**json.loads(file.read_text()), "task": "feature-extraction"})))
    with load(copy_of_tiny, threads=1) as model, pytest.raises(LlmcError) as caught:
        model.encode("a")
    assert caught.value.hint == "compile the model with --task sentence-embedding"


def test_prompts_that_are_not_pooled(embedder: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(embedder.manifest.postprocess, "pools_prompt", False)
    embedder.encode(["a"], prompt="")
    with pytest.raises(LlmcError, match="leaves the prompt's tokens out of its pooling"):
        embedder.encode(["a"], prompt="b ")
