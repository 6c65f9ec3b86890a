"""Members of an ensemble, trained on samples of the data, and the files that say how their answers are joined.

Bagging: Breiman 1996, "Bagging predictors". Boosting: SAMME, Hastie, Rosset, Zhu and Zou 2009, "Multi-class AdaBoost".
The linear layer over what members answer: Wolpert 1992, "Stacked generalization".
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmc.distillation import Columns, Examples, examples_of, order
from llmc.errors import LlmcError, many
from llmc.fewer_layers import freeze
from llmc.recover import Settings, appearing, loaded, plan_of, want_room, write_folder
from llmc.replicas import DEVICES
from llmc.students import key_of
from llmc.training import FILE, Elsewhere, Plan, Training
from llmc.workers import Cluster, Job, side_by_side, working

STACK, WEIGHTS = "stack.json", "weights.json"
LEAST = 100  # rows held back: half of them for the linear layer, half to judge by
Array = np.ndarray[Any, Any]


@dataclass
class Members:
    """What was trained.

    Args:
        judged_rows: of the rows held back, those that the figures are of; the others made the stack.
        accuracy: of each member; `together`: of what `--ensemble` makes of them, by its value.
        weights: of each member, of boosting.
    """

    path: Path
    members: list[str]
    trained_rows: int
    judged_rows: int
    steps: int = 0
    seconds: float = 0.0
    first: float = 0.0
    accuracy: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    together: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "path": str(self.path)}

    @property
    def best(self) -> str:
        """The value of `--ensemble` that is right most often."""
        return max(self.together, key=lambda name: self.together[name])


def train(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    columns: Columns | None = None,
    resume: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    device: str = DEVICES[0],
    progress: Callable[[str, float], None] = lambda stage, done: None,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> Members:
    """Train `settings.bag` or `settings.boost` members from one classifier, on labels alone; write a folder of folders.

    Embeddings and lower layers stay (`settings.freeze`), so that an ensemble stores and computes them once.

    Args:
        output: gets member-1, member-2, ... and `stack.json`, of boosting `weights.json`, as `--ensemble` reads them.
        resume: go on from the members, whole ones and one begun, that an interrupt left.
        workers, threads, device: as `llmc.recover.recover` has them; by bagging each worker trains members of its own.
        progress: gets a stage and the share that is done.
        clock: what `Settings.budget`, which is for all members together, is measured by.

    Raises:
        LlmcError: the model has no classes, the data no labels or too few rows, or no member is better than chance.
    """
    output, data = Path(output), Path(data)
    folder = output.parent / f"{output.name}.checkpoint"
    want_room(output, folder, resume)
    progress("import the model", 0.0)
    with loaded(Path(model)) as (source, summary, whole):
        named = columns or Columns()
        examples, held = examples_of(summary, whole, data, named, settings.max_seq, settings.seed)
        _want_classes(examples, held, data)
        kept = freeze(whole, settings.freeze)
        say(f"recover: the embeddings and {many(kept, 'layers')} stay as they are")
        half = len(held.rows) // 2
        fit, judged = (replace(held, rows=rows) for rows in (held.rows[:half], held.rows[half:]))
        found = Members(output, [], len(examples.rows), len(judged.rows))
        count = settings.bag or settings.boost or 0
        batch = plan_of(settings, examples, clock).batch
        found.first = _accuracy(_logits(whole, judged, batch), judged)
        most = settings.bag or batch
        with working(workers, threads, device, say, most) as elsewhere, appearing(output) as part:
            course = Course(settings, whole, examples, folder, count, clock, elsewhere)
            answers: list[tuple[Any, Any]] = []
            for number, trained in enumerate(course.members(progress, say, found)):
                name = f"member-{number + 1}"
                answers.append((_logits(trained, fit, batch), _logits(trained, judged, batch)))
                found.members.append(name)
                found.accuracy.append(_accuracy(answers[-1][1], judged))
                write_folder(trained, source, summary.config, part / name)
            _joined(found, answers, fit, judged, part)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _want_classes(examples: Examples, held: Examples, data: Path) -> None:
    if examples.scores != "softmax":
        raise LlmcError(
            "members are trained of models that choose one of several classes", found=examples.scores
        )
    if not examples.labelled:
        raise LlmcError(
            "there are no labels to learn from",
            at=str(data),
            hint="name their column: --label-column NAME",
        )
    if len(held.rows) < LEAST:
        raise LlmcError(
            f"the data has {len(examples.rows) + len(held.rows)} rows, members of an ensemble need {10 * LEAST}",
            at=str(data),
            hint="a tenth is held back, to fit how answers are joined and to judge it",
        )


class Course:
    """Members, one after the other, each from the weights that a model came with, on rows of its own.

    Args:
        folder: gets the checkpoint of each; those that are there are gone on from.
        elsewhere: as `llmc.replicas.working` gives it; by bagging a cluster trains members side by side.
    """

    def __init__(
        self,
        settings: Settings,
        model: Any,
        examples: Examples,
        folder: Path,
        count: int,
        clock: Callable[[], float],
        elsewhere: Elsewhere | None,
    ) -> None:
        self._settings, self._model, self._examples, self._count = settings, model, examples, count
        self._clock, self._elsewhere = clock, elsewhere
        self._start = copy.deepcopy(model.state_dict())
        self._shares = np.full(len(examples.rows), 1 / len(examples.rows))
        key = key_of(settings, model, examples)
        self._kept = [(folder / f"member-{number + 1}", f"{key} {number}") for number in range(count)]

    def members(
        self, progress: Callable[[str, float], None], say: Callable[[str], None], found: Members
    ) -> Iterator[Any]:
        """The model as each of them."""

        def tell(number: int, stage: str, done: float) -> None:
            progress(f"member {number + 1}: {stage}", 0.05 + 0.9 * done)

        together = 1
        if isinstance(self._elsewhere, Cluster) and self._settings.bag:
            together = len(self._elsewhere.seats)
            given = [self._given(number, together) for number in range(self._count)]
            jobs = [Job(each, *here) for each, here in zip(given, self._kept, strict=True)]
            side_by_side(self._elsewhere, member, (self._model, self._examples), jobs, tell, say)
        for number, (folder, key) in enumerate(self._kept):
            self._model.load_state_dict(self._start)
            training = member(self._model, self._examples, *self._given(number, together), key, folder)
            if (folder / FILE).is_file():
                training.resume()
            training.elsewhere = self._elsewhere

            def here(stage: str, done: float, number: int = number) -> None:
                tell(number, stage, (number + done) / self._count)

            training.run(here, say)
            training.save()
            found.steps, found.seconds = found.steps + training.step, found.seconds + training.seconds
            if self._settings.boost and not self._boosted(found, number, say):
                return
            yield self._model

    def _given(self, number: int, together: int) -> tuple[Sequence[int], Plan]:
        """The rows of a member, and how long it is trained."""
        total, settings = len(self._examples.rows), self._settings
        drawn = np.random.default_rng((settings.seed, number)).choice(total, total, p=self._shares)
        budget = settings.budget / -(-self._count // together) if settings.budget else None
        plan = plan_of(settings, self._examples, self._clock)
        return drawn.tolist(), replace(plan, seed=settings.seed + number, budget=budget, ramp=0.0)

    def _boosted(self, found: Members, number: int, say: Callable[[str], None]) -> bool:
        """Weigh a member, and the rows by what it got wrong; False: it is no better than chance."""
        rows = self._examples.rows
        told = _logits(
            self._model, self._examples, plan_of(self._settings, self._examples, self._clock).batch
        )
        wrong = told.argmax(-1).numpy() != np.array([row.label for row in rows])
        weight = _samme(float(self._shares[wrong].sum()), told.shape[-1], len(rows))
        if weight <= 0:
            if not found.weights:
                raise LlmcError("the first member is no better than chance", hint="train longer: --epochs")
            say(
                f"recover: member {number + 1} is no better than chance on what the others get wrong; boosting ends"
            )
            return False
        found.weights.append(weight)
        self._shares = self._shares * np.exp(weight * wrong)
        self._shares /= self._shares.sum()
        return True


def _samme(error: float, classes: int, rows: int) -> float:
    """A member's weight; 0 or less where it is no better than chance."""
    least = 0.5 / rows
    error = min(max(error, least), 1 - least)
    return math.log((1 - error) / error) + math.log(classes - 1)


