"""Texts become the tokens that transformers and sentence-transformers make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertTokenizer

from llmc.compiler.frontends.folder import inspect
from llmc.compiler.frontends.huggingface import tokenizer_of
from llmc.compiler.frontends.sentence_text import FILES
from llmc.errors import LlmcError
from llmc.tokens import encoder_of, manifest_entry

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "Film",
    "film",
    "café",
    "cafe",
    "query",
    ":",
    *"abcdefgh",
]
TEXTS = ["Film a b c d e f g h", "film café", ""]
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def write(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file, which need not be there."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cased BERT of which only config, tokenizer and the header of the weights are looked at."""
    write(tmp_path / "config.json", **CONFIG)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    vocab = {word: i for i, word in enumerate(WORDS)}
    BertTokenizer(vocab, do_lower_case=False, model_max_length=8).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sentences(folder: Path) -> Path:
    """The same for sentence-transformers."""
    names = {"": "Transformer", "1_Pooling": "Pooling"}
    entries = [{"path": p, "type": f"sentence_transformers.models.{n}"} for p, n in names.items()]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True)
    return folder


def ours(folder: Path, texts: list[str]) -> list[list[int]]:
    """As the artifact will: by what `llmc compile` writes into it."""
    made = tokenizer_of(inspect(folder))
    assert made is not None
    return [e.ids for e in encoder_of(made, made.max_length)(texts)]


def theirs(folder: Path, texts: list[str], **options: Any) -> Any:
    options = {"padding": True, "truncation": True, **options}
    return AutoTokenizer.from_pretrained(folder)(texts, **options)["input_ids"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": True},
        {"strip_accents": True},
        {"truncation_side": "left"},
        {"padding_side": "left"},
        {"model_max_length": 4},
    ],
    ids=str,
)
def test_tokenizer_config_decides(settings: dict[str, Any], folder: Path) -> None:
    before = ours(folder, TEXTS)
    write(folder / "tokenizer_config.json", **settings)

    assert ours(folder, TEXTS) == theirs(folder, TEXTS)
    assert (ours(folder, TEXTS) == before) == (not settings)


def test_a_file_that_says_it_all_is_kept(folder: Path, tmp_path: Path) -> None:
    made = tokenizer_of(inspect(folder))
    assert made is not None
    made.write(tmp_path / "written.json")
    assert (tmp_path / "written.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_vocabulary_alone_makes_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS))

    assert ours(folder, TEXTS) == theirs(folder, TEXTS)
    assert WORDS.index("Film") in ours(folder, TEXTS)[0]


def test_settings_reach_the_manifest(sentences: Path) -> None:
    write(sentences / "tokenizer_config.json", truncation_side="left", padding_side="left")
    write(sentences / "config_sentence_transformers.json", prompts={"q": "query: "}, default_prompt_name="q")
    made = tokenizer_of(inspect(sentences))

    assert made is not None
    assert manifest_entry(made, {}) == {
        "file": "tokenizer.json",
        "max_length": 8,
        "pad_id": 0,
        "pad_token": "[PAD]",
        "truncation_side": "left",
        "padding_side": "left",
        "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "prompts": {"q": "query: "},
        "prompt": "q",
    }


def test_a_tokenizer_of_another_kind_is_refused(folder: Path) -> None:
    words = {"[UNK]": 0, "a": 1}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(LlmcError, match="of another kind than BertTokenizer"):
        tokenizer_of(inspect(folder))

    write(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert ours(folder, ["a"]) == [[1]]


@pytest.mark.parametrize("name", FILES)
def test_lower_case_and_limit_of_sentence_transformers(name: str, sentences: Path) -> None:
    write(sentences / name, max_seq_length=9, do_lower_case=True)
    lower = [text.lower() for text in TEXTS]
    assert ours(sentences, TEXTS) == theirs(sentences, lower, max_length=9)  # not 8, the tokenizer's own
    assert ours(sentences, TEXTS) != theirs(sentences, TEXTS, max_length=9)


def test_prompts_go_before_the_text(sentences: Path) -> None:
    prompts = {"q": "query: ", "other": "a "}
    write(sentences / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="q")
    assert ours(sentences, TEXTS) == theirs(sentences, ["query: " + text for text in TEXTS])

    made = tokenizer_of(inspect(sentences))
    assert made is not None
    encode = encoder_of(made, made.max_length)
    assert [e.ids for e in encode(TEXTS, prompt="other")] == theirs(sentences, ["a " + t for t in TEXTS])
    with pytest.raises(LlmcError, match="no prompt 'r'"):
        encode(TEXTS, prompt="r")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "an unknown setting": (
        lambda p: write(p / FILES[0], tokenizer_args={"add_prefix_space": True}),
        "the setting tokenizer_args of sentence_bert_config.json is not supported",
    ),
    "a limit that is none": (lambda p: write(p / FILES[0], max_seq_length="256"), "max_seq_length is not"),
    "a default that is not there": (
        lambda p: write(p / "config_sentence_transformers.json", default_prompt_name="q"),
        "no prompt 'q', the default",
    ),
    "prompts that are not pooled": (
        lambda p: (
            write(p / "config_sentence_transformers.json", prompts={"q": "query: "}),
            write(p / "1_Pooling" / "config.json", include_prompt=False),
        ),
        "leaves the prompt's tokens out",
    ),
    "another kind of model": (
        lambda p: write(p / "config_sentence_transformers.json", model_type="CrossEncoder"),
        "holds a CrossEncoder",
    ),
    "a side that is none": (
        lambda p: write(p / "tokenizer_config.json", padding_side="top"),
        "neither right",
    ),
    "special tokens split": (
        lambda p: write(p / "tokenizer_config.json", split_special_tokens=True),
        "split_special_tokens is not supported",
    ),
    "half a character": (
        lambda p: write(p / "config_sentence_transformers.json", prompts={"q": "\ud83d"}),
        "a prompt is not valid Unicode",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_answers_is_refused(case: str, sentences: Path) -> None:
    damage, problem = REFUSED[case]
    damage(sentences)
    with pytest.raises(LlmcError, match=problem) as caught:
        tokenizer_of(inspect(sentences))
    assert caught.value.at
