"""Folders without tokenizer.json: the tokens of the converted vocabulary are those of its own library."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from llmc.compiler.frontends import tokenizer
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.errors import LlmcError
from llmc.tokens import encoder_of

sentencepiece = pytest.importorskip("sentencepiece")
tiktoken = pytest.importorskip("tiktoken")
TEXTS = ["the quick fox", "a film, and 123!", "Hello World unknownzzz", "x", "日本 film"]
LINES = [
    "the quick brown fox jumps over the lazy dog",
    "a film to remember, a plot to forget",
    "café 123 Hello!",
]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "film",
    "##s",
    "fox",
    "1",
    "##2",
    ",",
    "hello",
]
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}


def folder(place: Path, family: str, files: dict[str, bytes], settings: dict[str, Any] | None = None) -> Path:
    """What tokenizers are made of: a model's type, a vocabulary, and settings where there are some."""
    (place / "config.json").write_text(json.dumps({"model_type": family}))
    for name, content in files.items():
        (place / name).write_bytes(content)
    if settings is not None:
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


def converted(place: Path) -> Tokenizer:
    found = tokenizer.build(tokenizer.read(place, {}, 64, None), place, 64, None)
    assert found is not None
    return found


def pieces(place: Path, texts: list[str]) -> list[list[str]]:
    """The tokens that the artifact will make, without those that stand for nothing of the text; ? is unknown."""
    made = converted(place)
    own = tokenizers.Tokenizer.from_str(made.text)
    names = {i: "?" if name in ("[UNK]", "<unk>") else name for name, i in own.get_vocab().items()}
    return [
        [names[i] for i, special in zip(e.ids, e.special_tokens_mask, strict=True) if not special]
        for e in encoder_of(made, made.max_length)(texts)
    ]


def trained(kind: str, **options: Any) -> bytes:
    """A model of SentencePiece, which needs no network."""
    out = io.BytesIO()
    lines = iter(LINES * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=out,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 80, **options},
    )
    return out.getvalue()


UNIGRAM = {
    "albert": ("spiece.model", {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}),
    "xlm-roberta": ("sentencepiece.bpe.model", {}),
    "camembert": ("sentencepiece.bpe.model", {}),
    "deberta-v2": ("spm.model", {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}),
}


@pytest.mark.parametrize("family", UNIGRAM)
def test_unigram(family: str, tmp_path: Path) -> None:
    name, options = UNIGRAM[family]
    if options:
        options = {**options, "user_defined_symbols": "[CLS],[SEP],[MASK]"}
    content = trained("unigram", **options)
    texts = [text.lower() for text in TEXTS] if family == "albert" else TEXTS
    source = sentencepiece.SentencePieceProcessor(model_proto=content)
    wanted = [
        ["?" if source.is_unknown(i) else source.id_to_piece(i) for i in source.encode(text)]
        for text in texts
    ]
    assert any("?" in row for row in wanted)
    assert pieces(folder(tmp_path, family, {name: content}), TEXTS) == wanted


def test_llama(tmp_path: Path) -> None:
    content = trained("bpe", vocab_size=350, **IDENTITY)
    place = folder(tmp_path, "llama", {"tokenizer.model": content})
    with pytest.raises(LlmcError, match=r"does not cut texts as tokenizer\.model does") as caught:
        pieces(place, TEXTS)  # without a class transformers forgets the space before the first word
    assert "LlamaTokenizer" in str(caught.value.hint)
    source = sentencepiece.SentencePieceProcessor(model_proto=content)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    folder(tmp_path, "llama", {}, settings)
    assert pieces(place, TEXTS) == source.encode(TEXTS, out_type=str)
    assert encoder_of(converted(place), 64)(["x"])[0].tokens[0] == "<s>"


def characters() -> list[str]:
    """GPT-2's character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + rest.index(b)) for b in range(256)]


MERGES = [("t", "h"), ("th", "e"), ("Ġ", "f"), ("i", "l"), ("Ġf", "il")]


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_pairs_of_bytes(family: str, tmp_path: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if family == "roberta" else []
    every = [*special, *characters(), *("".join(pair) for pair in MERGES), *["<|endoftext|>"][: not special]]
    files = {
        "vocab.json": json.dumps({token: i for i, token in enumerate(every)}).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, MERGES)]).encode(),
    }
    byte = {c: b for b, c in enumerate(characters())}
    ranks = {bytes([b]): b for b in range(256)}
    for pair in MERGES:
        ranks[bytes(byte[c] for c in "".join(pair))] = len(ranks)
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    source = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    wanted = [[source.decode_single_token_bytes(i) for i in source.encode(text)] for text in TEXTS]
    found = pieces(folder(tmp_path, family, files), TEXTS)
    assert [[bytes(byte[c] for c in token) for token in row] for row in found] == wanted


@pytest.mark.parametrize("lower", [True, False])
def test_parts_of_words(lower: bool, tmp_path: Path) -> None:
    settings = {"do_lower_case": lower}
    place = folder(tmp_path, "bert", {"vocab.txt": "\n".join(WORDS).encode()}, settings)
    source = BertTokenizerLegacy(str(place / "vocab.txt"), **settings)
    found = [[i for i in e.ids if i] for e in encoder_of(converted(place), 64)(TEXTS)]
    assert found == source(TEXTS)["input_ids"]


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_the_package_is_named(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    lines = [b64encode(bytes([b])) + f" {b}\n".encode() for b in range(256)]
    content = trained("unigram") if kind == "sentencepiece" else b"".join(lines)
    place = folder(tmp_path, "llama", {"tokenizer.model": content})
    monkeypatch.setitem(__import__("sys").modules, kind, None)
    with pytest.raises(LlmcError, match=f"this needs the package {kind}") as caught:
        converted(place)
    assert caught.value.hint == "pip install 'llmc[tokenizers]'"
