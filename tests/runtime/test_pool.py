"""The thread pool: every item once, however the threads are held up."""

import os
import subprocess
from pathlib import Path

import pytest

from llmc.runtime.sources import FOLDER


def built(name: str, folder: Path) -> Path:
    """A program of this folder that includes pool.c."""
    sources = [
        str(Path(__file__).with_name(f"{name}.c")),
        *(str(FOLDER / f"{n}.c") for n in ("cpu", "error")),
    ]
    program = folder / name
    command = ["cc", "-std=gnu99", "-O2", f"-I{FOLDER}", *sources, "-lpthread", "-lm", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def test_every_item_of_every_job_is_done_once(tmp_path):
    """A worker paused between ticket and fields once took a chunk of the next job; that run never ended."""
    program = built("pool_stress", tmp_path)
    for threads in (1, 2, 3, 8):
        done = subprocess.run([program, "5000", str(threads)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "every item was done once\n")


def test_signals_are_for_the_program_s_threads(tmp_path):
    """One that the program had blocked, to wait for it, was given to a worker, and ended the process."""
    done = subprocess.run([built("pool_signals", tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "it waits for the program; masks are as they were\n")


CORES = len(os.sched_getaffinity(0))


@pytest.mark.skipif(CORES < 2, reason="one processor: there is no other")
def test_workers_wake_up_elsewhere_than_the_caller(tmp_path):
    """Kernels of virtual machines put a worker behind the caller, though another core was idle: 4 ms each time."""
    done = subprocess.run([built("pool_room", tmp_path), "2"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{CORES - 1} of {CORES}"] * CORES


def test_with_more_threads_than_processors_workers_go_anywhere(tmp_path):
    program = built("pool_room", tmp_path)
    many = subprocess.run([program, str(CORES + 1)], capture_output=True, text=True, check=True)
    assert [line.split(",")[0] for line in many.stdout.splitlines()] == [f"{CORES} of {CORES}"] * CORES
    pinned = subprocess.run([program, "2", "pin"], capture_output=True, text=True, check=True)
    assert all(line.startswith("1 of ") for line in pinned.stdout.splitlines())


def test_workers_stay_where_somebody_told_them_to(tmp_path):
    done = subprocess.run(
        [built("pool_room", tmp_path), "2", "narrow"], capture_output=True, text=True, check=True
    )
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [f"1 of {CORES}"] * CORES


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Where two workers may run whenever the caller has run a job, on a made machine of 8 processors."""
    program = built("pool_told", tmp_path_factory.mktemp("told"))

    def play(words: str) -> list[str]:
        done = subprocess.run([program, *words.split()], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return play


def test_workers_follow_a_caller_that_moves(told):
    assert told("at 0 at 1 at 7") == ["fe fe", "fd fd", "7f 7f"]


def test_workers_stay_where_the_process_is_told_to(told):
    """`taskset -ap` with what a worker was given already was taken for our own word: it left for processor 0 again."""
    assert told("at 0 all 0xfe at 3 at 5") == ["fe fe", "f6 f6", "de de"]
    assert told("at 0 all 0xfe at 3 all 0xff at 5") == ["fe fe", "f6 f6", "df df"]


def test_where_too_few_processors_are_left_nothing_is_said(told):
    assert told("all 0x3 at 0 at 1") == ["03 03", "03 03"]
    assert told("all 0x7 at 0 all 0x6 at 1 at 2") == ["06 06", "06 06", "06 06"]


def test_a_caller_that_moves_itself_is_made_room_for(told):
    assert told("at 0 caller 0x2 at 1 caller 0x4 at 2") == ["fe fe", "fd fd", "fb fb"]


def test_a_worker_that_is_told_by_itself_stays(told):
    """Only the first worker was asked."""
    assert told("at 0 worker2 0x70 at 1 at 5") == ["fe fe", "fd 70", "df 50"]
    assert told("at 0 worker1 0x8 at 1 at 3") == ["fe fe", "08 fd", "08 f7"]


@pytest.fixture(scope="module")
def worth(tmp_path_factory):
    """Pauses, share of the time alone and of waiting, where a worker is put aside for so long after so much work."""
    program = tmp_path_factory.mktemp("worth") / "worth"
    command = [
        "cc",
        "-std=gnu99",
        f"-I{FOLDER}",
        str(Path(__file__).with_name("worth.c")),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)

    def play(*seconds: float) -> tuple[int, float, float]:
        done = subprocess.run([program, *map(str, seconds)], capture_output=True, text=True, check=True)
        pauses, alone, waited = done.stdout.split()
        return int(pauses), float(alone), float(waited)

    return play


def test_workers_that_nobody_disturbs_are_never_left_asleep(worth):
    assert worth(1000, 0) == (0, 0, 0)


def test_a_worker_that_is_put_aside_now_and_then_goes_on(worth):
    """3 ms once in 100: without the worker the work would take nearly twice as long."""
    assert worth(0.1, 0.003)[0] == 0


@pytest.mark.parametrize(("good", "lost"), [(0.003, 0.0035), (0.002, 0.008), (0.001, 0.003)])
def test_a_worker_that_shares_its_core_is_left_asleep(worth, good, lost):
    """Pauses grow, so what the tries cost fades."""
    pauses, alone, waited = worth(good, lost)
    assert 30 <= pauses <= 60
    assert alone > 0.9
    assert waited < 0.04


def test_where_halves_of_a_core_gain_time_they_are_used(worth):
    assert worth(0.004, 0.001)[0] == 0


def test_workers_that_were_in_the_way_are_tried_again(worth):
    """Whoever stops to work alone tries again after pauses of 10 ms at first."""
    assert worth(0.001, 0.02, 0.1)[0] >= 2
