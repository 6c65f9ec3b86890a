"""Gradients, and trainings of members, by the workers of a Ray cluster.

Weights, optimizer, masks and checkpoints stay in the process that trains; what is lost with a worker is a step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError, extras_named, first_line
from llmc.replicas import DEVICES, OnDevice, Replica, accelerator
from llmc.training import FILE, SAVE_SECONDS, Elsewhere, Lost, Training, read, save, stoppable

ADDRESS = "RAY_ADDRESS"
_START_SECONDS, _SLICE = 300.0, 2.0
Say = Callable[[str], None]


class Seat:
    """What a worker's process holds."""

    def __init__(self, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self._accelerator, self._said = accelerator(device), list[str]()

    def hold(self, own: tuple[Any, Any]) -> None:
        """A loss to make gradients of."""
        import torch

        for kind, config in {type(model): model.config for model in own[0].models}.items():
            with torch.device("meta"):
                kind(config)  # transformers notes which outputs a class can give when the first of it is made
        self._replica = Replica(*own, self._accelerator)

    def gradients(self, weights: Sequence[Any], rows: Sequence[int]) -> tuple[float, Sequence[Any]]:
        """As `Replica`'s, all in NumPy's arrays."""
        import torch

        loss, found = self._replica.gradients([torch.tensor(weight) for weight in weights], rows)
        return loss, [None if gradient is None else gradient.float().cpu().numpy() for gradient in found]

    def begin(self, make: Callable[..., Training], state: Mapping[str, Any] | None, *given: Any) -> None:
        """A training of this worker alone, from the start or where it was."""
        self._training, self._said = make(*given), []
        if self._accelerator is not None:
            self._training.elsewhere = OnDevice(self._accelerator)
        if state is not None:
            self._training.restore(state)

    def advance(self) -> tuple[str, float, bool]:
        """Some seconds of it: what to tell, what share is done, and whether that was all."""
        until, told = time.monotonic() + _SLICE, [("", 0.0)]
        for loss in self._training.going(self._said.append):
            self._training.tell(lambda *now: told.append(now), loss)
            if time.monotonic() > until:
                break
        return *told[-1], self._training.over

    def state(self) -> tuple[Mapping[str, Any], Sequence[str]]:
        """Its checkpoint, and what it had to say."""
        return self._training.state(), self._said


class Cluster:
    """Workers, each a process of a Ray cluster."""

    def __init__(self, seats: Sequence[Any]) -> None:
        self.seats = seats
        self._of: Training | None = None

    def __call__(self, training: Training, rows: Sequence[int]) -> float:
        """As `Training.elsewhere`: each worker takes its share of the rows; gradients are added in their order."""
        import ray
        import torch

        if self._of is not training:
            own = ray.put((training.loss, training.acting))
            self.results([seat.hold.remote(own) for seat in self.seats])
            self._of = training
        trained = list(training.trained.values())
        weights = ray.put([weight.detach().numpy() for weight in trained])
        shares = [
            share for place in range(len(self.seats)) if (share := list(rows[place :: len(self.seats)]))
        ]
        asked = zip(self.seats, shares, strict=False)
        parts = self.results([seat.gradients.remote(weights, share) for seat, share in asked])
        total = 0.0
        for share, (loss, found) in zip(shares, parts, strict=True):
            part = len(share) / len(rows)
            total += part * loss
            for weight, array in zip(trained, found, strict=True):
                if array is not None:
                    gradient = torch.tensor(array).mul_(part)
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return total

    def results(self, asked: Sequence[Any]) -> Sequence[Any]:
        """What workers answer, in order.

        Raises:
            Lost: one failed, or is gone.
        """
        return [self.result(each, place) for place, each in enumerate(asked)]

    def result(self, asked: Any, place: int) -> Any:
        """What one of them answers."""
        import ray

        try:
            return ray.get(asked)
        except ray.exceptions.RayError as error:
            raise _lost(error, f"worker {place + 1} of {len(self.seats)}") from None


def _lost(error: Any, at: str) -> Exception:
    cause = getattr(error, "cause", None)
    if isinstance(cause, LlmcError):
        return cause
    if cause is not None:
        return Lost(f"a worker failed: {type(cause).__name__}", at=at, found=first_line(cause))
    return Lost(
        "a worker is gone", at=at, found=first_line(error), hint="was its process killed, or its machine?"
    )


@dataclass(frozen=True)
class Job:
    """A training for one worker: what is its own to make it of, and where its checkpoint lies, of which key."""

    given: Sequence[Any]
    folder: Path
    key: str


def side_by_side(
    cluster: Cluster,
    make: Callable[..., Training],
    common: Sequence[Any],
    jobs: Sequence[Job],
    tell: Callable[[int, str, float], None],
    say: Say,
) -> None:
    """Leave of each job the checkpoint of a training that is over; each worker does one, and then the next.

    Args:
        make: gets what is `common` to all jobs, what each has `given`, its key, and None for a folder.
        tell: gets a job's number, what it is at, and the share of all that is done.

    Raises:
        KeyboardInterrupt: it was interrupted; checkpoints are left.
    """
    shift = _Shift(cluster, make, common, jobs, tell, say)
    with stoppable() as asked:
        try:
            shift.run(asked)
        except Lost:
            shift.leave()
            raise
        number = asked()
    if number:
        shift.leave()
        signal.raise_signal(number)
        raise KeyboardInterrupt


class _Shift:
    def __init__(self, cluster: Cluster, make: Any, common: Any, jobs: Any, tell: Any, say: Say) -> None:
        import ray

        self._cluster, self._make, self._jobs, self._tell, self._say = cluster, make, jobs, tell, say
        self._common = [ray.put(each) for each in common]
        self._free, self._active = list(range(len(cluster.seats))), dict[Any, tuple[int, int]]()
        self._done, self._text = dict.fromkeys(range(len(jobs)), 0.0), dict[int, str]()
        self._saved = dict.fromkeys(range(len(jobs)), time.monotonic())

    def run(self, asked: Callable[[], int]) -> None:
        """Until all is done, or an end is asked for."""
        import ray

        waiting = list(range(len(self._jobs)))
        while self._active or (waiting and not asked()):
            while waiting and self._free and not asked():
                self._begin(waiting.pop(0))
            ready, _ = ray.wait(list(self._active), timeout=1.0) if self._active else ((), ())
            for each in ready:
                self._take(each, bool(asked()))

    def _begin(self, number: int) -> None:
        job, file = self._jobs[number], self._jobs[number].folder / FILE
        state = read(file, job.key) if file.is_file() else None
        if state is not None and state["over"]:
            self._done[number] = 1.0
            return
        seat = self._free.pop(0)
        worker = self._cluster.seats[seat]
        worker.begin.remote(self._make, state, *self._common, *job.given, job.key, None)
        self._active[worker.advance.remote()] = seat, number

    def _take(self, answered: Any, last: bool) -> None:
        """What a worker has done; it goes on unless it is over, or the last time."""
        seat, number = self._active.pop(answered)
        worker = self._cluster.seats[seat]
        text, self._done[number], over = self._cluster.result(answered, seat)
        if text and self._text.get(number) != text:
            self._text[number] = text
            self._tell(number, text, sum(self._done.values()) / len(self._jobs))
        if over or last or time.monotonic() - self._saved[number] > SAVE_SECONDS:
            state, said = self._cluster.result(worker.state.remote(), seat)
            save(state, self._jobs[number].folder)
            self._saved[number] = time.monotonic()
            for line in said if over else ():
                self._say(line)
        if over:
            self._free.append(seat)
        elif not last:
            self._active[worker.advance.remote()] = seat, number

    def leave(self) -> None:
        """Say that there is something to go on from."""
        self._say(f"recover: what there is is in {self._jobs[0].folder.parent}; --resume goes on")


@contextmanager
def working(
    workers: int | None, threads: int | None, device: str, say: Say, most: int | None = None
) -> Iterator[Elsewhere | None]:
    """What makes the gradients within: a `Cluster`, a GPU, or None, this process's CPU.

    Args:
        workers: how many of a Ray cluster, None: none; of that at `RAY_ADDRESS`, or one that is started here.
        threads: of each; None: as many as the machines have for each.
        most: workers that there is something to do for.

    Raises:
        LlmcError: there is no such cluster, or it has no room.
    """
    if workers is None:
        found = accelerator(device)
        if found is not None:
            say(f"recover: gradients are made on {found.device}, mixed precision: {found.mixed_precision}")
        yield None if found is None else OnDevice(found)
        return
    with extras_named():
        import ray
    begun = not ray.is_initialized()
    if begun:
        _begin(workers * (threads or 1))
    try:
        count = min(workers, most or workers)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        each = threads or _room(nodes, "CPU", count)
        if _seats(nodes, "CPU", each) < count or not each:
            raise LlmcError(
                f"the cluster has no room for {count} workers of {threads or 1} threads",
                at=f"--workers {workers}",
                found=f"{sum(int(node.get('CPU', 0)) for node in nodes)} processors in {len(nodes)} machines",
                hint="ask for fewer workers, or --threads",
            )
        gpus = int(device != "cpu" and _seats(nodes, "GPU", 1) >= count)
        say(f"recover: {count} workers, {each} threads each" + ", with a GPU" * gpus)
        yield Cluster(_seated(count, each, gpus))
    finally:
        if begun:
            ray.shutdown()


def _begin(processors: int) -> None:
    """Join the cluster that is named, or start one of this machine."""
    import ray

    address = os.environ.get(ADDRESS, "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    asked: dict[str, Any] = {"address": address or "local"}
    if not address:
        asked["num_cpus"] = max(processors, len(os.sched_getaffinity(0)))
        asked["include_dashboard"] = False
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**asked, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        problem = f"cannot reach the Ray cluster: {first_line(error)}"
        hint = f"is {ADDRESS} right?" if address else None
        raise LlmcError(problem, at=address or "a cluster of this machine", hint=hint) from None
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)  # Ray ends the process at once


def _seats(nodes: Sequence[Mapping[str, float]], what: str, each: int) -> int:
    """How many workers find room that want so much each, of one machine."""
    return sum(int(node.get(what, 0)) // max(each, 1) for node in nodes)


def _room(nodes: Sequence[Mapping[str, float]], what: str, count: int) -> int:
    """The most that each of so many workers can have; 0: there are too few."""
    most = max((int(node.get(what, 0)) for node in nodes), default=0)
    return next((each for each in range(most, 0, -1) if _seats(nodes, what, each) >= count), 0)


def _seated(count: int, threads: int, gpus: int) -> Sequence[Any]:
    import ray

    remote = ray.remote(num_cpus=threads, num_gpus=gpus)(Seat)
    seats = [remote.remote(threads, DEVICES[0 if gpus else 1]) for _ in range(count)]
    begun = [seat.__ray_ready__.remote() for seat in seats]
    ready, late = ray.wait(begun, num_returns=count, timeout=_START_SECONDS)
    if late:
        raise LlmcError(
            f"workers did not start within {_START_SECONDS:.0f} s",
            found=f"{len(ready)} of {count} did",
            hint="have others taken the cluster's processors?",
        )
    try:
        ray.get(begun)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise LlmcError(
            "a worker does not start",
            found=lines[-1],
            hint="every machine needs 'llmc[compile,ray]' of the same version",
        ) from None
    return seats
