"""Texts held to a JSON schema, a regular expression or a grammar, on the artifact `words` with other tokenizers."""

from __future__ import annotations

import json
import re
import sys

import grammars
import numpy as np
import pytest
from generating import refused

from llmc.errors import LlmcWarning
from llmc.runtime import load
from llmc.runtime.generation_options import GenerationOptions
from llmc.runtime.grammar import matcher_of

pytest.importorskip("llguidance")
PROMPT = [5, 6, 7, 8]
DRAWN = {"do_sample": True, "top_k": 0, "temperature": 3.0, "max_new_tokens": 58}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"enum": ["bed", "son", 12, None]}, "minItems": 1, "maxItems": 3},
        "b": {"type": "boolean"},
        "c": {"type": "string", "maxLength": 4},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def json_model(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grammar") / "letters.llmc"
    with load(grammars.with_tokenizer(words, folder, grammars.letters()), threads=1) as model:
        yield model


def fits(value):
    """What SCHEMA says, in Python."""
    assert isinstance(value, dict)
    assert {"a", "b"} <= set(value) <= {"a", "b", "c"}
    assert 1 <= len(value["a"]) <= 3
    assert all(item in ("bed", "son", 12, None) for item in value["a"])
    assert isinstance(value["b"], bool)
    assert isinstance(value.get("c", ""), str)
    assert len(value.get("c", "")) <= 4


# --- what comes out


def test_every_text_is_json_that_fits_its_schema(json_model):
    ended = 0
    for seed in range(60):
        made = json_model.generate(PROMPT, json_schema=SCHEMA, seed=seed, **DRAWN)
        assert made.finish in ("stop", "length")
        if made.finish == "stop":
            fits(json.loads(made.text))
            ended += 1
        assert "".join(json_model.stream(PROMPT, json_schema=SCHEMA, seed=seed, **DRAWN)) == made.text
    assert ended > 40


@pytest.mark.parametrize(
    "regex",
    [r"[abc]{2,5}", r"(true|bo?b)+ ?\d\d", r"-?(0|[127][0127]*)\.[012]{1,3}", r"é{1,3}\n?", r"a/b|[a-f]*"],
)
def test_every_text_matches_its_expression_whole(json_model, regex):
    for options in ({}, *({**DRAWN, "seed": seed} for seed in range(20))):
        made = json_model.generate(PROMPT, regex=regex, **options)
        assert made.finish == "length" or re.fullmatch(regex, made.text)
        assert made.finish == "stop" or len(made.ids) == options.get("max_new_tokens", 12)


LARK = """
start: item ("," item)*
item: WORD | "[" start "]"
WORD: /[abc]{1,2}/
"""


def test_every_text_is_of_its_grammar(json_model):
    for seed in range(30):
        made = json_model.generate(PROMPT, grammar=LARK, seed=seed, **DRAWN)
        text = made.text
        while text != (less := re.sub(r"\[[abc]{1,2}(,[abc]{1,2})*\]", "a", text)):
            text = less
        assert made.finish == "length" or re.fullmatch(r"[abc]{1,2}(,[abc]{1,2})*", text)


def test_each_token_is_the_likeliest_that_may_come(json_model):
    """By whole passes, and a matcher of the library's own."""
    made = json_model.generate(PROMPT, json_schema=SCHEMA, max_new_tokens=58)
    entry = json_model.manifest.generation
    matcher, _ = matcher_of(json_model, entry, GenerationOptions(json_schema=SCHEMA))
    ids = list(PROMPT)
    for token in made.ids:
        with json_model.session() as session:
            for begin in range(0, len(ids), 16):
                part = ids[begin : begin + 16]
                logits = session.run({"input_ids": [part], "logits_to_keep": [len(part) - 1]})["logits"][0, 0]
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:41]
        assert token == np.where(bits, logits, -np.inf).argmax()
        assert matcher.consume_token(token)
        ids.append(token)
    assert matcher.is_accepting() == (made.finish == "stop")


