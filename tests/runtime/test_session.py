"""Sessions in Python on the artifact `tally`: states, functions, closing."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from session_calls import IDS, refused, running, same, sequence

from llmc.runtime import StateInfo, Threads, load


@pytest.fixture(scope="module")
def model(tally):
    with load(tally, threads=2) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session() as session:
        yield session


def test_signature(model):
    assert list(model.functions) == ["step", "peek", "square"]
    assert model.functions["step"].states == {"total": "replaced", "seen": "appended", "trail": "replaced"}
    assert model.functions["peek"].states == {"total": "read", "trail": "read"}
    assert model.functions["square"].states == {}
    assert model.states["seen"] == StateInfo("i64", ("past", "batch"), 0)
    assert model.states["total"] == StateInfo("f32", ("batch", 3), None)
    assert (model.lengths, model.inputs is model.functions["step"].inputs) == (("past",), True)
    assert "peek(scale: f32[]) -> (scaled: f32[batch, 3]" in repr(model)
    assert str(model.states["trail"]) == "f32[batch, past]"


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_sequence(model, build, threads, batch):
    expected = build.tally_model(batch)
    with model.session(threads) as session:
        assert session.threads == (threads or 2)
        for number, ids in enumerate(sequence(batch, batch)):
            same(session(ids=ids), expected.step(ids))
            same(session.call("peek", scale=np.float32(number)), expected.peek(number))
            same(session.call("square", ids=ids[:1]), {"squares": ids[:1] ** 2})
            assert session.lengths == {"past": expected.seen.shape[1]}


def test_expressions_in_inputs(session, build):
    expected, mask = build.tally_model(2), np.array([[1, 0, 1], [1, 1, 0]])
    same(session(ids=IDS, mask=mask), expected.step(IDS, mask))
    longer = np.concatenate([mask, mask[:, :1]], 1)
    same(session(ids=IDS[:, :1], mask=longer), expected.step(IDS[:, :1], longer))
    refused("axis 1 of input mask has size 3, must have 7", session, ids=IDS, mask=mask)
    refused("axis 1 of input mask has size 8, must have 7", session, ids=IDS, mask=np.ones((2, 8), int))


def test_reset_begins_with_zeros(session, build):
    for _ in range(3):
        expected = build.tally_model(2)
        same(session(ids=IDS), expected.step(IDS))
        same(session(ids=IDS[:, 1:]), expected.step(IDS[:, 1:]))
        held = session.memory_bytes
        session.reset()
        assert session.lengths == {"past": 0}
        assert session.memory_bytes == held > 0
    same(session(ids=IDS[:1]), build.tally_model(1).step(IDS[:1]))  # another batch, in memory that was used


def test_a_refused_call_changes_nothing(session, build):
    expected = build.tally_model(2)
    same(session(ids=IDS), expected.step(IDS))
    refused("batch is 1 in axis 0 of input ids, but 2 in the session", session, ids=IDS[:1])
    refused("input ids is missing", session)
    refused("ids[0,0] is 11, must be within 0..9", session, ids=IDS + 10)
    refused("the model has no function 'stp'\n  ", session.call, "stp", ids=IDS)
    refused("did you mean step? it has step, peek, square", session.call, "stp", ids=IDS)
    same(session(ids=IDS), expected.step(IDS))


def test_bound_of_a_length(session, build):
    expected = build.tally_model(2)
    ids = np.arange(16).reshape(2, 8) % 10
    for _ in range(5):
        same(session(ids=ids), expected.step(ids))
    refused(
        "past is 40 in the session and would be 41 after this call, at most 40 is possible",
        session,
        ids=IDS[:, :1],
    )
    same(session.call("peek"), expected.peek())


def test_a_state_is_needed_first(session):
    refused("function peek reads state total, which function step sets", session.call, "peek")
    same(session.call("square", ids=IDS), {"squares": IDS**2})


def test_a_function_with_states_needs_a_session(model):
    refused("function step keeps state total from call to call, so it needs a session", model, ids=IDS)
    refused("with model.session() as session", model.run, {"ids": IDS})


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_belongs_to_this_process_is_not_copied(model, session, copied):
    refused("a model cannot be pickled or copied", copied, model)
    refused("llmc.load(path)", copied, model)
    refused("a session cannot be pickled or copied", copied, session)
    refused("threads cannot be pickled or copied", copied, Threads(2))


def test_resize(session, build):
    expected, ids = build.tally_model(2), np.arange(14).reshape(2, 7) % 10
    session(ids=ids)
    session.resize(past=4)
    expected.step(ids)
    expected.seen = expected.seen[:, :4]
    assert session.lengths == {"past": 4}
    same(session.call("peek"), expected.peek())
    same(session(ids=IDS), expected.step(IDS))
    session.resize(past=9)
    expected.seen = np.concatenate([expected.seen, np.zeros((2, 2), int)], 1)
    same(session.call("peek"), expected.peek())
    same(session(ids=IDS), expected.step(IDS))
    session.resize(past=0)
    expected.seen = expected.seen[:, :0]
    same(session(ids=IDS), expected.step(IDS))
    session.reset()
    session.resize(past=3, batch=2)
    expected = build.tally_model(2)
    expected.seen = np.zeros((2, 3), int)
    same(session(ids=IDS), expected.step(IDS))


def test_resize_refuses(session):
    refused("state seen cannot have a length: its other sizes are not known yet", session.resize, past=3)
    session(ids=IDS)
    refused("past is 41, must be within 0..40", session.resize, past=41)
    refused("batch is 3, but 2 in the session", session.resize, batch=3)
    refused("the model has no size of states 'seq'", session.resize, seq=3)
    refused("past is -1, must be an int", session.resize, past=-1)
    for huge in (2**62, 2**63 - 1, 2**63, 2**200):
        refused(f"past is {huge}, must be within 0..40", session.resize, past=huge)
        refused(f"past is {huge}, must be within 0..40", session.model.memory_needed, past=huge)
    assert session.lengths == {"past": 3}


def test_out(session, build):
    sums = np.empty((2, 3), np.float32)
    assert session(ids=IDS, out={"sums": sums})["sums"] is sums
    same({"sums": sums}, {"sums": build.tally_model(2).step(IDS)["sums"]})


@pytest.mark.parametrize("kind", ["the model's", "own", "shared"])
def test_sessions_at_once(model, build, kind):
    """Four threads, a session each, often: the bits are those of each sequence alone."""
    shared = Threads(3)
    threads = {"the model's": None, "own": 1, "shared": shared}[kind]

    def work(seed):
        with model.session(threads) as session:
            for turn in range(10):
                expected = build.tally_model(1 + seed)
                for ids in sequence(100 * seed + turn, 1 + seed):
                    same(session(ids=ids), expected.step(ids))
                same(session.call("peek"), expected.peek())
                session.reset()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_closing(tally, build):
    model = load(tally, threads=1)
    session = model.session()
    model.close()
    same(session(ids=IDS), build.tally_model(2).step(IDS))  # it has what it needs
    refused("the model is closed", model.session)
    session.close()
    session.close()
    assert "closed" in repr(session)
    for use in (lambda: session(ids=IDS), session.reset, session.cancel, lambda: session.memory_bytes):
        refused("the session is closed", use)


def test_close_while_running(model):
    session = model.session(1)
    thread, raised = running(session, timeout=0.2)
    session.close()
    refused("the session is closed", session, ids=IDS)
    thread.join()
    assert "timeout of 0.2 s" in raised[0]


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_fork(model, build):
    """A child of fork() gets a sentence from its parent's session, and may close it."""
    session = model.session(2)
    session(ids=IDS)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            refused("opened by the parent process", session, ids=IDS)
            refused("opened by the parent process", model.session)
            session.close()
            with load(model.path, threads=1) as own, own.session() as other:
                same(other(ids=IDS), build.tally_model(2).step(IDS))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert session.lengths == {"past": 3}


