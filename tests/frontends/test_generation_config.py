"""What a folder says of generating text, and what is refused or warned about."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers

from llmc.compiler.frontends import chat_template, generation_config
from llmc.compiler.frontends.generation_config import Generation
from llmc.compiler.frontends.generation_settings import KINDS
from llmc.errors import LlmcError, LlmcWarning
from llmc.runtime.beams import Search
from llmc.runtime.generation_options import OPTIONS


def written(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read(folder: Path, **config: Any) -> Generation:
    names = {"function": "step", "tokens": "input_ids", "keep": "logits_to_keep", "logits": "logits"}
    sizes = {"vocabulary": 100, "max_length": 64}
    return generation_config.read(folder, config, **names, **sizes, length="past")


def test_an_empty_folder_says_nothing(tmp_path: Path) -> None:
    found = read(tmp_path)

    assert found == Generation(
        {
            "function": "step",
            "tokens": "input_ids",
            "keep": "logits_to_keep",
            "logits": "logits",
            "length": "past",
            "vocabulary": 100,
            "max_length": 64,
            "bos": None,
            "eos": [],
            "pad": None,
            "defaults": {},
        }
    )


def test_options_and_tokens_come_from_where_transformers_looks(tmp_path: Path) -> None:
    stated = {"eos_token_id": [2, 7, 2], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    written(tmp_path, generation_config={**stated, "pad_token_id": None, "transformers_version": "5.0"})

    facts = read(tmp_path, bos_token_id=1, eos_token_id=5, text_config={"pad_token_id": 3}).facts

    assert (facts["bos"], facts["eos"], facts["pad"]) == (1, [2, 7], 3)
    assert facts["defaults"] == {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}


def test_an_older_folder_says_it_in_its_config(tmp_path: Path) -> None:
    """As transformers reads it where there is no generation_config.json."""
    said = {"do_sample": True, "temperature": 0.3, "hidden_size": 8, "top_p": None}

    facts = read(tmp_path, **said, text_config={"temperature": 0.5, "repetition_penalty": 1.5}).facts

    assert facts["defaults"] == {"do_sample": True, "temperature": 0.3, "repetition_penalty": 1.5}
    with pytest.raises(LlmcError, match="temperature is not a number above 0") as told:
        read(tmp_path, do_sample=True, temperature=0)
    assert told.value.at == str(tmp_path / "config.json")
    with pytest.warns(LlmcWarning, match="does not know penalty_alpha"):
        read(tmp_path, penalty_alpha=0.6)

    written(tmp_path, generation_config={})
    assert read(tmp_path, **said).facts["defaults"] == {}


def test_tokens_that_never_come_are_left_out(tmp_path: Path) -> None:
    facts = read(tmp_path, bos_token_id=50256, eos_token_id=[50256, 9], pad_token_id=-1).facts

    assert (facts["bos"], facts["eos"], facts["pad"]) == (None, [9], None)


def test_one_stop_string_is_a_list(tmp_path: Path) -> None:
    written(tmp_path, generation_config={"stop_strings": "User:", "suppress_tokens": [4, 5]})

    assert read(tmp_path).facts["defaults"] == {"stop_strings": ["User:"], "suppress_tokens": [4, 5]}


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("temperature", "hot", "a number"),
        ("temperature", float("nan"), "a number"),
        ("do_sample", 1, "true or false"),
        ("top_k", 2.5, "a whole number"),
        ("top_k", True, "a whole number"),
        ("suppress_tokens", [1, "b"], "a list of tokens"),
        ("stop_strings", {"a": 1}, "a text or a list of texts"),
        ("stop_strings", ["a", ""], "a text or a list of texts, none of them empty"),
        ("repetition_penalty", 0, "a number above 0"),
        ("max_new_tokens", 0, "a whole number, at least 1"),
        ("num_beams", 0, "a whole number, at least 1"),
    ],
)
def test_wrong_kinds_are_told(tmp_path: Path, key: str, value: Any, kind: str) -> None:
    written(tmp_path, generation_config={key: value})

    with pytest.raises(LlmcError, match=f"{key} is not {kind}") as told:
        read(tmp_path)

    assert told.value.at == str(tmp_path / "generation_config.json")


@pytest.mark.parametrize("value", ["</s>", [1, None], 1.0, True, {"a": 1}])
def test_a_token_that_is_no_number_is_told(tmp_path: Path, value: Any) -> None:
    written(tmp_path, generation_config={"eos_token_id": value})

    with pytest.raises(LlmcError, match="eos_token_id is not the number of a token"):
        read(tmp_path)


def test_what_drawing_makes_no_sense_of_is_told_where_tokens_are_drawn(tmp_path: Path) -> None:
    written(tmp_path, generation_config={"temperature": 0.0, "typical_p": 0.0})
    assert read(tmp_path).facts["defaults"] == {"temperature": 0.0, "typical_p": 0.0}  # they have no effect

    written(tmp_path, generation_config={"temperature": 0.0, "do_sample": True})
    with pytest.raises(LlmcError, match="temperature is not a number above 0"):
        read(tmp_path)


def test_suppressed_tokens_that_never_come_are_left_out(tmp_path: Path) -> None:
    written(tmp_path, generation_config={"suppress_tokens": [4, 100], "begin_suppress_tokens": [99, 200]})

    assert read(tmp_path).facts["defaults"] == {"suppress_tokens": [4], "begin_suppress_tokens": [99]}


def test_beams_that_draw_are_told(tmp_path: Path) -> None:
    written(tmp_path, generation_config={"num_beams": 2, "do_sample": True})
    with pytest.warns(LlmcWarning, match="does not know num_beams where do_sample is true"):
        read(tmp_path)


def test_what_is_not_known_is_warned_about_by_name(tmp_path: Path) -> None:
    written(
        tmp_path,
        generation_config={"watermarking_config": {"bias": 2}, "penalty_alpha": 0.6, "use_cache": False},
    )

    with pytest.warns(LlmcWarning, match="does not know watermarking_config, penalty_alpha: "):
        read(tmp_path)


def test_every_default_of_transformers_changes_nothing(tmp_path: Path) -> None:
    """What save_pretrained writes of an untouched configuration is all known."""
    config = transformers.GenerationConfig()
    usual = {**config.to_dict(), **config._get_default_generation_params()}
    written(tmp_path, generation_config=usual)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = read(tmp_path).facts

    assert facts["defaults"]["do_sample"] is False


def test_the_runtime_has_what_folders_may_say() -> None:
    assert set(KINDS) <= {*OPTIONS, *Search.__dataclass_fields__}


# --- chat templates


def test_a_template_of_its_own_file_goes_first(tmp_path: Path) -> None:
    written(tmp_path, tokenizer_config={"chat_template": "old", "bos_token": "<s>"})
    assert read(tmp_path).template == "old"

    (tmp_path / chat_template.FILE).write_text("new")
    found = read(tmp_path)

    assert found.template == "new"
    assert found.facts["chat"] == {"file": "chat_template.jinja", "tokens": {"bos_token": "<s>"}}


def test_of_several_templates_the_default_counts(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    with pytest.warns(LlmcWarning, match="default is taken, and left out tool_use"):
        assert read(written(tmp_path, tokenizer_config={"chat_template": named})).template == "d"
    with pytest.warns(LlmcWarning, match="left out tool_use"):
        assert read(written(tmp_path, tokenizer_config={"chat_template": named[:1]})).template is None
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("r")
    with pytest.warns(LlmcWarning, match="left out rag"):
        assert read(written(tmp_path, tokenizer_config={"chat_template": "d"})).template == "d"


def test_special_tokens_are_found_by_name_or_number(tmp_path: Path) -> None:
    written(
        tmp_path,
        tokenizer_config={"chat_template": "x", "unk_token": {"content": "<unk>", "special": True}},
        special_tokens_map={"unk_token": "?", "sep_token": "|"},
        tokenizer={"added_tokens": [{"id": 2, "content": "</s>"}, {"id": 3, "content": "<other>"}]},
    )

    found = read(tmp_path, eos_token_id=2).facts["chat"]["tokens"]

    assert found == {"unk_token": "<unk>", "sep_token": "|", "eos_token": "</s>"}


@pytest.mark.parametrize("value", [3, [1], [{"name": "default", "template": 3}], "\ud83d"])
def test_a_template_that_is_no_text_is_told(tmp_path: Path, value: Any) -> None:
    written(tmp_path, tokenizer_config={"chat_template": value})

    with pytest.raises(LlmcError, match="chat_template is not") as told:
        read(tmp_path)

    assert told.value.at == str(tmp_path / "tokenizer_config.json")


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / chat_template.FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(LlmcError, match=r"cannot read chat_template\.jinja"):
        read(tmp_path)

    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(LlmcError, match="not valid JSON"):
        read(tmp_path)
