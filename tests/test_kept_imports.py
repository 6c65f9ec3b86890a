"""Imports that are kept: the same model again without an export, and an import of its own for what is not the same."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmc import kept_imports
from llmc.compiler.frontends import dispatch, graph_text
from llmc.compiler.module_text import text_of
from llmc.compiler.text import weights_of
from llmc.errors import LlmcWarning

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose head is its table, in bfloat16."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("kept") / "llama"
    config = transformers.LlamaConfig(tie_word_embeddings=True, **SIZES)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, and a cache of its own."""
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "llama"
    folder.mkdir()
    for file in saved.iterdir():
        os.link(file, folder / file.name)
    return folder


@pytest.fixture(scope="module")
def imported(saved: Path) -> Any:
    return dispatch.load(saved)


@pytest.fixture
def imports(imported: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was imported and not found again."""
    seen: list[Path] = []

    def load(path: Path, **options: Any) -> Any:
        seen.append(path)
        if options.get("max_batch"):
            warnings.warn(LlmcWarning("max_batch has no effect"), stacklevel=2)
        return imported

    monkeypatch.setattr(dispatch, "load", load)
    return seen


def kept(folder: Path) -> list[Path]:
    place = folder.parent / "cache" / "imports"
    return list(place.iterdir()) if place.is_dir() else []


def test_the_second_import_is_the_first(model: Path, imports: list[Path]) -> None:
    first, second = kept_imports.load(model), kept_imports.load(model)
    assert len(imports) == 1
    assert text_of(second.module) == text_of(first.module)
    assert graph_text.texts_of(second) == graph_text.texts_of(first)
    assert second.name == first.name == "llama"
    for name, graph in first.module.functions.items():
        again = weights_of(second.module.functions[name])
        for digest, weight in weights_of(graph).items():
            assert again[digest].array.tobytes() == weight.array.tobytes(), weight.name
            assert again[digest].array.dtype == weight.array.dtype


def test_weights_of_the_checkpoint_are_not_kept_twice(model: Path, imports: list[Path]) -> None:
    kept_imports.load(model)
    (file,) = kept(model)
    assert file.stat().st_size < (model / "model.safetensors").stat().st_size


@pytest.mark.parametrize("options", [{"max_seq": 8}, {"task": "language-modeling"}])
def test_other_options_are_another_import(model: Path, imports: list[Path], options: Any) -> None:
    kept_imports.load(model)
    kept_imports.load(model, **options)
    assert len(imports) == 2


def test_a_folder_with_other_content_is_another_import(model: Path, imports: list[Path]) -> None:
    kept_imports.load(model)
    config = model / "config.json"
    text = config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    config.unlink()
    config.write_text(text)
    kept_imports.load(model)
    (model / "chat_template.jinja").write_text("")
    kept_imports.load(model)
    assert len(imports) == 3


def test_what_changes_during_an_import_is_not_kept(
    model: Path, imports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer may be writing there: the import would be found by what was there before."""
    load = dispatch.load

    def slow(path: Path, **options: Any) -> Any:
        (path / "generation_config.json").unlink()
        return load(path, **options)

    monkeypatch.setattr(dispatch, "load", slow)
    kept_imports.load(model)
    assert not kept(model)


def test_what_is_damaged_is_made_again(model: Path, imports: list[Path]) -> None:
    first = kept_imports.load(model)
    (file,) = kept(model)
    for content in (b"", file.read_bytes()[:-40], bytes(len(file.read_bytes()))):
        file.write_bytes(content)
        assert text_of(kept_imports.load(model).module) == text_of(first.module)
    assert len(imports) == 4


def test_warnings_are_given_again(model: Path, imports: list[Path]) -> None:
    for _ in range(2):
        with pytest.warns(LlmcWarning, match="max_batch has no effect"):
            kept_imports.load(model, max_batch=3)
    assert len(imports) == 1


def test_what_names_other_places_is_not_kept(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert kept_imports._place(model, {}) is None
    assert kept_imports._place(model, {"base": model}) is None


def test_nothing_is_kept_where_it_is_off(
    model: Path, imports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMC_CACHE", "off")
    kept_imports.load(model)
    kept_imports.load(model)
    assert len(imports) == 2
    assert not kept(model)


def test_warnings_name_the_copy_that_is_read(model: Path, imports: list[Path], tmp_path: Path) -> None:
    """What is kept is found by content, whatever the folder is called now."""
    load = dispatch.load

    def told(path: Path, **options: Any) -> Any:
        warnings.warn(LlmcWarning(f"{path}/config.json says nothing of its bound"), stacklevel=2)
        return load(path, **options)

    moved = tmp_path / "moved" / model.name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "load", told)
        with pytest.warns(LlmcWarning):
            kept_imports.load(model)
    moved.parent.mkdir()
    model.rename(moved)
    with pytest.warns(LlmcWarning, match=re.escape(f"{moved}/config.json")):
        assert kept_imports.load(moved).name == model.name
    assert len(imports) == 1


def test_a_text_under_another_name_is_damage(model: Path, imports: list[Path]) -> None:
    kept_imports.load(model)
    (file,) = kept(model)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"model.json", b"modal.json"))
    kept_imports.load(model)
    assert len(imports) == 2


def test_what_an_import_refuses_is_not_read(tmp_path: Path) -> None:
    """20 GB of config took a minute, before the sentence."""
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(20 << 30)
    assert kept_imports._digest(tmp_path) is None