def member(
    model: Any, examples: Examples, drawn: Sequence[int], plan: Plan, key: str, folder: Path | None
) -> Training:
    """The training of one member, on rows that were drawn for it."""
    sample = replace(examples, rows=[examples.rows[row] for row in drawn])
    return Training(model, OfLabels(model, sample), sample.lengths, None, nullcontext, plan, folder, key)


@dataclass(frozen=True)
class OfLabels:
    """A loss of labels alone."""

    model: Any
    examples: Examples

    @property
    def models(self) -> Sequence[Any]:
        """What is asked."""
        return (self.model,)

    def __call__(self, rows: Sequence[int]) -> Any:
        """The mean over a batch."""
        from torch.nn import functional

        given = self.examples.batch(rows, self.model.device)
        labels = self.examples.labels(rows, given["input_ids"], None)
        return functional.cross_entropy(self.model(**given).logits, labels)


def _logits(model: Any, examples: Examples, batch: int) -> Any:
    """f32 [rows, classes]."""
    import torch

    parts = order(examples.lengths, batch, None)
    with torch.no_grad():
        made = torch.cat([model(**examples.batch(rows)).logits for rows in parts])
    return made[torch.tensor([row for rows in parts for row in rows]).argsort()]


def _labels(examples: Examples) -> Any:
    import torch

    return torch.tensor([row.label for row in examples.rows], dtype=torch.int64)