def test_selftest(tally):
    with load(tally, threads=1) as model:
        result = model.selftest()
    assert (result.cases, result.passed, result.largest_error) == (2, True, 0.0)


def test_a_stateless_model_has_sessions_too(tiny, expected):
    with load(tiny, threads=1) as model, model.session(2) as session:
        same(session(input_ids=IDS), expected(IDS))
        same(session.call("forward", input_ids=IDS), expected(IDS))
        assert session.lengths == {}
        refused("the model has no size of states 'batch'\n", session.resize, batch=2)


def test_example(tally, tmp_path):
    """examples/c/session.c, compiled strictly; docs/embedding.md shows what it prints."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    root = Path(__file__).parents[2]
    program = tmp_path / "session"
    strict = ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{tally}"]
    linked = [f"-L{tally}", "-l:module.so", f"-Wl,-rpath,{tally}", "-o", str(program)]
    subprocess.run([*strict, str(root / "examples" / "c" / "session.c"), *linked], check=True)

    def start(*arguments):
        return subprocess.run([program, tally, *arguments], capture_output=True, text=True)

    document = (root / "docs" / "embedding.md").read_text()
    assert start("step", "3", "1", "4").stdout in document
    assert start("step", "3", "1", "4").stdout.endswith("8\n  past 3\n")
    assert "error: ids[0,0] is 11, must be within 0..9\n" in start("step", "3", "11").stderr
    assert "error: the model has no function 'stop'\n" in start("stop", "3").stderr
