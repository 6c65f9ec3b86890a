"""Generating text in Python on the artifact `words`: tokens, options, refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from generating import PROMPT, changed, greedy, refused

from llmc import LlmcError
from llmc.errors import LlmcWarning
from llmc.runtime import load

# --- tokens


@pytest.mark.parametrize("which", ["model", "recurrent"])
def test_greedy_is_what_whole_passes_give(which, request):
    model = request.getfixturevalue(which)
    long = [(7 * i) % 40 + 1 for i in range(37)]
    for prompt in (PROMPT, [3], long):
        found = model.generate(prompt, max_new_tokens=20)
        assert found.ids == greedy(model, prompt, 20)
        assert found.prompt == tuple(prompt)
        assert [t.index for t in found.tokens] == list(range(len(found.tokens)))


def test_a_text_ends_at_its_stop_token_or_bound(model):
    """The token that ends a text is the last, and no other."""
    ends = set()
    for first in range(1, 41):
        found = model.generate([first], max_new_tokens=30)
        ends.add(found.finish)
        assert found.ids.index(0) == len(found.ids) - 1 if found.finish == "stop" else 0 not in found.ids
        assert found.usage.new_tokens == len(found.ids)
    assert ends == {"stop", "length"}
    found = model.generate(PROMPT, max_new_tokens=1000, eos_token_id=[])
    assert (len(found.ids), found.finish) == (60, "length")  # 64 in all


def test_least_tokens(model):
    ending = next(p for p in range(1, 41) if model.generate([p]).finish == "stop")
    short = model.generate([ending])
    assert len(model.generate([ending], min_new_tokens=11).ids) >= 11
    assert len(model.generate([ending], min_length=12).ids) >= 11
    assert len(short.ids) < 11


@pytest.mark.parametrize("size", [1, 2])
def test_what_the_prompt_holds_does_not_come(model, size):
    """As transformers has `encoder_no_repeat_ngram_size` of a model without an encoder."""

    def runs(ids):
        return {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)}

    def repeated(prompt, **options):
        made = model.generate(prompt, max_new_tokens=12, eos_token_id=[], **options).ids
        return runs(prompt) & runs([*prompt[len(prompt) - size + 1 :], *made])

    texts = (model.generate([first], max_new_tokens=30, eos_token_id=[]).ids for first in range(1, 41))
    prompt = next(text for text in texts if repeated(text))
    assert not repeated(prompt, encoder_no_repeat_ngram_size=size)
    found = model.search(prompt, num_beams=2, max_new_tokens=12, encoder_no_repeat_ngram_size=size)
    assert not any(runs(prompt) & runs([*prompt[len(prompt) - size + 1 :], *f.ids]) for f in found)


def test_the_same_seed_draws_the_same_text(model):
    drawn = [model.generate(PROMPT, do_sample=True, seed=s, top_k=0).ids for s in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) == 3
    free = model.generate(PROMPT, do_sample=True, temperature=5.0)
    assert model.generate(PROMPT, do_sample=True, temperature=5.0, seed=free.seed).ids == free.ids
    assert model.generate(PROMPT).seed is None


def test_draws_are_what_they_were_on_every_machine(model):
    """Philox, exponentials and sums in a fixed order: these tokens must never change."""
    ids = model.generate(PROMPT, do_sample=True, seed=42, top_k=0, temperature=2.0, eos_token_id=[]).ids
    assert ids == DRAWN


DRAWN = [21, 13, 24, 29, 34, 9, 31, 19, 7, 14, 28, 15]


def test_options_of_the_model_are_the_defaults(words, tmp_path):
    with load(
        changed(words, tmp_path, defaults={"do_sample": True, "top_k": 1, "max_new_tokens": 5})
    ) as model:
        assert model.generate(PROMPT).seed is not None
        assert model.generate(PROMPT).ids == greedy(model, PROMPT, 5)
        assert (
            len(model.generate(PROMPT, max_length=7, eos_token_id=[]).ids) == 3
        )  # what the caller says goes first


def test_a_default_of_drawing_has_no_effect_where_none_are_drawn(words, tmp_path):
    with load(changed(words, tmp_path, defaults={"temperature": 0.0, "max_new_tokens": 5})) as model:
        assert model.generate(PROMPT).ids == greedy(model, PROMPT, 5)
        refused("temperature is 0.0", model.generate, PROMPT, do_sample=True)


def test_of_what_is_forced_the_suppressed_does_not_come(model):
    """As in transformers, where suppression comes last."""
    made = model.generate(PROMPT, max_new_tokens=2, forced_eos_token_id=[2, 3], suppress_tokens=[2])
    assert made.ids[-1] == 3


def test_look_up_gives_the_same_tokens(model):
    prompt = [5, 6, 7, 5, 6, 7, 5, 6]
    for options in ({}, {"do_sample": True, "seed": 3, "top_k": 4}):
        plain = model.generate(prompt, max_new_tokens=50, eos_token_id=[], **options)
        for most in (1, 3, 10):
            found = model.generate(
                prompt, max_new_tokens=50, eos_token_id=[], prompt_lookup_num_tokens=most, **options
            )
            assert found.ids == plain.ids
    plain = model.generate(prompt, max_new_tokens=20, eos_token_id=[])
    twice = [*prompt, *plain.ids, *prompt]  # what comes now has come before
    found = model.generate(twice, max_new_tokens=20, eos_token_id=[], prompt_lookup_num_tokens=5)
    assert found.ids == plain.ids
    assert found.usage.runs < 10
    assert found.usage.guessed >= found.usage.accepted > 10


def test_logprobs(model):
    found = model.generate(PROMPT, max_new_tokens=4, logprobs=True, top_logprobs=3, repetition_penalty=1.5)
    ids = list(PROMPT)
    for token in found.tokens:
        with model.session() as session:
            keep = [len(ids) - 1]
            logits = session.run({"input_ids": [ids], "logits_to_keep": keep})["logits"][0, 0].astype(
                np.float64
            )
        expected = logits - np.log(np.exp(logits).sum())
        assert token.logprob == pytest.approx(expected[token.id], abs=1e-12)
        order = np.argsort(-expected, kind="stable")[:3]
        assert [i for i, _ in token.top] == order.tolist()
        np.testing.assert_allclose([p for _, p in token.top], expected[order], atol=1e-12)
        ids.append(token.id)
    assert model.generate(PROMPT).tokens[0].logprob is None
    assert model.generate(PROMPT, logprobs=True).tokens[0].top == ()


# --- refusals


def test_numbers_of_numpy_are_numbers(model):
    asked = {"max_new_tokens": np.int64(3), "do_sample": np.True_, "temperature": np.float32(0.5)}
    made = model.generate(PROMPT, seed=np.uint64(5), **asked)
    assert made.ids == model.generate(PROMPT, seed=5, max_new_tokens=3, do_sample=True, temperature=0.5).ids


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 0, "do_sample": True}, "temperature is 0, must be a number above 0"),
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1.0, must be a number above 0"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature is nan"),
        ({"top_p": 1.5, "do_sample": True}, "top_p is 1.5, must be a number within 0..1"),
        ({"min_p": -0.1, "do_sample": True}, "min_p is -0.1"),
        ({"typical_p": 0, "do_sample": True}, "typical_p is 0, must be a number above 0, at most 1"),
        ({"top_k": -1, "do_sample": True}, "top_k is -1"),
        ({"top_k": 2.5, "do_sample": True}, "top_k is 2.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, must be a number above 0"),
        (
            {"presence_penalty": 1e300},
            "presence_penalty is 1e+300, must be a number within -3.4e+38..3.4e+38",
        ),
        ({"presence_penalty": "a"}, "presence_penalty is 'a', must be a number"),
        ({"do_sample": 1}, "do_sample is 1, must be True or False"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, must be a whole number, at least 1"),
        ({"max_length": 3}, "max_length is 3, the prompt alone has 4 tokens"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ""}, "stop_strings is '', must be a text or a list of texts, none of them empty"),
        ({"stop_strings": ["a", ""]}, "stop_strings is ['a', '']"),
        ({"logit_bias": {41: 1.0}}, "logit_bias: 41 is no token, must be within 0..40"),
        ({"logit_bias": [3]}, "logit_bias is [3], must be a mapping of tokens to numbers"),
        ({"logit_bias": {3: float("inf")}}, "logit_bias is {3: inf}"),
        ({"logit_bias": {3: 1e300}}, "logit_bias is {3: 1e+300}"),
        ({"temperature": 1e-40, "do_sample": True}, "temperature is 1e-40"),
        ({"eos_token_id": 41}, "eos_token_id: 41 is no token"),
        ({"suppress_tokens": [2, 3], "forced_eos_token_id": [3]}, "which suppress_tokens has too"),
        ({"suppress_tokens": list(range(41))}, "no token is left to choose from"),
        ({"top_logprobs": 42}, "top_logprobs is 42, must be within 0..41"),
        (
            {"prompt_lookup_num_tokens": 65},
            "prompt_lookup_num_tokens is 65, must be a whole number within 0..64",
        ),
        ({"temprature": 0.5}, "did you mean temperature?"),
        ({"timeout": 0}, "timeout is 0, must be a number above 0"),
    ],
)
def test_options_that_make_no_sense(model, options, told):
    model.generate(PROMPT, max_new_tokens=1)
    refused(told, model.generate, PROMPT, **options)
    assert len(model._idle) == 1  # and the session is there for the next


def test_prompts_that_cannot_be(model, recurrent):
    refused("the prompt is empty", model.generate, "")
    refused("not a text or a list of tokens: b'abc'", model.generate, b"abc")
    refused("the prompt is empty", model.generate, [])
    refused("token 1 of the prompt is 41, must be within 0..40", model.generate, [1, 41])
    refused("token 0 of the prompt is -1, must be within 0..40", model.generate, [-1])
    refused("not a text or a list of tokens: 3", model.generate, 3)
    refused("not a text or a list of tokens: [1.5]", model.generate, [1.5])
    refused("lone surrogate", model.generate, "\ud83d")
    with pytest.raises(LlmcError) as caught:
        model.generate("a" * 64)
    assert "the prompt has 64 tokens, the model takes at most 64, new ones included" in str(caught.value)
    assert "compile the model with a larger bound (--max-seq)" in str(caught.value)
    assert len(model.generate("a" * 63, eos_token_id=[]).ids) == 1
    assert len(recurrent.generate("a" * 100, eos_token_id=[]).ids) == 12  # its state has no bound


def test_a_model_that_does_not_generate(tiny, words, tmp_path):
    with load(tiny) as model:
        refused("the model does not generate text", model.generate, "a")
        refused("found: a sentence-embedding model", model.chat, "a")
    with load(changed(words, tmp_path, chat=None)) as model:
        refused("the model has no chat template", model.chat, "a")


def test_options_without_effect_are_told(model):
    with pytest.warns(LlmcWarning, match="temperature, top_p have no effect: do_sample is not set"):
        model.generate(PROMPT, temperature=0.5, top_p=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(PROMPT, do_sample=True, temperature=0.5, top_p=0.5)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"function": "stp"}, "field generation.function must be one of step"),
        ({"tokens": "ids"}, "field generation.tokens must be one of input_ids, logits_to_keep"),
        ({"eos": [41]}, "field generation.eos[0] must be an integer within 0..40"),
        ({"bos": "a"}, "field generation.bos must be an integer"),
        ({"chat": {"file": "nowhere", "tokens": {}}}, "field generation.chat.file must be one of"),
        ({"defaults": [1]}, "field generation.defaults must be an object"),
        ({"max_length": 0}, "field generation.max_length must be an integer within 1.."),
    ],
)
def test_a_manifest_that_says_it_wrong(words, tmp_path, entry, told):
    refused(told, load, changed(words, tmp_path, **entry))


def test_a_closed_model_gives_all_back(words):
    model = load(words, threads=1)
    model.generate(PROMPT)
    model.close()
    refused("the model is closed", model.generate, PROMPT)
    assert model._idle == []
