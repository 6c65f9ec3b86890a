"""Several sessions in one run, on the artifact `words`: what each gets alone, and what is refused."""

from __future__ import annotations

import threading
from contextlib import suppress

import numpy as np
import pytest
from generating import refused

from llmc import LlmcError
from llmc.runtime import generation, load

TEXT = [(7 * i) % 40 + 1 for i in range(60)]
PLANS = ([3, 1, 1, 2, 1], [1, 1, 1], [7, 2], [1], [5, 1, 1, 1, 1, 3])  # tokens of each call of a session


def given(text, begin, count):
    return {"input_ids": [text[begin : begin + count]], "logits_to_keep": [0, count - 1]}


def alone(model, text, plan):
    """The logits of each call."""
    with model.session() as session:
        begins = np.cumsum([0, *plan])
        return [session.run(given(text, b, n))["logits"] for b, n in zip(begins, plan, strict=False)]


@pytest.fixture(scope="module", params=["words", "folded"])
def both(request):
    with load(request.getfixturevalue(request.param), threads=3) as model:
        yield model


def test_each_gets_what_it_gets_alone(both):
    texts = [TEXT[i : i + 20] for i in range(len(PLANS))]
    wanted = [alone(both, text, plan) for text, plan in zip(texts, PLANS, strict=True)]
    rng = np.random.default_rng(0)
    sessions, done = [both.session() for _ in PLANS], [0] * len(PLANS)
    while going := [i for i, plan in enumerate(PLANS) if done[i] < len(plan)]:
        chosen = rng.permutation(going)[: rng.integers(1, 5)]
        calls = [(sessions[i], given(texts[i], sum(PLANS[i][: done[i]]), PLANS[i][done[i]])) for i in chosen]
        for i, found in zip(chosen, both.run_sessions(calls), strict=True):
            np.testing.assert_array_equal(found["logits"], wanted[i][done[i]])
            done[i] += 1


def test_rewound_and_forked_on_the_way(model):
    first, other = model.session(), model.session()
    model.run_sessions([(first, given(TEXT, 0, 9)), (other, given(TEXT, 20, 4))])
    third = first.fork()
    first.rewind(5)
    found = model.run_sessions(
        [(third, given(TEXT, 9, 3)), (first, given(TEXT, 30, 3)), (other, given(TEXT, 24, 1))]
    )
    wanted = [TEXT[:12], TEXT[:5] + TEXT[30:33], TEXT[20:25]]
    for one, text in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one["logits"][0, -1], alone(model, text, [len(text)])[0][0, -1])


def test_no_call_is_fine(model):
    assert model.run_sessions([]) == []


def lengths(sessions):
    return [session.lengths["past"] for session in sessions]


def test_mistakes_change_nothing(model, words):
    a, b = model.session(), model.session()
    model.run_sessions([(a, given(TEXT, 0, 3)), (b, given(TEXT, 0, 5))])
    good = (a, given(TEXT, 3, 1))
    for calls in (5, [(a,)], [(a, 5)], {a: {}}):
        refused("not a session and its inputs", model.run_sessions, calls)
    closed = model.session()
    closed.close()
    with load(words, threads=1) as another:
        refused("not one of this model", model.run_sessions, [good, (another.session(), given(TEXT, 0, 1))])
    cases = {
        "session 1: it is the same as session 0": [good, good],
        "the session is closed": [good, (closed, given(TEXT, 0, 1))],
        "session 1: input logits_to_keep is missing": [good, (b, {"input_ids": [[1]]})],
        "session 1: input input_ids has shape [1]": [good, (b, {"input_ids": [1], "logits_to_keep": [0]})],
        "the model has no input 'ids'": [good, (b, {"ids": [[1]]})],
        "seq is 17 for all sessions together": [(a, given(TEXT, 0, 9)), (b, given(TEXT, 0, 8))],
        "session 1: seq is 0, must be within 1..16": [
            good,
            (b, {"input_ids": np.zeros((1, 0), int), "logits_to_keep": [0]}),
        ],
        "input_ids[0,2] is 99": [good, (b, {"input_ids": [[1, 99]], "logits_to_keep": [0]})],
    }
    for message, calls in cases.items():
        refused(message, model.run_sessions, calls)
        assert lengths([a, b]) == [3, 5]
    refused("no function 'steps'", model.run_sessions, [good], "steps")
    refused("timeout is -1", model.run_sessions, [good], timeout=-1)
    b.resize(past=62)
    refused(
        "session 1: past is 62 in the session and would be 65",
        model.run_sessions,
        [good, (b, given(TEXT, 0, 3))],
    )
    assert lengths([a, b]) == [3, 62]


class Holding:
    """Stands where a grammar does: the session is in use until somebody else has tried to have it."""

    error = None

    def __init__(self):
        self.begun, self.tried = threading.Event(), threading.Event()

    def allow(self, *_):
        self.begun.set()
        return 0 if self.tried.wait(60) else -1


def test_a_session_that_another_thread_uses(model, monkeypatch):
    """All of them are as they were."""
    a, b, holding = model.session(), model.session(threads=1), Holding()
    monkeypatch.setattr(generation, "constraint_of", lambda *_: holding)

    def use():
        with suppress(LlmcError):  # no token is allowed
            model.generate(TEXT[:5], session=b, max_new_tokens=1)

    thread = threading.Thread(target=use)
    thread.start()
    assert holding.begun.wait(60)
    calls = [(a, given(TEXT, 0, 1)), (b, given(TEXT, 0, 1))]
    refused("session 1: the session is in use by another thread", model.run_sessions, calls)
    holding.tried.set()
    thread.join()
    assert lengths([a]) == [0]
    assert len(model.run_sessions(calls)) == 2