def test_a_text_ends_where_its_grammar_allows_and_not_before(json_model):
    made = json_model.generate(PROMPT, regex="[ab]{3}", logit_bias={0: 50.0})
    assert (len(made.text), made.finish, len(made.ids)) == (
        3,
        "stop",
        3,
    )  # nothing can follow: no run for an end
    longer = json_model.generate(PROMPT, regex="[ab]{3}c*", logit_bias={0: 50.0})
    assert (len(longer.text), longer.finish, longer.ids[-1]) == (3, "stop", 0)
    least = json_model.generate(PROMPT, regex="[ab]{3}c*", logit_bias={0: 50.0}, min_new_tokens=5)
    assert (len(least.text), least.ids[-1]) == (5, 0)
    short = json_model.generate(PROMPT, regex="[ab]{3}", min_new_tokens=9)
    assert (len(short.text), short.finish) == (3, "stop")  # what cannot go on ends
    cut = json_model.generate(PROMPT, regex="[ab]{30}", max_new_tokens=4)
    assert (len(cut.text), cut.finish) == (4, "length")
    last = json_model.generate(PROMPT, regex="[ab]{4}", max_new_tokens=4)
    assert (len(last.text), last.finish) == (4, "stop")
    assert json_model.generate(PROMPT, regex="[ab]{3}", eos_token_id=[]).finish == "stop"
    assert json_model.generate(PROMPT, regex="[ab]{3}c*", eos_token_id=[]).finish == "length"
    empty = json_model.generate(PROMPT, regex="")
    assert (empty.text, empty.ids, empty.finish) == ("", [], "stop")
    cut = json_model.generate(PROMPT, regex="[ab]{9}", stop="b", min_new_tokens=9)
    assert set(cut.text) <= {"a"}


def test_penalties_go_with_it(json_model):
    made = json_model.generate(PROMPT, regex="[abc]{3}", no_repeat_ngram_size=1)
    assert sorted(made.text) == ["a", "b", "c"]
    refused("no token is left", json_model.generate, PROMPT, regex="[ab]{3}", no_repeat_ngram_size=1)
    assert json_model.generate(PROMPT, regex="[ab]{3}").text  # and the session is there for the next


def test_guesses_are_held_to_it(json_model):
    prompt = grammars.ids_of('{"a":[12,12],"b":true}\n'.replace("true", "1"))
    runs = []
    for options in ({}, {**DRAWN, "seed": 3}, {**DRAWN, "seed": 4, "temperature": 1.0}):
        asked = {"json_schema": SCHEMA, **options, "max_new_tokens": 30}
        plain = json_model.generate(prompt, **asked)
        found = json_model.generate(prompt, prompt_lookup_num_tokens=7, **asked)
        assert (found.ids, found.text, found.finish) == (plain.ids, plain.text, plain.finish)
        runs.append(found.usage.accepted)
    forced = json_model.generate(grammars.ids_of("abcdabcdab"), regex="(cdab){3}", prompt_lookup_num_tokens=7)
    assert (forced.text, forced.finish) == ("cdab" * 3, "stop")
    assert forced.usage.accepted > 6
    assert forced.usage.runs < 6


def test_several_at_once_each_have_their_own(json_model):
    each = [
        {"json_schema": SCHEMA},
        {},
        {"regex": "[ab]{3}"},
        {"grammar": LARK, "seed": 5, **DRAWN},
        {"regex": "c*"},
    ]
    for most in (2, 5):
        found = json_model.generate([PROMPT] * 5, each=each, max_batch=most, max_new_tokens=20)
        for made, own in zip(found, each, strict=True):
            alone = json_model.generate(PROMPT, **{"max_new_tokens": 20, **own})
            assert (made.ids, made.text, made.finish) == (alone.ids, alone.text, alone.finish)
    assert found[2].finish == "stop"


def test_conversations_and_streams_are_held(json_model):
    with json_model.session() as session:
        first = json_model.chat("ab", session=session, regex="(true|bob)")
        assert first.text in ("true", "bob")
        messages = [{"role": "user", "content": "ab"}, first.message, {"role": "user", "content": "c"}]
        second = json_model.chat(messages, session=session, regex="[012]{2}")
        assert second.usage.cached_tokens > 3
    assert re.fullmatch("[012]{2}", second.text)
    assert json_model.chat(messages, regex="[012]{2}").text == second.text


def test_a_schema_may_be_text_or_a_class(json_model):
    class Model:
        @staticmethod
        def model_json_schema():
            return SCHEMA

    wanted = json_model.generate(PROMPT, json_schema=SCHEMA, max_new_tokens=50).ids
    assert json_model.generate(PROMPT, json_schema=json.dumps(SCHEMA), max_new_tokens=50).ids == wanted
    assert json_model.generate(PROMPT, json_schema=Model, max_new_tokens=50).ids == wanted
    compact = {**SCHEMA, "x-guidance": {"whitespace_flexible": False}}
    for seed in range(10):
        assert " " not in re.sub(
            '"[^"]*"', "", json_model.generate(PROMPT, json_schema=compact, seed=seed, **DRAWN).text
        )


# --- tokenizers


