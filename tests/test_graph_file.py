"""A graph in two files: what is read is what was written, and files that do not belong together are told."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stateful_graphs import EVERY

from llmc.compiler.equality import equal
from llmc.compiler.graph import Graph, Source, Weight
from llmc.compiler.graph_file import read_graph, want_place, write_graph
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.weight_file import read_weights
from llmc.errors import LlmcError


def dense(seed: int = 0, columns: int = 5, name: str = "dense.weight") -> Graph:
    values = np.random.default_rng(seed).normal(size=(4, columns)).astype(np.float32)
    x = input_("x", "f32", ("n", columns))
    y = make("linear", (x, constant(values, name)), Source("dense"))
    return Graph((x,), {"y": y}, {"n": (1, 8)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dense.txt"
    write_graph(path, dense())
    return path


def values(file: Path) -> Any:
    """A copy: a file that is mapped must not be written over in place."""
    (weight,) = read_weights(file.with_suffix(".npz")).weights.values()
    return weight.array.copy()


def refused(path: Path) -> LlmcError:
    with pytest.raises(LlmcError) as caught:
        read_graph(path)
    return caught.value


@pytest.mark.parametrize("name", EVERY)
def test_a_module_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    module = Module.of(EVERY[name]())
    write_graph(tmp_path / "m.txt", module)
    again = read_graph(tmp_path / "m.txt").module
    assert list(again.functions) == list(module.functions)
    for function, graph in module.functions.items():
        assert equal(again.functions[function], graph, sources=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.npz", "m.txt"]


ODD = {
    "columns first": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "not in one piece": np.arange(40, dtype=np.int64)[::2],
    "nothing": np.zeros((0, 12), np.float32),
    "bool": np.arange(12) % 3 == 0,
    "odd NaN": np.array([0x7FC00001], np.uint32).view(np.float32),
    "half": np.arange(9, dtype=np.float16),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_arrays_under_odd_names(kind: str, tmp_path: Path) -> None:
    weight = Weight(ODD[kind], '../a"b\x00/ä')
    write_graph(tmp_path / "m.txt", Graph((), {"y": make("constant", (), value=weight)}))
    again = read_graph(tmp_path / "m.txt").module.functions["forward"].outputs["y"].attributes["value"]
    assert (again.digest, again.name) == (weight.digest, weight.name)


def test_weights_are_mapped_and_numpy_reads_them(file: Path) -> None:
    (weight,) = read_weights(file.with_suffix(".npz")).weights.values()
    assert not weight.array.flags.owndata
    assert not weight.array.flags.writeable
    assert weight.array.ctypes.data % 64 == 0
    with np.load(file.with_suffix(".npz")) as arrays:
        (key,) = (name for name in arrays.files if name.startswith("dense.weight."))
        np.testing.assert_array_equal(arrays[key], weight.array)


def test_equal_graphs_give_equal_bytes(file: Path, tmp_path: Path) -> None:
    write_graph(tmp_path / "again.txt", dense())
    assert (tmp_path / "again.npz").read_bytes() == file.with_suffix(".npz").read_bytes()


def test_compressed_arrays_are_read(file: Path) -> None:
    np.savez_compressed(file.with_suffix(".npz"), any_name=values(file))
    assert equal(read_graph(file).module.functions["forward"], dense())


def test_weights_of_another_graph(file: Path, tmp_path: Path) -> None:
    def with_weights_of(graph: Graph) -> LlmcError:
        write_graph(tmp_path / "other.txt", graph)
        (tmp_path / "other.npz").replace(file.with_suffix(".npz"))
        return refused(file)

    assert with_weights_of(dense(1)).problem == (
        "the weight 'dense.weight' has other values than the text was written with"
    )
    assert (
        with_weights_of(dense(0, 6)).problem
        == "the weight 'dense.weight' is f32[4, 6], the text says f32[4, 5]"
    )
    assert with_weights_of(dense(1, name="other")).problem == "no weight 'dense.weight' in there"


def test_an_array_more(file: Path) -> None:
    found = values(file)
    np.savez(file.with_suffix(".npz"), a=found, b=found + 1)
    error = refused(file)
    assert error.problem == "the weights hold an array that the text does not name"
    assert error.found == "b"


def test_no_weights_at_all(file: Path) -> None:
    file.with_suffix(".npz").unlink()
    error = refused(file)
    assert error.problem.startswith("no weight with digest")
    assert "--weights" in str(error.hint)


def test_damage(file: Path) -> None:
    beside = file.with_suffix(".npz")
    whole = beside.read_bytes()
    place = whole.index(np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32).tobytes())
    beside.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    assert "has not the values that it was written with" in refused(file).problem
    for broken in (b"", b"PK", whole[: len(whole) // 2], whole[place:]):
        beside.write_bytes(broken)
        assert refused(file).problem.startswith("not weights that can be read")


@pytest.mark.parametrize("name", ["fc.weight.", "fc.weight", "weight"])
def test_damage_under_a_name_without_digest(tmp_path: Path, name: str) -> None:
    """Nothing but the archive's own checksum tells it."""
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "w.npz", **{name: whole})
    assert [w.name for w in read_weights(tmp_path / "w.npz").weights.values()] == [name.rstrip(".")]
    data = bytearray((tmp_path / "w.npz").read_bytes())
    data[data.index(whole.tobytes()) + 5] ^= 1
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(LlmcError, match="Bad CRC-32"):
        read_weights(tmp_path / "w.npz")