def test_cancelling_one_leaves_all_as_they_were(model):
    a, b = model.session(), model.session()
    told, over = [], threading.Event()

    def work():
        while not over.is_set():
            a.reset()
            b.reset()
            try:
                model.run_sessions([(a, given(TEXT, 0, 8)), (b, given(TEXT, 0, 8))])
            except LlmcError as error:
                told.append(str(error))
                return

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(10_000_000):
        b.cancel()
        if not thread.is_alive():
            break
    over.set()
    thread.join()
    assert told[0].startswith("the run was cancelled")
    assert lengths([a, b]) == [0, 0]


def test_no_time_left(model):
    a, b = model.session(), model.session()
    calls = [(a, given(TEXT, 0, 8)), (b, given(TEXT, 0, 8))]
    refused("the run took longer than its timeout of 1e-09 s", model.run_sessions, calls, timeout=1e-9)
    assert lengths([a, b]) == [0, 0]


def test_a_function_for_one_session(lonely):
    with load(lonely, threads=1) as model:
        assert model.functions["step"].single == "it was made for one"
        refused("it was made for one", model.run_sessions, [(model.session(), given(TEXT, 0, 1))])
        assert [t.ids for t in model.generate([[5, 6], [7]])] == [
            model.generate(p).ids for p in ([5, 6], [7])
        ]


def test_memory_is_bounded_for_each(words):
    with load(words, threads=1) as model:
        a, b = model.session(), model.session(max_memory=400)
        model.run_sessions([(a, given(TEXT, 0, 8)), (b, given(TEXT, 0, 8))])
        b.resize(past=30)
        refused("max_memory is 400", model.run_sessions, [(a, given(TEXT, 0, 1)), (b, given(TEXT, 0, 15))])
        assert lengths([a, b]) == [8, 30]


# --- texts


PROMPTS = [[5, 6, 7, 8], [3], TEXT[:37], [9, 9], [11], [2, 4, 6], TEXT[3:20], [1], [20, 21]]


@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_many_texts_are_what_each_is_alone(both, most):
    for options in (
        {},
        {"do_sample": True, "seed": 3, "temperature": 2.0},
        {"logprobs": True, "top_logprobs": 2},
    ):
        wanted = [both.generate(prompt, max_new_tokens=15, **options) for prompt in PROMPTS]
        found = both.generate(PROMPTS, max_new_tokens=15, max_batch=most, **options)
        for a, b in zip(found, wanted, strict=True):
            assert (a.tokens, a.text, a.finish, a.prompt, a.seed) == (
                b.tokens,
                b.text,
                b.finish,
                b.prompt,
                b.seed,
            )


def test_fewer_runs_than_texts_alone(model):
    alone = [model.generate(prompt, max_new_tokens=8, eos_token_id=[]) for prompt in PROMPTS]
    found = model.generate(PROMPTS, max_new_tokens=8, eos_token_id=[], max_batch=9)
    assert [t.ids for t in found] == [t.ids for t in alone]
    assert max(t.usage.runs for t in found) <= 16  # 9 next tokens leave 7 of a run's 16 rows to prompts


def test_options_of_each(model):
    each = [
        {"max_new_tokens": i + 1, "stop": ["a"] if i % 2 else None, "seed": i} for i in range(len(PROMPTS))
    ]
    shared = {"do_sample": True, "temperature": 3.0, "prompt_lookup_num_tokens": 2}
    found = model.generate(PROMPTS, each=each, **shared)
    wanted = [model.generate(p, **{**shared, **own}) for p, own in zip(PROMPTS, each, strict=True)]
    assert [(t.text, t.ids, t.finish) for t in found] == [(t.text, t.ids, t.finish) for t in wanted]


def test_texts_of_texts(model):
    found = model.generate(["abc", "to be or not"], max_new_tokens=5)
    assert [t.text for t in found] == [
        model.generate(t, max_new_tokens=5).text for t in ("abc", "to be or not")
    ]


def test_refused_lists(model):
    refused("prompt 1: the prompt has 64 tokens", model.generate, [[1], [1] * 64])
    refused("prompt 1: token 0 of the prompt is 41", model.generate, [[1], [41]])
    refused("prompt 1: not a text or a list of tokens", model.generate, [[1], 5])
    refused("prompt 0: temperature is 0", model.generate, [[1]], do_sample=True, temperature=0)
    refused("max_batch is 0", model.generate, [[1]], max_batch=0)
    refused("each has options of 1 prompts", model.generate, [[1], [2]], each=[{}])
    refused("each has options of several prompts", model.generate, [1], each=[{}])
    for each in ([None, {}], ["ab", {}], [{1: 2}, {}], iter([{}, {}]), 5):
        refused("must be a list of options by name", model.generate, [[1], [2]], each=each)
        refused("must be a list of options by name", model.generate, [[1], [2]], each=each, num_beams=2)
    refused("prompt 1: num_beams is 0", model.generate, [[1], [2]], each=[{}, {"num_beams": 0}], num_beams=2)
    refused(
        "prompt 0: stop and stop_strings are the same", model.generate, [[1], [2]], stop="a", stop_strings="b"
    )
    refused("session each", model.generate, [[1], [2]], session=model.session())
    refused("took longer than its timeout", model.generate, [[1], [2]], timeout=1e-9)
