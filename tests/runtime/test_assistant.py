"""Texts for which another model guesses: the same tokens as without it, on the artifact `words` and one like it."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import grammars
import pytest
from generating import PROMPT, changed, refused

from llmc.errors import LlmcError
from llmc.runtime import Threads, load

WAYS = (
    {},
    {"do_sample": True, "seed": 3, "top_k": 0, "temperature": 2.0},
    {"do_sample": True, "seed": 4, "top_p": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 8, "logprobs": True},
    {"stop_strings": ["a", "\n"], "eos_token_id": []},
    {"prefill_chunk_size": 2, "max_new_tokens": 4},
)


@pytest.fixture(scope="module")
def draft(dull):
    with load(dull, threads=1) as draft:
        yield draft


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_texts_are_those_without_an_assistant(model, draft, options):
    accepted = guessed = 0
    for prompt in (PROMPT, [3], [(7 * i) % 40 + 1 for i in range(37)]):
        for count in (1, 3, 10):
            asked = {"max_new_tokens": 20, **options}
            plain = model.generate(prompt, **asked)
            found = model.generate(prompt, assistant_model=draft, num_assistant_tokens=count, **asked)
            assert (found.tokens, found.text, found.finish) == (plain.tokens, plain.text, plain.finish)
            assert found.usage.runs <= max(plain.usage.runs, 1)
            accepted, guessed = accepted + found.usage.accepted, guessed + found.usage.guessed
    assert 0 < accepted < guessed


def test_one_that_agrees_is_always_right(model, words):
    """Penalties, places and random numbers go on in the assistant as in the model."""
    with load(words, threads=1) as twin:
        for options in WAYS[:4]:
            found = model.generate(
                PROMPT, assistant_model=twin, max_new_tokens=20, **{**options, "eos_token_id": []}
            )
            assert found.usage.accepted == found.usage.guessed > 12
            assert found.usage.runs <= 5


def test_the_assistant_reads_what_is_new_alone(model, draft):
    with model.session() as session:
        first = model.chat("ab", session=session, assistant_model=draft)
        messages = [{"role": "user", "content": "ab"}, first.message, {"role": "user", "content": "c"}]
        second = model.chat(messages, session=session, assistant_model=draft)
    assert len(draft._idle) == 1
    assert draft._idle[0].lengths["past"] > 10
    assert (first.text, second.text) == (model.chat("ab").text, model.chat(messages).text)
    both = [model.stream("abc", assistant_model=draft), model.stream("abd", assistant_model=draft)]
    assert [s.all().text for s in both] == [model.generate(p).text for p in ("abc", "abd")]
    stream = model.stream("abc", assistant_model=draft, eos_token_id=[])
    next(stream)
    stream.close()
    assert model.generate("abc", assistant_model=draft).ids == model.generate("abc").ids


def test_several_at_once(model, draft, words, dull):
    prompts = [PROMPT, [3], [9, 1, 9, 2, 9], [5, 6], [(7 * i) % 40 + 1 for i in range(30)]]
    each = [{}, WAYS[1], {"num_assistant_tokens": 2}, {"assistant_model": None}, {"max_new_tokens": 3}]
    for most in (2, 5):
        found = model.generate(prompts, each=each, max_batch=most, max_new_tokens=20, assistant_model=draft)
        for prompt, own, made in zip(prompts, each, found, strict=True):
            asked = {k: v for k, v in own.items() if "assistant" not in k}
            assert made.ids == model.generate(prompt, **{"max_new_tokens": 20, **asked}).ids
    assert sum(made.usage.accepted for made in found) > 5
    threads = Threads(2)
    with load(words, threads=threads) as one, load(dull, threads=threads) as other:
        made = one.generate(prompts, assistant_model=other, max_new_tokens=9)
        assert [m.ids for m in made] == [model.generate(p, max_new_tokens=9).ids for p in prompts]


def test_guesses_are_held_to_the_grammar_of_the_text(words, dull, tmp_path):
    pytest.importorskip("llguidance")
    paths = [grammars.with_tokenizer(p, tmp_path / p.name, grammars.letters()) for p in (words, dull)]
    schema = {"type": "array", "items": {"enum": ["bed", "son", 12, None]}, "minItems": 4, "maxItems": 6}
    accepted = guessed = 0
    with load(paths[0], threads=1) as model, load(paths[1], threads=1) as draft:
        for options in (
            {"json_schema": schema},
            {"regex": "([ab]{3}c)*"},
            {"json_schema": schema, **WAYS[1]},
        ):
            plain = model.generate(PROMPT, max_new_tokens=40, **options)
            found = model.generate(PROMPT, max_new_tokens=40, assistant_model=draft, **options)
            assert (found.ids, found.text, found.finish) == (plain.ids, plain.text, plain.finish)
            accepted, guessed = accepted + found.usage.accepted, guessed + found.usage.guessed
    assert accepted > 0.4 * guessed > 5  # far more than by chance: one token of several is right


def test_an_assistant_may_take_less(model, draft, dull, tmp_path):
    """Fewer tokens in a text, or fewer kinds of them: it guesses as long as it can."""
    plain = model.generate(PROMPT, max_new_tokens=40, eos_token_id=[])
    most = model.generate(PROMPT, max_new_tokens=40, eos_token_id=[], assistant_model=draft).usage.guessed
    for i, less in enumerate(({"max_length": 20}, {"vocabulary": 35}, {"vocabulary": 8})):
        (folder := tmp_path / str(i)).mkdir()
        with load(changed(dull, folder, **less), threads=1) as other:
            found = model.generate(PROMPT, max_new_tokens=40, eos_token_id=[], assistant_model=other)
            assert found.ids == plain.ids
            assert found.usage.guessed < most


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {30: 9.0}},
        {"suppress_tokens": [12, 40]},
        {"bad_words_ids": [[30], [5, 31]]},
        {"eos_token_id": [0, 33]},
        {"forced_eos_token_id": 37},
        {"begin_suppress_tokens": [36]},
    ],
    ids=str,
)
def test_options_name_tokens_that_an_assistant_does_not_have(model, dull, tmp_path, options):
    with load(changed(dull, tmp_path, vocabulary=30), threads=1) as other:
        for prompt in (PROMPT, [3]):
            plain = model.generate(prompt, max_new_tokens=20, **options)
            assert (
                model.generate(prompt, max_new_tokens=20, assistant_model=other, **options).ids == plain.ids
            )


def test_a_dead_end_of_the_assistant_is_none_of_the_text(words, dull, tmp_path):
    """Where its own guesses leave no token to choose from, the text goes on without."""
    pytest.importorskip("llguidance")
    paths = [grammars.with_tokenizer(p, tmp_path / p.name, grammars.letters()) for p in (words, dull)]
    ended = 0
    with load(paths[0], threads=1) as model, load(paths[1], threads=1) as draft:
        for seed in range(40):
            asked = {
                **{"regex": "([ab]{1,3}c)*d", "no_repeat_ngram_size": 2, "max_new_tokens": 30},
                **{"do_sample": True, "top_k": 0, "temperature": 3.0, "seed": seed},
            }
            try:
                plain = model.generate(PROMPT, **asked)
            except LlmcError:
                continue
            assert model.generate(PROMPT, assistant_model=draft, **asked).ids == plain.ids
            ended += 1
    assert ended > 5


def test_texts_in_cycles_of_garbage_leave_no_closed_session(words, dull):
    """Finalisers of a cycle run in any order: sessions were closed, and then kept for the next text."""
    with load(words, threads=1) as model, load(dull, threads=1) as draft:
        asked: dict = {"max_new_tokens": 9, "eos_token_id": []}
        for assistant in ({}, {"assistant_model": draft}):
            plain = model.generate(PROMPT, **asked).ids
            for _ in range(5):
                model._idle.clear()
                stream = model.stream(PROMPT, **asked, **assistant)
                next(stream)
                holder = SimpleNamespace(stream=stream)
                stream.holder = stream._generation.holder = holder
                if assistant:
                    stream._generation._assistant._session.holder = holder
                del stream, holder
                gc.collect()
                assert model.generate(PROMPT, **asked, **assistant).ids == plain
                assert all(session.is_open for session in (*model._idle, *draft._idle))


def test_a_session_that_was_collected_is_closed(model):
    session = model.session()
    session._handle.__del__()  # as garbage collection does, whoever still holds it
    with pytest.raises(LlmcError, match="the session is closed"):
        model.generate(PROMPT, session=session)
    assert not session.is_open
    assert "closed" in repr(session)


def test_what_fails_in_the_assistant_is_told(model, draft):
    stream = model.stream(PROMPT, assistant_model=draft, eos_token_id=[])
    next(stream)
    stream._generation._assistant._session.close()
    with pytest.raises(LlmcError, match="the session is closed"):
        list(stream)
    draft._idle.clear()
    assert model.generate(PROMPT, assistant_model=draft).ids == model.generate(PROMPT).ids


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_assistant_tokens": 3}, "num_assistant_tokens needs an assistant_model"),
        (
            {"assistant_model": "draft.llmc"},
            "assistant_model is 'draft.llmc', must be a model: llmc.load(path)",
        ),
        ({"num_assistant_tokens": 65}, "num_assistant_tokens is 65, must be a whole number within 1..64"),
        ({"prompt_lookup_num_tokens": 3}, "assistant_model and prompt_lookup_num_tokens cannot go together"),
        ({"num_beams": 2}, "assistant_model cannot go with beams"),
    ],
)
def test_options_that_make_no_sense(model, draft, options, told):
    own = {} if "needs" in told else {"assistant_model": draft}
    refused(told, model.generate, PROMPT, **{**own, **options})


def test_assistants_that_do_not_fit(model, recurrent, draft, tiny, words, dull, tmp_path):
    refused(
        "its states cannot go back where a guess was wrong", model.generate, PROMPT, assistant_model=recurrent
    )
    refused(
        "tokens cannot be guessed: the states of the model", recurrent.generate, PROMPT, assistant_model=draft
    )
    with load(tiny) as other:
        refused("the model does not generate text", model.generate, PROMPT, assistant_model=other)
    with load(grammars.with_tokenizer(dull, tmp_path / "w.llmc", grammars.words()), threads=1) as other:
        refused("it has other tokens\n  at:", model.generate, PROMPT, assistant_model=other)
        refused("prompt 0: the assistant model does not fit", model.generate, [PROMPT], assistant_model=other)
    with load(grammars.with_tokenizer(dull, tmp_path / "n.llmc", None), threads=1) as bare:
        refused("the assistant model does not fit: 41 tokens", model.generate, PROMPT, assistant_model=bare)
        with load(grammars.with_tokenizer(words, tmp_path / "o.llmc", None), threads=1) as other:
            assert other.generate(PROMPT, assistant_model=bare).ids == model.generate(PROMPT).ids
    other = load(dull, threads=1)
    other.close()
    refused("the model is closed", model.generate, PROMPT, assistant_model=other)