def test_any_byte_may_be_wrong(file: Path) -> None:
    """Each is refused, or changes nothing."""
    beside = file.with_suffix(".npz")
    whole = beside.read_bytes()
    for at in range(0, len(whole), 7):
        beside.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = read_graph(file)
        except LlmcError:
            continue
        assert equal(found.module.functions["forward"], dense())


def test_nothing_is_unpickled(file: Path) -> None:
    np.savez(file.with_suffix(".npz"), a=np.array([{}], object))
    assert "Python objects" in refused(file).problem


def test_numbers_that_llmc_has_not(file: Path) -> None:
    np.savez(file.with_suffix(".npz"), a=np.zeros(20, complex))
    error = refused(file)
    assert "complex128 is not supported" in error.problem
    assert str(error.at).endswith("dense.npz, a")


def test_files_of_a_later_llmc(file: Path) -> None:
    with zipfile.ZipFile(file.with_suffix(".npz"), "w") as archive:
        archive.writestr("model.json", json.dumps({"format": 2}))
    assert "of version 2, this llmc reads 1" in refused(file).problem


def test_what_llmc_did_not_write_stays(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with pytest.raises(LlmcError, match="would take the place of a file that llmc did not write"):
        write_graph(tmp_path / "data.txt", dense())
    with pytest.raises(LlmcError, match="name of the weights"):
        want_place(tmp_path / "data.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


def test_a_device_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(LlmcError, match="is no file"):
        want_place(tmp_path / "pipe")


def test_a_failed_write_leaves_what_was_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in file.parent.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmc.compiler.weight_file._write_array", full)
    with pytest.raises(LlmcError, match="No space left"):
        write_graph(file, dense(3))
    assert {p: p.read_bytes() for p in file.parent.iterdir()} == before


def test_a_text_by_hand_may_name_weights_without_digest(tmp_path: Path) -> None:
    text = """dims
%0 = input() {name="x", dtype="f32", shape=(2, 3)}
%w = constant() {value=weight("fc.weight")}
%1 = linear(%0, %w)
return {"y": %1}
"""
    (tmp_path / "m.txt").write_text(text)
    weight = Weight(np.ones((4, 3), np.float32), "fc.weight")
    graph = read_graph(tmp_path / "m.txt", {weight.digest: weight}).module.functions["forward"]
    assert str(graph.outputs["y"].type) == "f32[2, 4]"
    np.savez(tmp_path / "m.npz", **{"fc.weight.": weight.array})
    assert equal(read_graph(tmp_path / "m.txt").module.functions["forward"], graph)
    (tmp_path / "m.npz").unlink()
    assert refused(tmp_path / "m.txt").problem == "no weights are called 'fc.weight'"
