"""Calibration: ranges from streams, samples from files, and every way those can be wrong."""

from __future__ import annotations

import itertools
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmc.compiler import calibration
from llmc.compiler.dims import symbol
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.gathering import Walk, gather
from llmc.compiler.given import Given
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.compiler.ranges import BINS, METHODS, Magnitudes
from llmc.errors import LlmcError, TextsCut
from llmc.quantisation import Quantisation

Array = np.ndarray[Any, Any]
B, S = symbol("batch"), symbol("seq")
RNG = np.random.default_rng(4)


def seen(*parts: Array) -> Magnitudes:
    magnitudes = Magnitudes()
    for part in parts:
        magnitudes.add(np.asarray(part, np.float32))
    return magnitudes


# --- ranges


def test_nothing_is_lost_as_the_range_grows() -> None:
    parts = [RNG.normal(size=1000) * 3.0**i for i in range(-4, 8)]
    magnitudes = seen(*parts)
    values = np.abs(np.concatenate(parts))
    assert magnitudes.counts.sum() == values.size
    assert magnitudes.top == pytest.approx(values.max())
    width = magnitudes.limit / BINS
    for share in (0.5, 0.9, 0.999):
        at = int(np.searchsorted(np.cumsum(magnitudes.counts), share * values.size)) + 1
        assert abs(at * width - np.quantile(values, share)) <= 2 * width


def test_order_does_not_matter_for_the_largest() -> None:
    parts = [RNG.normal(size=100) for _ in range(9)]
    assert METHODS["minmax"](seen(*parts)) == METHODS["minmax"](seen(*parts[::-1]))


def test_methods_on_a_long_tail() -> None:
    """A few values far out: the largest follows them, the others do not."""
    values = np.concatenate([RNG.normal(size=200_000), np.full(5, 40.0)])
    limits = {name: method(seen(values)) for name, method in METHODS.items()}
    assert limits["minmax"] == 40.0
    assert 3.7 < limits["percentile"] < 4.3
    assert 2.0 < limits["entropy"] < 8.0


def test_a_uniform_distribution_is_kept_whole() -> None:
    values = RNG.uniform(-1, 1, 200_000)
    assert METHODS["entropy"](seen(values)) > 0.9
    assert METHODS["percentile"](seen(values)) > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_single_values(method: str) -> None:
    assert METHODS[method](seen(np.zeros(10))) == 0.0
    assert METHODS[method](seen(np.zeros(10), [2.5])) == pytest.approx(2.5, rel=0.1)
    assert METHODS[method](seen(np.zeros(0), [1e-30])) == pytest.approx(1e-30, rel=0.1)


def test_memory_is_constant() -> None:
    magnitudes = seen(*(RNG.normal(size=50) * 10.0**i for i in range(-20, 20)))
    assert magnitudes.counts.nbytes == 8 * BINS


# --- scales


def two_sites() -> Walk:
    """A value, and zeros made of it."""
    x = input_("x", "f32", (B, 3))
    zeros = make("sub", (x, x))
    graph = Graph((x,), {"a": x, "b": zeros}, {"batch": (1, 8)})
    return Walk(graph, ["a", "layer.1"], [Magnitudes(), Magnitudes()])


def test_scales() -> None:
    samples = [{"x": np.full((1, 3), v, np.float32)} for v in (1.0, -127.0, 3.0)]
    walk = two_sites()
    gather(walk, Given(lambda graph: iter(samples)))
    assert calibration.scales(walk.seen, "minmax") == (1.0, 1.0)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_activations_that_are_not_finite_are_named(value: float, kind: str) -> None:
    samples = [{"x": np.ones((1, 3), np.float32)}, {"x": np.array([[1, value, 2]], np.float32)}]

    @contextmanager
    def run(graph: Graph) -> Iterator[Any]:
        yield lambda sample: [np.ones(3), sample["x"]]

    with pytest.raises(LlmcError) as caught:
        gather(two_sites(), Given(lambda graph: iter(samples), native=run))
    assert (caught.value.at, caught.value.found) == ("layer.1", f"{kind} in sample 2")


def test_rows_far_larger_than_others_ask_for_scales_of_their_own() -> None:
    rng = np.random.default_rng(5)
    even, odd = rng.normal(size=(2, 50, 8)).astype(np.float32)
    odd[::10] *= 200
    scales = [float(np.abs(x).max() / 127) for x in (even, odd, odd)]
    ones = np.ones(8, np.float32)

    def too_much(scales: list[float], weights: list[Array | None]) -> list[int]:
        noises = [calibration.Noise(w, scale) for w, scale in zip(weights, scales, strict=True)]
        for noise, rows in zip(noises, (even, odd, odd), strict=True):
            noise.add(rows)
        return [i for i, noise in enumerate(noises) if noise.is_too_much()]

    assert too_much(scales, [ones, ones, None]) == []  # a few large rows make the signal, too
    clipped = [scales[0], scales[1] / 50, scales[2] / 50]
    assert too_much(clipped, [ones, ones, None]) == [1]
    coarse = [scales[0] * 40, scales[1], scales[2]]
    assert too_much(coarse, [ones, ones, ones]) == [0]
    assert too_much(clipped, [ones, 0 * ones, None]) == []


