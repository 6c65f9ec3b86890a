"""The thread pool: every item once, however the threads are held up."""

import subprocess

from llmc.runtime.sources import FOLDER


def test_every_item_of_every_job_is_done_once(tmp_path, build):
    """A worker paused between ticket and fields once took a chunk of the next job; that run never ended."""
    sources = [
        str(build.tiny_c.parent / "pool_stress.c"),
        *(str(FOLDER / f"{n}.c") for n in ("cpu", "error")),
    ]
    program = tmp_path / "stress"
    command = ["cc", "-std=gnu99", "-O2", f"-I{FOLDER}", *sources, "-lpthread", "-lm", "-o", str(program)]
    subprocess.run(command, check=True)
    for threads in (2, 3, 8):
        done = subprocess.run([program, "5000", str(threads)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "every item was done once\n")
