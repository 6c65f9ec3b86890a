"""Short training of a model whose weights are held to masks: schedule, steps, checkpoints, interrupts, divergence."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmc.distillation import order
from llmc.errors import LlmcError, first_line
from llmc.masks import hold

FILE = "state.pt"
RAISES = 8  # steps in which masks grow to what they are to be
SAVE_SECONDS = 60.0
_WARM = 0.05
_RECENT = 16  # steps of a mean loss
_TIMES, _MORE = 2.0, 0.5  # the first one, and nats: a loss beyond that is of a training that diverges


@dataclass(frozen=True)
class Plan:
    """How long, and how fast.

    Args:
        steps: at most.
        batch: rows of a step.
        rate: the learning rate's largest value; it rises over a twentieth and falls to 0, both linearly.
        seed: of the order of the rows.
        ramp: share of the training in which the masks grow; 0: they are whole from the start.
        budget: seconds of training at most, by `clock`; None: no bound.
    """

    steps: int
    batch: int
    rate: float
    seed: int
    ramp: float
    budget: float | None = None
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)


Loss = Callable[[Sequence[int]], Any]  # rows -> the batch's mean loss, a tensor
Tell = Callable[[str, float], None]
Elsewhere = Callable[["Training", Sequence[int]], float]  # leaves the weights' gradients, gives the mean loss


class Lost(LlmcError):
    """What makes gradients is gone; the training itself is whole."""


class Zeros(Protocol):
    """Which weights stay, as more and more become zero."""

    def at(self, share: float = 1.0) -> Mapping[str, Any]:
        """Name -> bool tensor, True where a weight stays, when `share` of those that are to go has gone."""


@dataclass
class Course:
    """How the mean loss of the last steps goes, from when all zeros are there.

    Args:
        first: that of the first steps.
        best, tensors, step: the least one, and what was trained when it was.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    first: float | None = None
    best: float = math.inf
    tensors: Sequence[Any] = ()
    step: int = 0

    @property
    def mean(self) -> float:
        """Of the last steps; infinite as long as they are too few."""
        return sum(self.recent) / _RECENT if len(self.recent) == _RECENT else math.inf

    def add(self, loss: float) -> None:
        """The loss of one more step."""
        self.recent.append(loss)
        if self.first is None and self.mean < math.inf:
            self.first = self.mean

    @property
    def diverged(self) -> bool:
        """Whether the loss is no number, or far above what it began with."""
        if self.recent and not math.isfinite(self.recent[-1]):
            return True
        return self.first is not None and self.mean > _TIMES * self.first + _MORE

    def keep(self, tensors: Iterable[Any], step: int) -> None:
        """Keep what it is after a step if it is the best so far."""
        if self.mean < self.best:
            self.best, self.step = self.mean, step
            self.tensors = [tensor.detach().clone() for tensor in tensors]


