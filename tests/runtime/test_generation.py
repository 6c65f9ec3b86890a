"""Generating text in Python on the artifact `words`: prompts, options, sessions, streams, chats, refusals."""

from __future__ import annotations

import json
import shutil
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from llmc import LlmcError
from llmc.errors import LlmcWarning
from llmc.runtime import load
from llmc.runtime.manifest import seal

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def model(words):
    with load(words, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def recurrent(folded):
    with load(folded, threads=1) as model:
        yield model


def changed(artifact, folder, **entries):
    """A copy of an artifact whose manifest says something else of generation."""
    copied = Path(shutil.copytree(artifact, folder / "changed.llmc"))
    fields = json.loads((copied / "manifest.json").read_text())
    fields["generation"] |= entries
    (copied / "manifest.json").write_text(json.dumps(seal(fields)))
    return copied


def greedy(model, ids, count):
    """By whole passes, a session for each token."""
    made = list(ids)
    for _ in range(count):
        with model.session() as session:
            for begin in range(0, len(made), 16):
                part = made[begin : begin + 16]
                keep = [len(part) - 1]
                logits = session.run({"input_ids": [part], "logits_to_keep": keep})["logits"]
        made.append(int(np.argmax(logits[0, -1])))
        if made[-1] == 0:
            break
    return made[len(ids) :]


def refused(message, function, *arguments, **named):
    with pytest.raises(LlmcError) as caught:
        function(*arguments, **named)
    assert message in str(caught.value), str(caught.value)


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


# --- sessions


def test_what_a_session_holds_of_a_prompt_is_kept(model):
    with model.session() as session:
        first = model.generate(PROMPT, session=session, eos_token_id=[])
        assert first.usage.cached_tokens == 0
        assert session.lengths == {"past": len(PROMPT) + len(first.ids) - 1}
        again = model.generate([*PROMPT, *first.ids, 9], session=session)
        assert again.usage.cached_tokens == len(PROMPT) + len(first.ids) - 1
        other = model.generate([5, 6, 9], session=session)
        assert other.usage.cached_tokens == 2
    assert again.ids == model.generate([*PROMPT, *first.ids, 9]).ids
    assert other.ids == greedy(model, [5, 6, 9], 12)


def test_a_recurrent_session_goes_on_or_begins_anew(recurrent):
    with recurrent.session() as session:
        first = recurrent.generate(PROMPT, session=session, eos_token_id=[])
        on = recurrent.generate([*PROMPT, *first.ids, 9], session=session)
        assert on.usage.cached_tokens == len(PROMPT) + len(first.ids) - 1
        back = recurrent.generate(PROMPT, session=session, eos_token_id=[])
        assert (back.usage.cached_tokens, back.ids) == (0, first.ids)
        session.run({"input_ids": [[1]], "logits_to_keep": [0]})  # of which no list of tokens knows
        assert recurrent.generate(PROMPT, session=session, eos_token_id=[]).ids == first.ids


def test_other_runs_in_a_session_change_no_text(model):
    expected = model.generate(PROMPT).ids
    with model.session() as session:
        session.run({"input_ids": [[5, 6]], "logits_to_keep": [0]})
        assert model.generate(PROMPT, session=session).ids == expected
        session.resize(past=20)
        session.run({"input_ids": [[5, 6]], "logits_to_keep": [0]})
        assert model.generate(PROMPT, session=session).ids == expected
        session.reset()
        assert model.generate(PROMPT, session=session).usage.cached_tokens == 0


def test_rewind_and_fork(model):
    with model.session() as session:
        step = {"input_ids": [[5, 6, 7]], "logits_to_keep": [0, 1, 2]}
        whole = session.run(step)["logits"]
        session.rewind(1)
        assert session.lengths == {"past": 1}
        with session.fork(threads=1) as other:
            assert (other.lengths, other.threads) == ({"past": 1}, 1)
            rest = {"input_ids": [[6, 7]], "logits_to_keep": [1]}
            np.testing.assert_array_equal(other.run(rest)["logits"][0, 0], whole[0, 2])
            assert (other.lengths, session.lengths) == ({"past": 3}, {"past": 1})
        refused("the session cannot go back to 2: past is 1", session.rewind, 2)
        refused("length is -1, must be an int, at least 0", session.rewind, -1)
        session.rewind(0)
        np.testing.assert_array_equal(session.run(step)["logits"], whole)
    refused("the session is closed", session.rewind, 0)
    refused("the session is closed", session.fork)


def test_a_state_that_keeps_its_shape_cannot_go_back(recurrent):
    with recurrent.session() as session:
        first = session.run({"input_ids": [[5, 6]], "logits_to_keep": [1]})["logits"]
        refused("cannot go back to 1: state folded keeps no trace of what it was", session.rewind, 1)
        with session.fork() as other:
            one = {"input_ids": [[7]], "logits_to_keep": [0]}
            np.testing.assert_array_equal(session.run(one)["logits"], other.run(one)["logits"])
        session.rewind(0)
        np.testing.assert_array_equal(
            session.run({"input_ids": [[5, 6]], "logits_to_keep": [1]})["logits"], first
        )
    refused("the states of the model cannot go back", recurrent.generate, PROMPT, prompt_lookup_num_tokens=3)


def test_save_and_load(model, recurrent, tmp_path):
    for kind in (model, recurrent):
        file = tmp_path / f"{kind.path.name}.session"
        with kind.session() as session, kind.session() as other:
            made = kind.generate(PROMPT, session=session, eos_token_id=[])
            session.save(file)
            other.load(file)
            on = kind.generate([*PROMPT, *made.ids, 3], session=other)
            assert on.usage.cached_tokens == len(PROMPT) + len(made.ids) - 1
            assert on.ids == kind.generate([*PROMPT, *made.ids, 3]).ids
        assert [p.name for p in tmp_path.glob(f"{kind.path.name}*")] == [file.name]


def test_a_session_file_that_is_none(model, tmp_path):
    file = tmp_path / "x.session"
    with model.session() as session:
        before = model.generate(PROMPT, session=session)
        refused("No such file", session.load, file)
        file.write_bytes(b"something else")
        refused("is no whole session: it does not begin as one", session.load, file)
        refused("is no whole session: it is not a file", session.load, tmp_path)
        session.save(file)
        data = file.read_bytes()
        file.write_bytes(data[:-1])
        refused("it has another length than was written", session.load, file)
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        refused("its contents differ from what was written", session.load, file)
        file.write_bytes(data[:8] + b"f" * 64 + data[72:])
        refused("is a session of build ffffffffffff, this model is 0f1e2d3c4b5a", session.load, file)
        refused("cannot write", session.save, tmp_path / "nowhere" / "x")
        for path in (3, None, "a\0b"):
            refused("not the path of a file", session.save, path)
        assert model.generate(PROMPT, session=session).usage.cached_tokens == len(PROMPT) - 1
        assert model.generate(PROMPT, session=session).ids == before.ids


def test_a_text_that_takes_too_long(model):
    with model.session() as session:
        told = "the run took longer than its timeout of 1e-09 s"
        refused(told, model.generate, PROMPT, session=session, timeout=1e-9)
        stream = model.stream(PROMPT, session=session, eos_token_id=[], timeout=0.05, max_new_tokens=50)
        next(stream)
        time.sleep(0.06)  # what the caller does meanwhile does not count
        next(stream)
        assert model.generate(PROMPT, session=session).ids == model.generate(PROMPT).ids


def test_two_threads_on_one_session(model):
    """Each gets its text or a sentence, and the session is as good as before."""
    expected, sentences = model.generate(PROMPT, eos_token_id=[]).ids, []

    def use(session):
        for _ in range(200):
            try:
                assert model.generate(PROMPT, session=session, eos_token_id=[]).ids == expected
            except LlmcError as error:
                sentences.append(str(error))

    with model.session(threads=1) as session:
        threads = [threading.Thread(target=use, args=(session,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        known = (
            "the session is in use by another thread",
            "the session was used for something else meanwhile",
        )
        assert all(text.startswith(known) for text in sentences)
        assert model.generate(PROMPT, session=session, eos_token_id=[]).ids == expected


def test_a_session_that_is_another_models_or_closed(model, recurrent):
    with recurrent.session() as session:
        refused("the session is not one of this model", model.generate, PROMPT, session=session)
        refused("the session is not one of this model", model.chat, "ab", session=3)
    with model.session() as session:
        pass
    refused("the session is closed", model.generate, PROMPT, session=session)


def test_a_session_of_two_generations(model):
    with model.session() as session:
        one = model.stream(PROMPT, session=session, eos_token_id=[])
        next(one)
        model.generate([9, 9], session=session)
        refused("the session was used for something else meanwhile", one.all)


# --- texts


def test_text_and_tokens_are_the_same(model):
    found = model.generate("abc de")
    assert found.prompt == (3, 4, 5, 29, 6, 7)
    assert found.ids == model.generate([3, 4, 5, 29, 6, 7]).ids
    assert str(found) == found.text


def test_pieces_of_a_stream_are_the_text(model):
    """Tokens are bytes here, so characters of several come and break."""
    broken = 0
    for seed in range(30):
        options = {"do_sample": True, "seed": seed, "temperature": 3.0, "top_k": 0, "max_new_tokens": 40}
        stream = model.stream("ab", **options)
        pieces = list(stream)
        whole = model.generate("ab", **options)
        assert "".join(pieces) == stream.result.text == whole.text
        assert all(pieces)
        broken += "\ufffd" in whole.text
        visible = [t for t in whole.ids if t]
        assert whole.text == model_text(model, visible)
    assert broken


def model_text(model, ids):
    from llmc.runtime.generation_calls import encoder_of

    return encoder_of(model).text_of(ids)


def test_stop_strings_end_a_text_and_are_not_shown(model):
    whole = model.generate("ab", max_new_tokens=30, eos_token_id=[]).text
    for begin, length in ((2, 1), (3, 2), (5, 3)):
        stop = whole[begin : begin + length]
        stream = model.stream("ab", max_new_tokens=30, eos_token_id=[], stop=["never comes", stop])
        shown = "".join(stream)
        assert shown == whole[: whole.index(stop)] == stream.result.text
        assert stream.result.finish == "stop"
        assert stream.result.usage.new_tokens < 30
    kept = model.generate("ab", max_new_tokens=30, eos_token_id=[], stop=whole[-1] + "nope")
    assert (kept.text, kept.finish) == (
        whole,
        "length",
    )  # what might have been its beginning is given out at the end


def test_a_stream_that_is_left_gives_its_session_back(model):
    for _ in range(3):
        stream = model.stream("abc", eos_token_id=[])
        next(stream)
        stream.close()
        assert list(stream) == []
    assert len(model._idle) == 1
    both = [model.stream("abc"), model.stream("abd")]  # the second has a session of its own
    assert [s.all().text for s in both] == [model.generate(p).text for p in ("abc", "abd")]
    assert len(model._idle) == 1


# --- chats


def test_chat_is_the_template_and_goes_on(model):
    first = model.chat("ab")
    assert first.prompt == (1, 3, 4, 0, 2)
    messages = [{"role": "user", "content": "ab"}, first.message, {"role": "user", "content": "c"}]
    second = model.chat(messages, stream=True)
    text = "".join(second)
    assert text == model.chat(messages).text
    assert second.result.usage.cached_tokens > 4


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat template fails: roles must alternate"),
        ("{{ messages[7].content }}", "the chat template fails: "),
        ("{{ 1 // 0 }}", "the chat template fails: ZeroDivisionError"),
        ("{% for %}", "the chat template fails: "),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails: "),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
        ("{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "does not end"),
        ("{{ 'x' * 10 ** 10 }}", "the chat template fails: * with 1e+10 is too much"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template fails: RecursionError"),
    ],
)
def test_a_template_that_fails_is_a_sentence(words, tmp_path, template, told):
    copied = Path(shutil.copytree(words, tmp_path / "changed.llmc"))
    (copied / "chat_template.jinja").write_text(template)
    fields = json.loads((copied / "manifest.json").read_text())
    del fields["files"]["chat_template.jinja"]
    fields["files"]["chat_template.jinja"] = entry_of(copied / "chat_template.jinja")
    (copied / "manifest.json").write_text(json.dumps(seal(fields)))
    with load(copied, threads=1) as model:
        refused(told, model.chat, "ab")
        assert model.generate("ab").ids


def entry_of(path):
    import hashlib

    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_templates_are_rendered_as_transformers_does():
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    from llmc.runtime import chat

    messages = [
        {"role": "system", "content": "a <b>"},
        {"role": "user", "content": [{"type": "text", "text": "é"}]},
        {"role": "assistant", "content": "c"},
    ]
    for template in (
        "{% for m in messages %}\n  {% if loop.first %}{{ bos_token }}{% endif %}\n{{ m['role'] }}\n{% endfor %}",
        "{{ messages | tojson(indent=2) }}{{ tools is none }}{{ add_generation_prompt }}{{ extra }}",
        "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.index > 1 %}{% break %}"
        "{% endif %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ strftime_now('%Y') }}",
    ):
        variables = {"bos_token": "<s>", "extra": 3}
        expected, _ = theirs.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **variables
        )
        given = {
            "tools": None,
            "documents": None,
            **variables,
            "messages": messages,
            "add_generation_prompt": True,
        }
        assert chat._rendered(template, given, "x") == expected[0]


@pytest.mark.parametrize("messages", [[], [3], [{"content": "x"}], 3, [{"role": "user", "content": {1, 2}}]])
def test_messages_that_are_none(model, messages):
    with pytest.raises(LlmcError, match=r"not a conversation|is none|JSON cannot"):
        model.chat(messages)


# --- refusals


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
        ({"presence_penalty": "a"}, "presence_penalty is 'a', must be a number"),
        ({"do_sample": 1}, "do_sample is 1, must be True or False"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, must be a whole number, at least 1"),
        ({"max_length": 3}, "max_length is 3, the prompt alone has 4 tokens"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ""}, "stop_strings is '', must be a text or a list of texts, none of them empty"),
        ({"stop_strings": ["a", ""]}, "stop_strings is ['a', '']"),
        ({"logit_bias": {41: 1.0}}, "the biased 41 is no token, must be within 0..40"),
        ({"logit_bias": [3]}, "logit_bias is [3], must be a mapping of tokens to numbers"),
        ({"logit_bias": {3: float("inf")}}, "logit_bias is {3: inf}"),
        ({"eos_token_id": 41}, "the stopping 41 is no token"),
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
    refused(told, model.generate, PROMPT, **options)
    assert len(model._idle) == 1  # and the session is there for the next


def test_prompts_that_cannot_be(model, recurrent):
    refused("the prompt is empty", model.generate, "")
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
