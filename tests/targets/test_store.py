"""Machine code kept between compiles: the same bytes, or made again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc import driver
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.targets import TARGETS, store
from llmc.targets.cpu import known
from llmc.targets.cpu.backend import BACKEND
from llmc.targets.cpu.build import compile_calls


def graph(width: int) -> Graph:
    rng = np.random.default_rng(width)
    x = input_("x", "f32", (symbol("n"), 24))
    weight = constant(rng.normal(size=(width, 24)).astype(np.float32), "w")
    return Graph((x,), {"y": make("linear", (x, weight))}, {"n": (1, 9)})


def objects(folder: Path | None, width: int = 40) -> tuple[dict[str, bytes], int]:
    kept = store.Store(folder)
    return compile_calls(BACKEND.lower(graph(width)), TARGETS["x86-avx2"], kept), kept.found


def test_the_second_compile_makes_nothing_anew(tmp_path: Path) -> None:
    first, found = objects(tmp_path / "kept")
    assert (len(first), found) == (2, 0)
    assert objects(tmp_path / "kept") == (first, 2)
    assert objects(None) == (first, 0)


def test_another_kernel_is_another_entry(tmp_path: Path) -> None:
    objects(tmp_path)
    assert objects(tmp_path, 56)[1] == 1  # the loop that measures the machine


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:40] + b"?" + d[41:], lambda _: b""])
def test_a_damaged_entry_is_made_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    first, _ = objects(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert objects(tmp_path) == (first, 0)
    assert objects(tmp_path) == (first, 2)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert objects(tmp_path / "file" / "kept")[1] == 0


def test_the_oldest_go_first(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    for age, name in enumerate("abc"):
        kept.put(name, bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert kept.get("c") == bytes(100)  # read just now, so it is the newest
    kept.trim(2 * 132)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]


def test_a_file_that_vanishes_does_not_stop_the_trim(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    kept.put("a", bytes(100))
    (tmp_path / "gone").symlink_to("nowhere")  # as a file another process has just removed, it has no size
    kept.trim(0)
    assert not (tmp_path / "a").exists()


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(store.VARIABLE, "off")
    assert store.folder() is None
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    assert store.folder() == tmp_path / "kernels"
    monkeypatch.delenv(store.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.folder() == tmp_path / "llmc" / "kernels"


def test_an_artifact_of_kept_kernels_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "kept"))
    reports: list[Any] = [
        driver.compile_graph(graph(40), tmp_path / name, target="x86-avx2") for name in ("a", "b")
    ]
    assert [r.cached for r in reports] == [0, 2]
    assert (tmp_path / "a" / "module.so").read_bytes() == (tmp_path / "b" / "module.so").read_bytes()


def known_objects(folder: Path, width: int = 40) -> tuple[Any, int]:
    kept = store.Store(folder)
    return known.objects(BACKEND.lower(graph(width)), TARGETS["x86-avx2"], kept), kept.found


def test_what_was_made_is_found_without_its_tir(tmp_path: Path) -> None:
    assert known_objects(tmp_path) == (None, 0)
    first, _ = objects(tmp_path)
    assert known_objects(tmp_path) == (first, 2)
    assert known_objects(tmp_path, 56) == (None, 0)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert known_objects(tmp_path) == (None, 0)
    assert objects(tmp_path) == (first, 0)
    assert known_objects(tmp_path) == (first, 2)


def test_kernels_of_others_are_asked_for_by_their_tir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sources may have changed, and nothing but the TIR would tell."""
    calls = BACKEND.lower(graph(40))
    emit = calls[0].kernel.emit
    for other in (lambda symbol, cpu: emit(symbol, cpu), partial(emit, extra=lambda: None)):
        kernel = replace(calls[0].kernel, emit=other)
        names = [
            name for _, name, _, _ in known.wanted([replace(calls[0], kernel=kernel)], TARGETS["x86-avx2"])
        ]
        assert [bool(name) for name in names] == [False, True]
    monkeypatch.setattr(known.extensions, "loaded", lambda: ("one",))
    objects(tmp_path)
    assert known_objects(tmp_path) == (None, 0)


SECOND = """
import sys
import numpy as np
from llmc import driver
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make

x = input_("x", "f32", (symbol("n"), 24))
weight = constant(np.random.default_rng(40).normal(size=(40, 24)).astype(np.float32), "w")
report = driver.compile_graph(
    Graph((x,), {"y": make("linear", (x, weight))}, {"n": (1, 9)}), sys.argv[1], target="x86-avx2"
)
print(report.cached, "tvm" in sys.modules)
"""


def test_a_second_compile_does_without_tvm(tmp_path: Path) -> None:
    """Its import takes longer than all else of a compile of something small."""
    own = {**os.environ, store.VARIABLE: str(tmp_path / "kept")}
    for name, told in (("a", "0 True"), ("b", "2 False")):
        command = [sys.executable, "-c", SECOND, str(tmp_path / name)]
        made = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)
        assert made.stdout.strip() == told, made.stderr
    assert (tmp_path / "a" / "module.so").read_bytes() == (tmp_path / "b" / "module.so").read_bytes()


def test_content_tells_kernels_apart() -> None:
    """One digit of one constant changes the key."""
    from llmc.targets.cpu.build import _content
    from llmc.targets.tir.emit import Emitter, f32

    def stores(value: float) -> Any:
        e = Emitter("k")
        e.store(e.pointer("out", "f32"), e.begin, f32(value))
        return e.function()

    assert _content(stores(1.0)) == _content(stores(1.0)) != _content(stores(1.0000001))


def test_variants_share_what_is_the_same_for_them() -> None:
    """Only integer products are compiled for VNNI and AMX."""
    x = input_("x", "f32", (symbol("n"), 24))
    weight = constant(np.ones((40, 24), np.int8))
    product = make("qlinear", (make("quantize_rows", (x,)), weight, constant(np.ones(40, np.float32))))
    calls = BACKEND.lower(Graph((x,), {"y": product}, {"n": (1, 9)}))
    names = {name.rpartition("_")[::2] for name in compile_calls(calls, TARGETS["x86"], store.Store(None))}
    of = {stem.partition("_")[0]: {c for s, c in names if s == stem} for stem, _ in names}
    assert of["qlinear"] == {"avx512amx", "avx512vnni", "avx512", "avx2vnni", "avx2"}
    assert of["quantize"] == of["fma"] == {"avx512", "avx2"}
