"""A task in a process of its own, with a limit of time and of memory: what it found, or how it ended."""

from __future__ import annotations

import importlib
import multiprocessing
import pkgutil
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def load_libraries() -> None:
    """What every process needs, so that forks have it."""
    import torch
    import torch.export
    import transformers

    from llmc.compiler import frontends, interpret
    from llmc.targets.cpu import backend, build

    for module in pkgutil.iter_modules(frontends.__path__):
        importlib.import_module(f"{frontends.__name__}.{module.name}")

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    assert all((interpret, backend, build))


WAITS = 6  # how many times its processor time a task may take by the clock: other processes take their share


def apart(name: str, task: Callable[[], Row], seconds: int, gibibytes: int) -> Row:
    """What `task` returns, from a fork of this process, and its time; a row that says so where it does not end well.

    Args:
        seconds: of processor time.
    """
    started = time.monotonic()
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(name, task, seconds, gibibytes, theirs))
    process.start()
    theirs.close()
    row = limit = {"type": name, "state": "limit", "reason": f"took more than {seconds} s"}
    if mine.poll(seconds * WAITS):
        try:
            row = mine.recv()
        except EOFError:
            process.join()
            crash = {"type": name, "state": "crash", "reason": f"ended with {process.exitcode}"}
            row = limit if process.exitcode == -signal.SIGXCPU else crash
    process.kill()
    process.join()
    return {**row, "seconds": round(time.monotonic() - started, 1)}


def _send(name: str, task: Callable[[], Row], seconds: int, gibibytes: int, pipe: Any) -> None:
    """What becomes of one model type, into a pipe."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (gibibytes << 30,) * 2)
    try:
        pipe.send(task())
    except BaseException as error:  # everything that is no sentence is a fault of llmc's
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        pipe.send({"type": name, "state": "crash", "reason": reason[:300]})
