"""States in blocks: what forks share, what of it a side that writes copies, and what counts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from generating import refused

from llmc.runtime import load

TOKEN = 4096  # bytes that a token of `wide` takes
BLOCK = 4 * TOKEN
PLENTY = [5 + i * i % 30 for i in range(400)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory, build):
    """`words` of up to 400 tokens, each of which takes a quarter of a block and says of all before it."""
    folder = tmp_path_factory.mktemp("artifact") / "wide.llmc"
    return build.write_long(folder, wide=TOKEN // 8)


@pytest.fixture
def model(wide):
    with load(wide, threads=1) as model:
        yield model


def feed(session, tokens):
    """The logits of the last of `tokens`, run by 16."""
    for i in range(0, len(tokens), 16):
        part = tokens[i : i + 16]
        last = session.run({"input_ids": [part], "logits_to_keep": [len(part) - 1]})["logits"][0, 0]
    return last


def state_files():
    """Inode -> bytes of the memory that all models of this process keep states in blocks in."""
    found = {}
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            if "llmc states" in os.readlink(f"/proc/self/fd/{descriptor}"):
                file = os.fstat(int(descriptor))
                found[file.st_ino] = file.st_blocks * 512
    return found


@pytest.fixture
def file_bytes():
    """Of the models that are opened after it: what others in this process left to the garbage collector is theirs."""
    others = state_files()
    return lambda: sum(size for inode, size in state_files().items() if inode not in others)


def states(session):
    """(bytes held for states, those of them that others hold too)"""
    return session._report().state_bytes, session.shared_bytes


def test_a_fork_copies_the_blocks_that_it_writes(file_bytes, model):
    with model.session() as session:
        feed(session, PLENTY[:201])
        assert states(session) == (51 * BLOCK, 0)
        assert file_bytes() == 51 * BLOCK
        with session.fork() as other:
            assert states(session) == states(other) == (51 * BLOCK, 51 * BLOCK)
            assert file_bytes() == 51 * BLOCK
            there = feed(other, PLENTY[:3])
            assert states(other) == (52 * BLOCK, 50 * BLOCK)  # one that both began, and a new one
            assert states(session) == (51 * BLOCK, 50 * BLOCK)
            assert file_bytes() == 53 * BLOCK
            here = feed(session, PLENTY[201:211])
            assert states(session) == (53 * BLOCK, 50 * BLOCK)
            assert file_bytes() == 55 * BLOCK
        assert states(session) == (53 * BLOCK, 0)
        assert file_bytes() == 53 * BLOCK
        session.reset()
        np.testing.assert_array_equal(feed(session, PLENTY[:211]), here)
        session.reset()
        np.testing.assert_array_equal(feed(session, PLENTY[:201] + PLENTY[:3]), there)
    assert file_bytes() == 0


def test_blocks_that_are_rewound_are_not_shared(model):
    with model.session() as session:
        feed(session, PLENTY[:200])
        session.rewind(21)
        with session.fork() as other:
            assert states(other) == (6 * BLOCK, 6 * BLOCK)
            feed(other, PLENTY[21:24])
            assert states(other) == (7 * BLOCK, 5 * BLOCK)
            assert states(session) == (51 * BLOCK, 5 * BLOCK)
            feed(session, PLENTY[21:100])
            assert states(session) == (51 * BLOCK, 5 * BLOCK)
            np.testing.assert_array_equal(feed(session, [7]), feed_alone(model, [*PLENTY[:100], 7]))
            np.testing.assert_array_equal(feed(other, [7]), feed_alone(model, [*PLENTY[:24], 7]))


def feed_alone(model, tokens):
    with model.session() as session:
        return feed(session, tokens)


@pytest.mark.parametrize("seed", range(4))
def test_forks_of_forks_at_random(file_bytes, model, tmp_path, seed):
    """Whatever is forked, cut, saved, run together and closed in whatever order: as each alone."""
    draw = random.Random(seed)
    sessions = [(model.session(), [])]
    for _ in range(120):
        i = draw.randrange(len(sessions))
        session, held = sessions[i]
        match draw.randrange(7):
            case 0 | 1 if len(sessions) < 12 and held:
                sessions.append((session.fork(), list(held)))
            case 2 if len(sessions) > 1:
                session.close()
                del sessions[i]
            case 3 if held:
                del held[draw.randrange(len(held)) :]
                session.rewind(len(held))
            case 4 if held:
                other, theirs = sessions[draw.randrange(len(sessions))]
                session.save(tmp_path / "s")
                other.load(tmp_path / "s")
                theirs[:] = held
            case 5:
                some = [one for one in sessions if len(one[1]) < 380][:8]
                calls = [
                    (s, {"input_ids": [[5 + k]], "logits_to_keep": [0]}) for k, (s, _) in enumerate(some)
                ]
                for k, made in enumerate(model.run_sessions(calls)):
                    some[k][1].append(5 + k)
                    np.testing.assert_array_equal(made["logits"][0, 0], feed_alone(model, some[k][1]))
            case _ if len(held) < 300:
                more = [draw.randrange(5, 40) for _ in range(draw.randrange(1, 60))]
                held += more
                np.testing.assert_array_equal(feed(session, more), feed_alone(model, held))
        assert len(sessions) > 1 or not sessions[0][0].shared_bytes
    for session, _ in sessions:
        session.close()
    assert file_bytes() == 0


def test_what_is_shared_counts_once_for_the_model_and_in_full_for_each_session(wide):
    """A write that there is no memory for is refused, and leaves all as they were."""
    with load(wide, threads=1) as free, free.session() as session:
        feed(session, PLENTY[:201])
        one = session.memory_bytes
    arena = one - 51 * BLOCK
    with load(wide, threads=1, max_memory=one + 9 * arena + 2 * BLOCK) as model, model.session() as session:
        feed(session, PLENTY[:201])
        forks = [session.fork() for _ in range(8)]
        refused("the session would hold", session.fork, max_memory=50 * BLOCK)
        for fork in forks[:2]:
            feed(fork, [7])  # each copies the block that all began
        for fork in (session, *forks[2:]):
            refused("the sessions of the model would hold", feed, fork, [7])
            assert states(fork) == (51 * BLOCK, 51 * BLOCK)
        for fork in forks[:2]:
            np.testing.assert_array_equal(feed(fork, [8]), feed_alone_in(wide, [*PLENTY[:201], 7, 8]))
            fork.close()
        np.testing.assert_array_equal(feed(session, [9]), feed_alone_in(wide, [*PLENTY[:201], 9]))
        for fork in forks[2:]:
            fork.close()


def feed_alone_in(folder, tokens):
    with load(folder, threads=1) as model:
        return feed_alone(model, tokens)


def test_beams_share_what_they_have_in_common(model, build, tmp_path):
    """Beam search forks at each token: the same texts as where states lie in one piece."""
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 24, "eos_token_id": []}
    found = model.search(PLENTY[:90], **options)
    with load(build.write_long(tmp_path / "thin.llmc"), threads=1) as thin:
        assert [text.ids for text in found] == [text.ids for text in thin.search(PLENTY[:90], **options)]


WITHOUT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
from llmc.runtime import load
with load(sys.argv[1], threads=1) as model, model.session() as session:
    run = lambda session, tokens: session.run({"input_ids": [tokens], "logits_to_keep": [0]})["logits"].sum()
    for i in range(6): run(session, list(range(5, 21)))
    whole = session._report().state_bytes
    other = session.fork()
    print(session.shared_bytes == other.shared_bytes == whole)
    a, b = run(other, [7]), run(session, [7])
    print(a == b, session.shared_bytes, other.shared_bytes)
"""


