"""Sessions of generated texts: what is kept, gone back to, forked, saved, and used by two."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
from generating import PROMPT, greedy, refused

from llmc import LlmcError


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
        refused("it is not a file", session.save, tmp_path)
        for path in (3, None, "a\0b"):
            refused("not the path of a file", session.save, path)
        assert model.generate(PROMPT, session=session).usage.cached_tokens == len(PROMPT) - 1
        assert model.generate(PROMPT, session=session).ids == before.ids


def test_a_session_takes_no_devices_place(model, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with model.session() as session:
        refused("it is not a file", session.save, pipe)
        refused("it is not a file", session.load, pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


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
