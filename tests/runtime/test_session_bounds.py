"""What ends a call of a session early or refuses it: cancelling, deadlines, bounds of memory."""

from __future__ import annotations

import time

import numpy as np
import pytest
from session_calls import IDS, LONG, refused, running, same

from llmc.runtime import load


@pytest.fixture(scope="module")
def model(tally):
    with load(tally, threads=2) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session() as session:
        yield session


def test_busy_and_cancel(session, build):
    expected = build.tally_model(2)
    same(session(ids=IDS), expected.step(IDS))
    thread, raised = running(session)
    for call in (
        lambda: session(ids=IDS),
        session.reset,
        lambda: session.resize(past=0),
        lambda: session.lengths,
    ):
        refused("the session is in use by another thread\n", call)
    while thread.is_alive():
        session.cancel()
        time.sleep(0.001)
    thread.join()
    assert raised
    assert "the run was cancelled" in raised[0]
    session.cancel()  # nothing runs: nothing happens
    same(session(ids=IDS), expected.step(IDS))
    same(session.call("peek"), expected.peek())


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_deadline(model, build, threads):
    expected = build.tally_model(2)
    with model.session(threads) as session:
        same(session(ids=IDS), expected.step(IDS))
        call = {"ids": IDS, "rounds": np.array(LONG)}
        refused("the run took longer than its timeout of 0.02 s", session.run, call, timeout=0.02)
        same(session.run({"ids": IDS}, timeout=100), expected.step(IDS))
        refused("timeout is -1", session.run, {"ids": IDS}, timeout=-1)
        refused("timeout is 0", session.run, {"ids": IDS}, timeout=0)
        refused("timeout is '1'", session.run, {"ids": IDS}, timeout="1")
        refused("timeout is True, must be seconds", session.run, {"ids": IDS}, timeout=True)
        refused("the model has no function ['step']", lambda: session.run({"ids": IDS}, function=["step"]))


def test_deadline_while_others_have_the_threads(model, build):
    """Waiting for the model's threads counts too, and can be cancelled."""
    with model.session() as first, model.session() as second:
        thread, _ = running(first)
        refused("the run took longer than its timeout", second.run, {"ids": IDS}, timeout=0.02)
        first.cancel()
        thread.join()
        same(second(ids=IDS), build.tally_model(2).step(IDS))


def test_memory_bound_of_a_session(model, build):
    ids = np.ones((4, 8), int)
    needed = model.memory_needed("step", batch=4, seq=8)
    with model.session(max_memory=needed.arena + needed.states) as session:
        expected = build.tally_model(4)
        same(session(ids=ids), expected.step(ids))
        assert session.memory_bytes == needed.arena + needed.states
        refused("the session would hold", session, ids=ids)
        refused("max_memory is", session, ids=ids)
        same(session.call("peek"), expected.peek())  # it stays usable
        session.reset()
        same(session(ids=IDS), build.tally_model(2).step(IDS))
    with model.session(max_memory=needed.arena + needed.states - 64) as session:
        refused("the session would hold", session, ids=ids)
        same(session(ids=ids[:1]), build.tally_model(1).step(ids[:1]))


def test_memory_bound_of_a_model(tally, build):
    with load(tally, threads=1) as free:
        needed = free.memory_needed("step", batch=2, seq=3)
    with load(tally, threads=1, max_memory=2 * (needed.arena + needed.states)) as model:
        a, b, c = (model.session() for _ in range(3))
        same(a(ids=IDS), build.tally_model(2).step(IDS))
        same(b(ids=IDS), build.tally_model(2).step(IDS))
        refused("the sessions of the model would hold", c, ids=IDS)
        a.close()
        same(c(ids=IDS), build.tally_model(2).step(IDS))


def test_memory_needed(model):
    """The states' part is exact: what a session holds that grew at once."""
    for past, seq in ((0, 1), (5, 3), (32, 8)):
        needed = model.memory_needed("step", batch=2, seq=seq, past=past)
        with model.session() as session:
            session.resize(past=past, batch=2)
            session(ids=np.ones((2, seq), int))
            assert session.memory_bytes >= needed.states
        assert needed.weights == 64
    assert model.memory_needed("square").states == 0
    refused("past is 40 in the session and would be 43", model.memory_needed, "step", past=40, seq=3)
    refused("batch is 9, must be within 1..4", model.memory_needed, "step", batch=9)
    refused("the model has no function 'steps'", model.memory_needed, "steps")
    refused("the model has no dim 'width'", model.memory_needed, width=3)


@pytest.mark.parametrize("bound", [0, -1, 2.0, True, 2**63])
def test_bad_memory_bounds(model, bound):
    refused("max_memory is", model.session, max_memory=bound)
    refused("max_memory is", load, model.path, max_memory=bound)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, True])
def test_bad_threads(model, threads):
    refused("threads is", model.session, threads)
