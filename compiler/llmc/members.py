"""Members of an ensemble, trained on samples of the data, and the files that say how their answers are joined.

Bagging: Breiman 1996, "Bagging predictors". Boosting: SAMME, Hastie, Rosset, Zhu and Zou 2009, "Multi-class AdaBoost".
The linear layer over what members answer: Wolpert 1992, "Stacked generalization".
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmc.distillation import Columns, Examples, examples_of
from llmc.errors import LlmcError
from llmc.fewer_layers import freeze
from llmc.recover import Settings, appearing, loaded, plan_of, want_room, write_folder
from llmc.training import Training, order

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
    progress: Callable[[str, float], None] = lambda stage, done: None,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> Members:
    """Train `settings.bag` or `settings.boost` members from one classifier, on labels alone; write a folder of folders.

    Embeddings and lower layers stay (`settings.freeze`), so that an ensemble stores and computes them once.

    Args:
        output: gets member-1, member-2, ... and `stack.json`, of boosting `weights.json`, as `--ensemble` reads them.
        progress: gets a stage and the share that is done.
        clock: what `Settings.budget`, which is for all members together, is measured by.

    Raises:
        LlmcError: the model has no classes, the data no labels or too few rows, or no member is better than chance.
    """
    output, data = Path(output), Path(data)
    want_room(output, output.parent / f"{output.name}.checkpoint", False)
    progress("import the model", 0.0)
    with loaded(Path(model)) as (source, summary, whole):
        named = columns or Columns()
        examples, held = examples_of(summary, whole, data, named, settings.max_seq, settings.seed)
        _want_classes(examples, held, data)
        kept = freeze(whole, settings.freeze)
        say(f"recover: the embeddings and {kept} layers stay as they are")
        half = len(held.rows) // 2
        fit, judged = (replace(held, rows=rows) for rows in (held.rows[:half], held.rows[half:]))
        found = Members(output, [], len(examples.rows), len(judged.rows))
        answers: list[tuple[Any, Any]] = []
        count = settings.bag or settings.boost or 0
        batch = plan_of(settings, examples, clock).batch
        found.first = _accuracy(_logits(whole, judged, batch), judged)
        with appearing(output) as part:
            for number, trained in enumerate(
                _trained(settings, whole, examples, count, clock, progress, say, found)
            ):
                name = f"member-{number + 1}"
                answers.append((_logits(trained, fit, batch), _logits(trained, judged, batch)))
                found.members.append(name)
                found.accuracy.append(_accuracy(answers[-1][1], judged))
                write_folder(trained, source, summary.config, part / name)
            _joined(found, answers, fit, judged, part)
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


def _trained(
    settings: Settings,
    model: Any,
    examples: Examples,
    count: int,
    clock: Callable[[], float],
    progress: Callable[[str, float], None],
    say: Callable[[str], None],
    found: Members,
) -> Iterator[Any]:
    """One member after the other, each from the weights that the model came with, on rows of its own."""
    start = copy.deepcopy(model.state_dict())
    total = len(examples.rows)
    shares = np.full(total, 1 / total)
    for number in range(count):
        model.load_state_dict(start)
        drawn = np.random.default_rng((settings.seed, number)).choice(total, total, p=shares)
        sample = replace(examples, rows=[examples.rows[row] for row in drawn])
        budget = settings.budget / count if settings.budget else None
        plan = replace(plan_of(settings, sample, clock), seed=settings.seed + number, budget=budget, ramp=0.0)
        loss = _of_labels(model, sample)
        training = Training(model, loss, sample.lengths, None, nullcontext, plan, None, "")

        def tell(stage: str, done: float, number: int = number) -> None:
            progress(f"member {number + 1}: {stage}", 0.05 + 0.9 * (number + done) / count)

        training.run(tell, say)
        found.steps, found.seconds = found.steps + training.step, found.seconds + training.seconds
        if settings.boost:
            told = _logits(model, examples, plan.batch)
            wrong = told.argmax(-1).numpy() != np.array([row.label for row in examples.rows])
            weight = _samme(float(shares[wrong].sum()), told.shape[-1], total)
            if weight <= 0:
                if not found.weights:
                    raise LlmcError(
                        "the first member is no better than chance", hint="train longer: --epochs"
                    )
                say(
                    f"recover: member {number + 1} is no better than chance on what the others get wrong; boosting ends"
                )
                return
            found.weights.append(weight)
            shares = shares * np.exp(weight * wrong)
            shares /= shares.sum()
        yield model


def _samme(error: float, classes: int, rows: int) -> float:
    """A member's weight; 0 or less where it is no better than chance."""
    least = 0.5 / rows
    error = min(max(error, least), 1 - least)
    return math.log((1 - error) / error) + math.log(classes - 1)


def _of_labels(model: Any, examples: Examples) -> Callable[[Sequence[int]], Any]:
    from torch.nn import functional

    def loss(rows: Sequence[int]) -> Any:
        given = examples.batch(rows)
        labels = examples.labels(rows, given["input_ids"], None)
        return functional.cross_entropy(model(**given).logits, labels)

    return loss


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