@dataclass
class Training:
    """A training under way.

    Args:
        model: the student.
        loss: of the rows of these numbers.
        lengths: tokens of every row, to batch those of like length.
        masks: None: all weights stay.
        around: within it losses and gradients are those of rounded weights.
        folder: where the checkpoint lies; None: there is none.
        key: what the training is of; a checkpoint of another is refused.
        books: tensors that change in a training beside the weights.
        acting: within it a copy whose weights are rounded already answers as within `around`.
        elsewhere: makes gradients, in place of `loss` here.
        over: nothing is left to do.
    """

    model: Any
    loss: Loss
    lengths: Sequence[int]
    masks: Zeros | None
    around: Callable[[], AbstractContextManager[None]]
    plan: Plan
    folder: Path | None
    key: str
    books: Mapping[str, Any] = field(default_factory=dict)
    acting: Callable[[], AbstractContextManager[None]] = nullcontext
    elsewhere: Elsewhere | None = None
    over: bool = False
    step: int = 0
    raised: int = 0
    seconds: float = 0.0
    keep: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        self._epoch, self._order, self.course = -1, list[list[int]](), Course()
        self._told, self._text = -1.0, ""
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()), lr=self.plan.rate, betas=(0.9, 0.99), weight_decay=0.0
        )

    def run(self, tell: Tell, say: Callable[[str], None]) -> None:
        """Train to the end, or until the loss diverges: then the weights are the best of before.

        Raises:
            LlmcError: it diverged before there were any.
            KeyboardInterrupt: it was interrupted; a checkpoint is left.
        """
        saved, stopped = time.monotonic(), False
        with stoppable() as asked:
            try:
                for loss in self.going(say):
                    self.tell(tell, loss)
                    if stopped := bool(asked()):
                        break
                    if time.monotonic() - saved > SAVE_SECONDS:
                        self.save()
                        saved = time.monotonic()
            except Lost:
                self._leave(say)
                raise
            number = asked()
        if stopped:
            self._leave(say)
            signal.raise_signal(number)
            raise KeyboardInterrupt
        if self.seconds > SAVE_SECONDS:
            self.save()  # what is yet to come, such as a full disk, costs no training

    def going(self, say: Callable[[str], None]) -> Iterator[float]:
        """The loss of each step that is left, after it; may be left and begun again between any two.

        Raises:
            LlmcError: it diverged before there were weights to return to.
        """
        clock = self.plan.clock
        start = clock() - self.seconds
        while not self.over and (done := self._done()) < 1:
            loss = self._step(done)
            self.seconds = clock() - start
            if self.course.diverged:
                self._return_to_best(loss, say)
                break
            yield loss
        self._raise_masks(1.0)
        self.over = True

    def _done(self) -> float:
        """The share of the training that is over."""
        by_time = self.seconds / self.plan.budget if self.plan.budget else 0.0
        return min(1.0, max(self.step / self.plan.steps, by_time))

    def _step(self, done: float) -> float:
        from torch.nn.utils import clip_grad_norm_

        self._raise_masks(done)
        rate = self.plan.rate * min((done + 1 / self.plan.steps) / _WARM, 1.0, (1 - done) / (1 - _WARM))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        with self.around():
            value = self._gradients(self._rows())
            self._watch(value)
            if self.course.diverged:
                return value
        for name, mask in self.keep.items():
            self.trained[name].grad.mul_(mask)
        clip_grad_norm_(list(self.trained.values()), 1.0)
        self.optimizer.step()
        hold(self.trained, self.keep)
        self.step += 1
        return value

    def _gradients(self, rows: Sequence[int]) -> float:
        if self.elsewhere is not None:
            return self.elsewhere(self, rows)
        loss = self.loss(rows)
        loss.backward()
        return float(loss.detach())

    def _watch(self, loss: float) -> None:
        """The loss of the weights as they are now, before this step changes them."""
        if self.masks is not None and self.raised < RAISES and math.isfinite(loss):
            return
        self.course.add(loss)
        if self.step % _RECENT == 0:
            self.course.keep(self._changing(), self.step)

    def _changing(self) -> Iterator[Any]:
        return (tensor for tensors in (self.trained, self.books) for tensor in tensors.values())

    def _return_to_best(self, loss: float, say: Callable[[str], None]) -> None:
        course, rate = self.course, self.optimizer.param_groups[0]["lr"]
        if not course.tensors:
            self.remove()
            raise LlmcError(
                f"the loss is {loss:.4g} in step {self.step + 1}",
                found=f"a learning rate of {rate:.2g}",
                hint="nothing was written; try a smaller --lr",
            )
        for tensor, best in zip(self._changing(), course.tensors, strict=True):
            tensor.data.copy_(best)
        say(
            f"recover: the training diverged in step {self.step + 1}: a loss of {loss:.4g}, a learning rate of "
            f"{rate:.2g}; the weights are those after step {course.step}, whose loss was {course.best:.4g}"
        )

    def _raise_masks(self, done: float) -> None:
        """The masks of this moment: sparsity grows by a cubic curve (Zhu and Gupta 2017), then the masks stay."""
        if self.masks is None or self.raised == RAISES:
            return
        ramp = self.plan.ramp
        wanted = RAISES if done >= ramp else 1 + int(done / ramp * RAISES)
        if wanted > self.raised:
            self.raised = min(wanted, RAISES)
            self.keep = self.masks.at(1 - (1 - self.raised / RAISES) ** 3)
            hold(self.trained, self.keep)

    def _rows(self) -> Sequence[int]:
        """The rows of this step: by seed and number alone, so that a resumed training sees what it would have seen."""
        epoch, place = divmod(self.step, -(-len(self.lengths) // self.plan.batch))
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = order(self.lengths, self.plan.batch, self.plan.seed + epoch)
        return self._order[place]

    def tell(self, tell: Tell, loss: float) -> None:
        """Say how far it is, in other words twenty times."""
        done = self._done()
        tenth = int(done * 20) / 20
        left = self.seconds / done * (1 - done) if done else 0.0
        if tenth > self._told:
            self._told, self._text = tenth, f"step {self.step}, loss {loss:.4f}, {left:.0f} s left"
        tell(self._text, done)

    # --- checkpoints

    def _leave(self, say: Callable[[str], None]) -> None:
        self.save()
        if self.folder is not None:
            say(f"recover: the checkpoint after step {self.step} is in {self.folder}; --resume goes on")

    def save(self) -> None:
        """Leave a checkpoint."""
        if self.folder is not None:
            save(self.state(), self.folder)

    def state(self) -> Mapping[str, Any]:
        """All that a checkpoint holds."""
        return {
            "key": self.key,
            "step": self.step,
            "raised": self.raised,
            "seconds": self.seconds,
            "over": self.over,
            "keep": dict(self.keep),
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "optimizer": None if self.over else self.optimizer.state_dict(),
            "books": dict(self.books),
        }

    def resume(self) -> None:
        """Go on where the checkpoint was made.

        Raises:
            LlmcError: it is damaged, or of another training.
        """
        assert self.folder is not None
        self.restore(read(self.folder / FILE, self.key))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be what a training with the same key was."""
        self.step, self.raised, self.seconds = state["step"], state["raised"], state["seconds"]
        self.keep, self.over = state["keep"], state["over"]
        if not self.over:
            self.optimizer.load_state_dict(state["optimizer"])
        for name, weight in state["weights"].items():
            self.trained[name].data.copy_(weight)
        for name, values in state["books"].items():
            self.books[name].copy_(values)

    def remove(self) -> None:
        """The checkpoint is of no use any more."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def save(state: Mapping[str, Any], folder: Path) -> None:
    """A checkpoint that is whole or not there."""
    import torch

    part = folder / f".{FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, part)
        os.replace(part, folder / FILE)
    except (OSError, RuntimeError) as error:  # RuntimeError: how torch says that a disk is full
        raise LlmcError(f"cannot write the checkpoint: {first_line(error)}", at=str(folder)) from None


def read(file: Path, key: str) -> Mapping[str, Any]:
    """What a checkpoint holds.

    Raises:
        LlmcError: it is damaged, or of another training.
    """
    import torch

    try:
        # where another kind of training left its own, as one of members does
        state: Mapping[str, Any] = torch.load(file, weights_only=True) if file.exists() else {"key": None}
        own = state["key"] == key
    except Exception as error:  # whatever torch makes of a damaged file
        raise LlmcError(
            f"the checkpoint cannot be read: {type(error).__name__}", at=str(file), hint="remove it"
        ) from None
    if not own:
        raise LlmcError(
            "the checkpoint is of another model, data or options",
            at=str(file),
            hint="repeat them as they were, or remove it",
        )
    return state


@contextmanager
def stoppable() -> Iterator[Callable[[], int]]:
    """The number of the signal that asked to end, 0 before; a second one ends at once."""
    found = [0]
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    before = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def note(number: int, frame: Any) -> None:
        signal.signal(number, before[number])
        found[0] = number

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: found[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
