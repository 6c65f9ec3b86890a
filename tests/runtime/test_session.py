"""Sessions in Python on the artifact `tally`: states, functions, bounds, threads, cancelling, closing."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime import StateInfo, Threads, load

IDS = np.array([[1, 2, 3], [4, 5, 6]])
LONG = 20_000  # rounds of a millisecond: never waited for to the end


@pytest.fixture(scope="module")
def model(tally):
    with load(tally, threads=2) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session() as session:
        yield session


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def refused(message, function, *arguments, **named):
    with pytest.raises(LlmcError) as caught:
        function(*arguments, **named)
    assert message in str(caught.value), str(caught.value)


def sequence(seed, batch, calls=6):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 10, (batch, rng.integers(1, 7))) for _ in range(calls)]


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
    refused("no input given tells the size of batch", session.call, "peek")
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


def running(session, **options):
    """A thread that runs for long, and what it raises; returns when the run has begun."""
    raised = []

    def work():
        try:
            session.run({"ids": IDS, "rounds": np.array(LONG)}, **options)
        except LlmcError as error:
            if "in use" in str(error):  # the other thread looked at it just then
                work()
            else:
                raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    busy = 0  # looks in a row: asking for the outputs' shapes, before the run, keeps the session for a moment too
    while thread.is_alive() and busy < 30:
        try:
            _ = session.lengths
            busy = 0
        except LlmcError:  # it is in use
            busy += 1
        time.sleep(0.001)
    return thread, raised


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
