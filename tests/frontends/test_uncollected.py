"""Imports of small models go without searches for garbage, and leave the process as it was."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmc.compiler.frontends import uncollected


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    gc.enable()


def weights(folder: Path, size: int, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    os.truncate(folder / name, size)
    return folder


@pytest.mark.parametrize("was", [True, False])
def test_the_setting_is_put_back(was: bool) -> None:
    (gc.enable if was else gc.disable)()
    with uncollected.uncollected():
        assert not gc.isenabled()
    assert gc.isenabled() == was


def test_large_weights_are_imported_as_ever(tmp_path: Path) -> None:
    small, large = (
        weights(tmp_path / "small", 4096),
        weights(tmp_path / "large" / "0_Transformer", 1 << 30),
    )
    (small / "broken.safetensors").symlink_to("nowhere")
    cache = tmp_path / "models--owner--name"
    (weights(cache / "blobs", 1 << 30, "f00").parent / "refs").mkdir()
    (cache / "refs" / "main").write_text("beef")
    (cache / "snapshots" / "beef").mkdir(parents=True)
    (cache / "snapshots" / "beef" / "model.safetensors").symlink_to("../../blobs/f00")
    for paths, collected in [
        ((small, None), False),
        ((large.parent,), True),
        ((small, large), True),
        ((large / "model.safetensors",), True),
        ((cache,), True),
        ((tmp_path / "none",), False),
    ]:
        with uncollected.uncollected_if_small(*paths):
            assert gc.isenabled() == collected