def test_without_such_a_file_states_are_copied_as_a_whole(wide):
    """A bound on the size of files would end the process: there memory is in one piece."""
    made = subprocess.run([sys.executable, "-c", WITHOUT, wide], capture_output=True, text=True, timeout=60)
    assert made.stdout == "True\nTrue 0 0\n", made.stdout + made.stderr


def test_a_window_leaves_shared_blocks_behind(file_bytes, build, tmp_path):
    """Rows that leave a window move the others up: of a fork into memory of its own."""
    folder = build.write_long(tmp_path / "w.llmc", "-DWORDS_WINDOW=64", wide=TOKEN // 8)
    with load(folder, threads=1) as model, model.session() as session:
        feed(session, PLENTY[:150])
        with session.fork() as other, other.fork() as third:
            for held, more in ((other, PLENTY[150:]), (session, PLENTY[:200]), (third, PLENTY[3:90])):
                np.testing.assert_array_equal(feed(held, more), feed_alone(model, PLENTY[:150] + more))
                assert held._report().state_bytes < 160 * TOKEN
    assert file_bytes() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_child_process_that_closes_what_it_has_inherited_takes_nothing(model):
    with model.session() as session:
        feed(session, PLENTY[:200])
        other = session.fork()
        child = os.fork()
        if child == 0:
            other.close()
            session.close()
            model.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        np.testing.assert_array_equal(feed(other, [7]), feed(session, [7]))
        other.close()
        np.testing.assert_array_equal(feed(session, [8]), feed_alone(model, [*PLENTY[:200], 7, 8]))