def test_no_samples() -> None:
    with pytest.raises(LlmcError, match="no samples"):
        gather(two_sites(), Given(lambda graph: iter(())))


# --- files


def texts() -> Graph:
    ids = input_("input_ids", "i64", (B, S), low=0, high=99)
    mask = input_("attention_mask", "i64", (B, S), default=1, low=0, high=1)
    return Graph((ids, mask), {"y": make("add", (ids, mask))}, {"batch": (1, 8), "seq": (1, 6)})


def encode(text: str, pair: str | None) -> dict[str, Array]:
    words = text.split() + (pair or "").split()
    return {"input_ids": np.array([[len(w) for w in words[:6]]], np.int64)}


def read(path: Path, encode: Any = encode) -> list[list[int]]:
    return [s["input_ids"][0].tolist() for s in calibration.read_samples(path, texts(), encode)]


def test_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone two\n\n  \nthree\n", encoding="utf-8")
    assert read(tmp_path / "a.txt") == [[3, 3], [5]]
    (tmp_path / "a.csv").write_text('\ufefflabel,text\n1,"a, bb"\n0,ccc\n', encoding="utf-8")
    assert read(tmp_path / "a.csv") == [[2, 2], [3]]
    lines = [{"sentence": "one"}, {"text": "one", "text_pair": "three", "label": 1}, {"input_ids": [4, 5]}]
    text = "\ufeff" + "\n".join(map(json.dumps, lines)) + "\n\n"
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.jsonl") == [[3], [3, 5], [4, 5]]


def test_arrays(tmp_path: Path) -> None:
    ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones((3, 2), np.int64))
    assert read(tmp_path / "a.npz", None) == ids.tolist()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_row_by_row(tmp_path: Path, save: Any) -> None:
    rows = 100_000
    ids = np.tile(np.arange(5), (rows, 1))
    save(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones((rows, 5), np.int64))
    samples = calibration.read_samples(tmp_path / "a.npz", texts(), None)
    assert next(samples)["input_ids"].tolist() == [[0, 1, 2, 3, 4]]
    tracemalloc.start()
    for _ in itertools.islice(samples, 500):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ids.nbytes / 8


def test_arrays_with_columns_first(tmp_path: Path) -> None:
    ids = np.arange(6).reshape(3, 2)
    np.savez(tmp_path / "a.npz", input_ids=np.asfortranarray(ids))
    assert read(tmp_path / "a.npz", None) == ids.tolist()


def test_an_array_that_ends_early(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", input_ids=np.ones((3, 2), np.int64))
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "a.npz", "w") as cut:
        cut.writestr("input_ids.npy", whole.read("input_ids.npy")[:-9])
    samples = calibration.read_samples(tmp_path / "a.npz", texts(), None)
    next(samples)
    with pytest.raises(LlmcError, match="an array ends early"):
        list(samples)


def test_the_text_that_ships() -> None:
    lines = calibration.general_text().splitlines()
    assert len(lines) >= 190
    assert len(set(lines)) == len(lines)
    assert len(list(calibration.read_samples("auto", texts(), encode))) == len(lines)


def npz(**arrays: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **arrays)


def text(content: str | bytes) -> Callable[[Path], Any]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(raw)