def _accuracy(answers: Any, examples: Examples) -> float:
    return float((answers.argmax(-1) == _labels(examples)).double().mean())


# --- how they are joined


def _joined(
    found: Members, answers: Sequence[tuple[Any, Any]], fit: Examples, judged: Examples, part: Path
) -> None:
    """Fit the stack on one half of the rows held back, write the files, judge on the other half."""
    import torch

    fitted, seen = (
        torch.stack(each, 1).double() for each in zip(*answers, strict=True)
    )  # [rows, members, classes]
    weight, bias = stack(fitted, _labels(fit))
    (part / STACK).write_text(
        json.dumps({"weight": weight.tolist(), "bias": bias.tolist(), "inputs": "logits"}) + "\n"
    )
    chances = seen.softmax(-1)
    found.together["mean"] = _accuracy(chances.mean(1), judged)
    if found.weights:
        (part / WEIGHTS).write_text(json.dumps({"weights": found.weights}) + "\n")
        by = torch.tensor(found.weights, dtype=torch.float64)
        found.together[str(found.path / WEIGHTS)] = _accuracy((chances * by[:, None]).sum(1), judged)
    found.together[f"stack:{found.path / STACK}"] = _accuracy(seen.flatten(1) @ weight.T + bias, judged)


def stack(answers: Any, labels: Any) -> tuple[Any, Any]:
    """A linear layer over members' logits: multinomial logistic regression, held near their mean by a ridge.

    Args:
        answers: f64 [rows, members, classes].
        labels: i64 [rows].

    Returns:
        f64 [classes, members * classes] and [classes].
    """
    import torch
    from torch.nn import functional

    rows, members, classes = answers.shape
    mean = torch.eye(classes, dtype=torch.float64).repeat(1, members) / members
    moved = torch.zeros(classes, members * classes + 1, dtype=torch.float64, requires_grad=True)
    optimizer: Any = torch.optim.LBFGS([moved], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        scores = answers.flatten(1) @ (mean + moved[:, :-1]).T + moved[:, -1]
        loss = functional.cross_entropy(scores, labels) + moved.square().sum() / (2 * rows)
        loss.backward()
        return loss

    optimizer.step(closure)
    made = moved.detach()
    return mean + made[:, :-1], made[:, -1]
