"""What tests keep: made once by whoever comes first, named by all that made it, and whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kept
import kept_graphs
import numpy as np
import pytest
from kernel_kinds import kernels_of, kinds
from random_families import imported, random_model

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "_PLACE", [tmp_path])
    return tmp_path


def test_made_once_under_all_its_parts(place: Path) -> None:
    made: list[str] = []

    def make(*parts: str) -> bytes:
        return kept.made("words", parts, lambda: made.append(" ".join(parts)) or b"content")

    assert [make("a", "b"), make("a", "b"), make("a", "c"), make("ab", "")] == [b"content"] * 4
    assert made == ["a b", "a c", "ab "]


def test_a_damaged_file_is_made_again(place: Path) -> None:
    assert kept.made("words", ("a",), lambda: b"first") == b"first"
    (file,) = (path for path in (place / "words").iterdir() if path.is_file())
    file.write_bytes(file.read_bytes()[:-1])
    assert kept.made("words", ("a",), lambda: b"second") == b"second"


def test_a_folder_is_made_once_by_those_who_want_it(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        path.mkdir()
        (path / "file").write_text("whole")
        made.append(path)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kept.folder_made(tmp_path / "m", make), range(4)))
    assert found == [tmp_path / "m"] * 4
    assert len(made) == 1
    assert (tmp_path / "m" / "file").read_text() == "whole"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir()
        raise ValueError("cannot")

    for _ in range(2):
        with pytest.raises(ValueError, match="cannot"):
            kept.folder_made(tmp_path / "m", fail)
    assert not (tmp_path / "m").exists()
    assert kept.folder_made(tmp_path / "m", Path.mkdir).is_dir()


def test_sources_are_those_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.py").write_text("x = 1\n")
    found = []
    for name, text in (("a.py", "x = 1\n"), ("a.py", "x = 2\n"), ("b.py", ""), ("notes.txt", "no source")):
        (tmp_path / "part" / name).write_text(text)
        found.append(kept.sources.__wrapped__("part"))
    assert len(set(found[:3])) == 3
    assert found[3] == found[2]


def test_an_identity_has_every_number() -> None:
    """The same class and configuration with one other weight is another model, and so is another option."""
    first, again, seed, option = (
        kept_graphs.identity(random_model("bert", "Model", **changes))
        for changes in ({}, {}, {"seed": 1}, {"layer_norm_eps": 1e-6})
    )
    assert first == again
    assert len({first, seed, option}) == 3


def test_an_imported_graph_comes_back_as_it_was() -> None:
    _, found = imported("bert", "ForMaskedLM")
    back = kept_graphs._unpacked(kept_graphs._packed(found))
    assert str(back.graph) == str(found.graph)
    assert [n.source for n in back.graph.nodes] == [n.source for n in found.graph.nodes]
    tied = [n.inputs[0] for n in back.graph.nodes if n.op == "embedding"]
    assert back.graph.outputs["logits"].inputs[1] in tied
    assert (back.task, back.architecture, back.labels) == (found.task, found.architecture, found.labels)


def test_kinds_know_no_sizes() -> None:
    def of(width: int, *epilogue: str) -> frozenset[str]:
        x = input_("x", "f32", (symbol("batch"), width))
        weight = constant(np.ones((3, width), np.float32))
        made = make("linear", (x, weight))
        for op in epilogue:
            made = make(op, (made,))
        return kinds(kernels_of(Graph((x,), {"y": made}, {"batch": (1, 8)}), target="x86-avx2"))

    assert of(4) == of(5)
    assert of(4) != of(4, "tanh")