DAMAGED: list[tuple[str, Callable[[Path], Any], str, str]] = [
    ("a.json", text("{}"), "what kind", ".jsonl"),
    ("a", text("x"), "what kind", "auto"),
    ("a.txt", text(b"\xff\xfe\x00"), "not UTF-8", ""),
    ("a.jsonl", text('{"text": "a"}\n{"text": '), "not JSON", "line 2"),
    ("a.jsonl", text("[1, 2]\n"), "not a JSON object", "line 1"),
    ("a.jsonl", text("[" * 100_000), "not JSON", "line 1"),
    ("a.jsonl", text('{"label": 1, "review": "a"}\n'), 'no field "text"', "label, review"),
    ("a.jsonl", text('{"text": 3}\n'), "not a string", "3"),
    ("a.jsonl", text('{"text": "a", "text_pair": 3}\n'), "not a string", "3"),
    ("a.jsonl", text('{"input_ids": [[1], [1, 2]]}\n'), "ragged", "line 1"),
    ("a.jsonl", text('{"input_ids": ["a"]}\n'), "dtype", "line 1"),
    ("a.jsonl", text('{"input_ids": [1.5]}\n'), "dtype float64", "line 1"),
    ("a.jsonl", text('{"input_ids": [1, 100]}\n'), "holds 100", "line 1"),
    ("a.jsonl", text('{"input_ids": [1, 1, 1, 1, 1, 1, 1]}\n'), "seq = 7", "line 1"),
    ("a.jsonl", text('{"attention_mask": [1]}\n'), "'input_ids' is missing", "line 1"),
    ("a.csv", text("label,review\n1,good\n"), 'no field "text"', "label, review"),
    ("a.csv", text("label,text\n1,a, b\n"), "a row has more fields than the first", "line 2"),
    ("a.csv", text("text\n" + '"' + "a" * 200_000 + '"\n'), "not a CSV file", "line"),
    ("a.csv", text(b"text\n\xff\n"), "not UTF-8", ""),
    ("a.npz", text("PK not a zip"), "not an .npz file", ""),
    ("a.npz", text(""), "not an .npz file", ""),
    ("a.npz", npz(ids=np.ones((2, 2), np.int64)), "no input 'ids'", "input_ids"),
    (
        "a.npz",
        npz(input_ids=np.ones((2, 2), np.int64), attention_mask=np.ones((3, 2), int)),
        "different",
        "3",
    ),
    ("a.npz", npz(input_ids=np.array([["a"]])), "dtype <U1", ""),
    ("a.npz", npz(input_ids=np.array([None, {}], dtype=object)), "not an .npz file", ""),
    ("a.npz", npz(input_ids=np.ones((2, 2, 2), np.int64)), "3 axes", "sample 0"),
]


@pytest.mark.parametrize(("name", "write", "problem", "detail"), DAMAGED, ids=[d[0] + d[2] for d in DAMAGED])
def test_damaged_files(
    tmp_path: Path, name: str, write: Callable[[Path], Any], problem: str, detail: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(LlmcError) as caught:
        read(tmp_path / name)
    assert problem in caught.value.problem
    assert detail in str(caught.value)
    assert str(tmp_path / name) in str(caught.value.at)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="cannot read"):
        read(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(LlmcError, match="cannot read"):
        read(tmp_path / "folder.txt")


def test_a_text_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    def encode(text: str, pair: str | None) -> Any:
        raise LlmcError("the text is not valid Unicode")

    (tmp_path / "a.jsonl").write_text('\n{"text": "\\ud83d"}\n')
    with pytest.raises(LlmcError, match="the text is not valid Unicode") as caught:
        read(tmp_path / "a.jsonl", encode)
    assert str(caught.value.at).endswith("a.jsonl, line 2")


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_texts_need_a_tokenizer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text({"a.txt": "a\n", "a.csv": "text\na\n", "a.jsonl": '{"text": "a"}\n'}[name])
    with pytest.raises(LlmcError, match="no tokenizer"):
        read(tmp_path / name, None)


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[PAD]": 1}, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 100, 1, made=made.to_str())
    (tmp_path / "d.txt").write_text("a a a a a\na a\na a a a\n")
    ids = input_("input_ids", "i64", (B, S), low=0, high=1)
    graph = Graph((ids,), {"y": make("cast", (ids,), dtype="f32")}, {"batch": (1, 2), "seq": (1, 3)})
    data = Quantisation("int8-static", tmp_path / "d.txt")
    with pytest.warns(TextsCut, match="^calibration: 2 of 3 texts were cut to the 3 tokens"):
        samples = list(data.samples(graph, tokenizer))
    assert [s["input_ids"].shape[1] for s in samples] == [3, 2, 3]


def test_a_folder_of_images(tmp_path: Path) -> None:
    """Those of folders inside too, in order, prepared as the artifact will."""
    for i, name in enumerate(("b.png", "a/c.png", "a/d.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (7, 9), 51 * (i + 1)).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    pixels = input_("pixel_values", "f32", (B, 3, 4, 4))
    graph = Graph((pixels,), {"y": make("relu", (pixels,))}, {"batch": (1, 2)})
    data = Quantisation("int8-static", tmp_path)
    steps = {"size": {"height": 4, "width": 4}, "rescale_factor": 1 / 255}
    samples = list(data.samples(graph, None, steps))
    assert [s["pixel_values"].shape for s in samples] == [(1, 3, 4, 4)] * 3
    np.testing.assert_allclose([s["pixel_values"].mean() for s in samples], [0.4, 0.6, 0.2], atol=1e-3)

    with pytest.raises(LlmcError, match="has size 5 on axis 2, not 4"):
        list(data.samples(graph, None, {"size": {"height": 5, "width": 4}}))
    with pytest.raises(LlmcError, match="the model does not take images"):
        list(data.samples(graph, None))
    (tmp_path / "none").mkdir()
    with pytest.raises(LlmcError, match="the folder has no images in it"):
        list(Quantisation("int8-static", tmp_path / "none").samples(graph, None, steps))
