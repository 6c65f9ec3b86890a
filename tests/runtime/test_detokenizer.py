"""Pieces of texts by the decoders that language models have, and texts that end one."""

from __future__ import annotations

import random

import pytest

from llmc.runtime.detokenizer import Detokenizer, StopStrings

tokenizers = pytest.importorskip("tokenizers")
LETTERS = [f"▁{c}" for c in "abc"] + list("abcdé") + ["▁", "</s>"]


def metaspace():
    """As Llama's: blanks are ▁, the first goes, characters that are no token come as bytes."""
    words = [*LETTERS, *(f"<0x{b:02X}>" for b in "€😀".encode())]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({w: i for i, w in enumerate(dict.fromkeys(words))}, []))
    parts = tokenizers.decoders
    made.decoder = parts.Sequence(
        [
            parts.Replace("▁", " "),
            parts.ByteFallback(),
            parts.Fuse(),
            parts.Strip(content=" ", left=1, right=0),
        ]
    )
    made.add_special_tokens([tokenizers.AddedToken("</s>")])
    return made


def wordpiece():
    words = ["a", "b", "##c", "##d", "e", "</s>"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="a")
    )
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens([tokenizers.AddedToken("</s>")])
    return made


def pieces_of(tokenizer, ids):
    made = Detokenizer(lambda some: tokenizer.decode(list(some), skip_special_tokens=True))
    return [*(made.add(i) for i in ids), made.finish()]


@pytest.mark.parametrize("make", [metaspace, wordpiece])
def test_pieces_are_the_text(make):
    tokenizer = make()
    words = tokenizer.get_vocab()
    whole = [[i] for w, i in words.items() if not w.startswith("<0x")]
    for text in "€😀":
        parts = [words.get(f"<0x{b:02X}>") for b in text.encode()]
        whole += [parts] if None not in parts else []
    rng = random.Random(0)
    for _ in range(200):
        ids = [i for part in rng.choices(whole, k=12) for i in part]
        pieces = pieces_of(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_whole():
    tokenizer = metaspace()
    ids = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in "a€😀".encode()[1:]]
    pieces = pieces_of(tokenizer, [tokenizer.token_to_id("a"), *ids])
    assert pieces == ["a", "", "", "€", "", "", "", "😀", ""]
    assert pieces_of(tokenizer, ids[:2]) == ["", "", "\ufffd\ufffd"]  # what never became one comes at the end


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "found"),
    [
        (["END"], ["aE", "N", "Dx"], "a", "END"),
        (["END"], ["aE", "NO", "END"], "aENO", "END"),
        (["aab"], ["aaab"], "a", "aab"),
        (["aab"], ["a", "a", "a", "b"], "a", "aab"),
        (["b", "ab"], ["a", "b"], "", "ab"),
        (["abc", "b"], ["abc"], "", "abc"),
        (["x"], ["abc"], "abc", None),
        ([], ["abc"], "abc", None),
        (["cd"], ["abc"], "abc", None),
    ],
)
def test_stops(stops, pieces, shown, found):
    watch = StopStrings(stops)
    made = "".join(map(watch.add, pieces)) + watch.finish()
    assert (made, watch.found) == (shown, found)
    for piece in pieces:
        assert watch.found is None or watch.add(piece) == ""


def test_what_may_begin_a_stop_waits():
    watch = StopStrings(["END"])
    assert [watch.add(p) for p in ("a", "E", "N", "x", "E")] == ["a", "", "", "ENx", ""]
    assert watch.finish() == "E"