@pytest.mark.parametrize(
    ("made", "regexes"),
    [
        (grammars.pieces(), ("ab?1{2}", "( a|b)c", "[a-f]{3} a")),
        (grammars.pieces(fallback=True), ("ab?1{2}", "( a|b)c", "[a-f]{3} a")),
        (grammars.words(), ("(red|green) (fish|birds)", "the( red| two){2,3} fish", "a")),
    ],
    ids=["Metaspace", "byte fallback", "words"],
)
def test_texts_whose_first_blank_is_not_shown(words, tmp_path, made, regexes):
    """A first token may bring its blank, which the text does not have."""
    path = grammars.with_tokenizer(words, tmp_path / "m.llmc", made)
    with load(path, threads=1) as model:
        for regex in regexes:
            texts = {model.generate([5], regex=regex, seed=s, **DRAWN).text for s in range(25)}
            assert all(re.fullmatch(regex, text) for text in texts)
            assert len(texts) > 1 or regex == "a"
        assert model.generate([5], grammar='start: "a"').text == "a"
        assert model.generate([5], json_schema={"const": 1}).text == "1"


def test_a_tokenizer_whose_tokens_are_no_text(words, tmp_path):
    from tokenizers import decoders

    made = grammars.words()
    made.decoder = decoders.WordPiece()
    with load(grammars.with_tokenizer(words, tmp_path / "m.llmc", made), threads=1) as model:
        refused("a tokenizer with the decoder WordPiece", model.generate, [5], regex="a")
    with load(grammars.with_tokenizer(words, tmp_path / "n.llmc", None), threads=1) as model:
        refused("needs a tokenizer, which the artifact does not have", model.generate, [5], regex="a")


# --- refusals


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"regex": "[0-9"}, "cannot use this regular expression: unclosed character class"),
        ({"regex": "a(?=b)"}, "look-around, including look-ahead and look-behind, is not supported"),
        ({"regex": 3}, "regex is 3, must be a text"),
        ({"json_schema": "{"}, "json_schema is no JSON: Expecting property name"),
        ({"json_schema": [1]}, "json_schema is [1], must be a JSON schema"),
        ({"json_schema": "[1]"}, "json_schema is [1], must be an object"),
        ({"json_schema": {"a": {1}}}, "json_schema is no JSON: Object of type set"),
        ({"json_schema": {"type": "strin"}}, "cannot use this JSON schema: Invalid type: strin"),
        ({"json_schema": {"type": "integer", "not": {"const": 3}}}, 'Unimplemented keys: ["not"]'),
        ({"json_schema": False}, "cannot use this JSON schema"),
        ({"grammar": "foo: 'a'"}, "cannot use this grammar"),
        ({"grammar": "start: bar"}, 'cannot use this grammar: at 1(8): unknown name: "bar"'),
        ({"regex": "a", "grammar": "start: /a/"}, "regex and grammar cannot go together"),
        ({"regex": "Q+"}, "no token of the model fits its schema, expression or grammar"),
        ({"regex": "a", "num_beams": 3}, "regex cannot go with beams"),
        ({"regex": "a", "eos_token_id": 41}, "41 is no token, must be within 0..40"),
        ({"json_schem": {}}, "did you mean json_schema?"),
    ],
)
def test_what_cannot_be_held_to_is_refused_before_any_token(json_model, options, told):
    with json_model.session() as session:
        own = {} if "num_beams" in options else {"session": session}
        refused(told, json_model.generate, PROMPT, **options, **own)
        assert session.lengths == {"past": 0}
    if "num_beams" not in options:
        refused("prompt 1: ", json_model.generate, [PROMPT, PROMPT], each=[{}, options])


def test_a_text_that_cannot_go_on_is_told(json_model):
    refused("the text cannot go on: no token of the model fits", json_model.generate, PROMPT, regex="abQ")
    refused("the text cannot go on", json_model.generate, [PROMPT, PROMPT], each=[{}, {"regex": "abQ"}])
    assert json_model.generate(PROMPT, regex="ab").text == "ab"


def test_what_the_library_warns_of_is_told(json_model, monkeypatch):
    import llguidance

    class Warns:
        matcher = llguidance.LLMatcher

        def __new__(cls, *arguments, **named):
            return cls.matcher(*arguments, **named)

        @staticmethod
        def validate_grammar_with_warnings(*_):
            return False, ["it may be slow"]

    monkeypatch.setattr(llguidance, "LLMatcher", Warns)
    with pytest.warns(LlmcWarning, match="regex: it may be slow"):
        json_model.generate(PROMPT, regex="[ab]{7}")


def test_without_the_library_a_sentence_says_what_to_install(json_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    refused(
        "this needs the package llguidance\n  hint:  pip install 'llmc[grammar]'",
        json_model.generate,
        PROMPT,
        regex="a",
    )
    assert json_model.generate(PROMPT).ids
