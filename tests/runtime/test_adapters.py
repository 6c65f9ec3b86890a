"""Adapters beside a base: each session has one, or none, alone and in company."""

from __future__ import annotations

import json

import numpy as np
import pytest
from generating import PROMPT, refused

from llmc.runtime import load
from llmc.runtime.manifest import seal

NAMES = (None, "french", "german")
STEP = {"input_ids": [PROMPT], "logits_to_keep": [0, 3]}
NEXT = {"input_ids": [[9]], "logits_to_keep": [0]}


@pytest.fixture(scope="module")
def model(adapted):
    with load(adapted, threads=2) as model:
        yield model


def alone(model, name, *steps):
    with model.session(adapter=name) as session:
        return [session.run(step)["logits"] for step in steps]


def test_none_is_the_base_and_each_is_another(model, words):
    assert model.adapters == ("french", "german")
    with load(words, threads=1) as base, base.session() as session:
        assert base.adapters == ()
        expected = session.run(STEP)["logits"]
    found = [alone(model, name, STEP)[0] for name in NAMES]
    np.testing.assert_array_equal(found[0], expected)
    assert not np.array_equal(found[1], found[0])
    assert not np.array_equal(found[2], found[1])


def test_sessions_of_different_adapters_share_a_run(model):
    order = ("german", None, "french", "german")
    sessions = [model.session(adapter=name) for name in order]
    runs = [model.run_sessions([(session, step) for session in sessions]) for step in (STEP, NEXT)]
    for place, name in enumerate(order):
        for found, wanted in zip(runs, alone(model, name, STEP, NEXT), strict=True):
            np.testing.assert_array_equal(found[place]["logits"], wanted)


def test_the_input_says_of_rows_what_a_session_says_of_all(model):
    given = {**STEP, "adapter": [[2] * len(PROMPT)]}
    np.testing.assert_array_equal(alone(model, None, given)[0], alone(model, "german", STEP)[0])
    refused("adapter", lambda: alone(model, None, {**STEP, "adapter": [[3] * len(PROMPT)]}))
    pair = [(model.session(), STEP), (model.session(), given)]
    refused("session 0: input adapter is missing, others have it", model.run_sessions, pair)
    refused("session 1: input adapter is missing, others have it", model.run_sessions, pair[::-1])


def test_texts(model):
    plain = {name: model.generate(PROMPT, adapter=name).ids for name in NAMES}
    assert len({tuple(ids) for ids in plain.values()}) == 3
    each = [{"adapter": name} for name in NAMES]
    assert [made.ids for made in model.generate([PROMPT] * 3, each=each, max_batch=2)] == list(plain.values())
    for name in NAMES:
        with model.session(adapter=name) as session:
            assert model.generate(PROMPT, session=session).ids == plain[name]
            assert model.generate(PROMPT, session=session, adapter="french").ids == plain["french"]
            assert session.adapter == "french"
    assert model.generate(PROMPT).ids == plain[None]  # whatever the kept session had
    found = {name: model.search(PROMPT, num_beams=3, adapter=name)[0].ids for name in NAMES}
    assert len({tuple(ids) for ids in found.values()}) == 3


def test_what_an_adapter_made_is_not_kept_for_another(model):
    with model.session(adapter="french") as session:
        first = model.generate(PROMPT, session=session)
        session.choose_adapter("french")
        assert model.generate(PROMPT, session=session).usage.cached_tokens == len(PROMPT) - 1
        session.choose_adapter(None)
        assert (session.adapter, session.lengths) == (None, {"past": 0})
        assert model.generate(PROMPT, session=session).usage.cached_tokens == 0
        session.choose_adapter("french")
        assert model.generate(PROMPT, session=session).ids == first.ids


def test_forks_and_files_have_the_adapter(model, tmp_path):
    with model.session(adapter="german") as session:
        session.run(STEP)
        session.save(tmp_path / "one")
        expected = alone(model, "german", STEP, NEXT)[1]
        with session.fork() as other, model.session(adapter="french") as third:
            third.load(tmp_path / "one")
            for one in (other, third):
                assert one.adapter == "german"
                np.testing.assert_array_equal(one.run(NEXT)["logits"], expected)


def test_no_such_adapter(model, words):
    for call in (model.session, lambda adapter: model.generate(PROMPT, adapter=adapter)):
        refused("the model has no adapter 'frensh'", call, adapter="frensh")
        refused("did you mean french? it has french, german", call, adapter="frensh")
        refused("adapter is '', must be a name", call, adapter="")
        refused("adapter is 3, must be a name", call, adapter=3)
    refused("prompt 1: the model has no adapter", model.generate, [PROMPT] * 2, each=[{}, {"adapter": "x"}])
    with model.session(adapter="french") as session:
        session.run(STEP)
        refused("no adapter 'x'", session.choose_adapter, "x")
        assert (session.adapter, session.lengths) == ("french", {"past": 4})
    with load(words, threads=1) as base:
        refused("the model has no adapter 'french'", base.session, adapter="french")
        refused("it has none", base.session, adapter="french")


def test_a_manifest_of_other_adapters_is_refused(adapted):
    text = (adapted / "manifest.json").read_text()
    (adapted / "manifest.json").write_text(json.dumps(seal({**json.loads(text), "adapters": ["french"]})))
    try:
        refused("field adapters does not describe module.so", load, adapted)
    finally:
        (adapted / "manifest.json").write_text(text)
