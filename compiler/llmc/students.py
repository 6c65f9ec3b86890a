"""What is trained: a copy of a model held to zeros, or rounded, or smaller, beside its teacher."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.graph import Graph
from llmc.distillation import Distillation, Examples, Figures, Measure
from llmc.errors import LlmcError
from llmc.fewer_layers import fewer, narrower
from llmc.low_rank import LowRank
from llmc.masks import Masks, hold
from llmc.passes.compress.prune import Prune
from llmc.passes.compress.prune_neurons import PruneNeurons
from llmc.straight_through import Rounding
from llmc.training import Plan, Training
from llmc.units import Units, changes_of, importance, let_train

if TYPE_CHECKING:
    from llmc.recover import Settings

TOKENS = 10_000  # that weights are reconstructed by


@dataclass(frozen=True)
class Student:
    """A model to train; `weights` are those of it that compression changes."""

    teacher: Any
    model: Any
    weights: Mapping[str, Any]
    masks: Masks | Units | None = None
    rounding: Rounding | None = None
    adapter: LowRank | None = None

    @staticmethod
    def of(
        settings: Settings, model: Any, graph: Callable[[], Graph], examples: Examples, batch: int
    ) -> Student:
        """The student of a model, which becomes it where sizes stay.

        Args:
            graph: makes that of the model, as its passes would get it.
            examples, batch: what gradients are taken of, where these choose.
        """
        if settings.layers is not None:
            student = fewer(model, settings.layers)
            return Student(model, student, dict(student.named_parameters()))
        if settings.neurons is not None:
            made = graph()
            units = Units(_narrowing(settings.neurons, made), model, made)
            _ranked(settings, units, model, examples, batch)
            student = narrower(model, units)
            return Student(model, student, dict(student.named_parameters()))
        teacher = copy.deepcopy(model)
        if settings.specs:
            masks = _masks(settings, model, graph(), examples, batch)
            student = Student(teacher, model, masks.weights, masks=masks)
            if isinstance(masks, Masks) and (settings.lora is not None or not student.by_samples(settings)):
                masks.warn()
        else:
            rounding = Rounding(settings.rounding, model, graph())
            student = Student(teacher, model, rounding.weights, rounding=rounding)
        if settings.lora is None:
            return student
        return replace(student, adapter=LowRank(settings.lora, model, student.weights, settings.seed))

    def around(self) -> AbstractContextManager[None]:
        """Within it the student answers as its artifact will, and learns."""
        return self.rounding.on(moving=True) if self.rounding else nullcontext()

    def measured(self, measure: Measure) -> Figures:
        """The figures of the student as it is, compressed."""
        if self.masks:
            hold(self.masks.weights, self.masks.at())
            for weight in self.masks.weights.values():
                weight.data.add_(0.0)  # -0 becomes 0, as `prune` writes it
        with self.rounding.on() if self.rounding else nullcontext():
            return measure(self.model)

    def by_samples(self, settings: Settings) -> bool:
        """Whether training begins with what the pass `reconstruct` makes of the weights, with all zeros there."""
        known = isinstance(self.masks, Masks) and self.masks.by_samples
        return known and self.adapter is None and settings.ramp is None

    def training(
        self,
        settings: Settings,
        examples: Examples,
        alpha: float,
        plan: Plan,
        folder: Path,
        resume: bool = False,
    ) -> Training:
        """From the weights that the model came with; with an adapter from those that compression left."""
        masks = self.masks if self.adapter is None else None
        if masks:
            self.model.load_state_dict(self.teacher.state_dict())
        if isinstance(masks, Masks) and self.by_samples(settings):
            if not resume:
                masks.reconstruct(examples.samples(TOKENS))
            plan = replace(plan, ramp=0.0)
        if self.adapter is None:
            let_train(self.model)
        loss = Distillation(self.model, self.teacher, examples, alpha, settings.temperature, settings.hidden)
        key = key_of(settings, self.teacher, examples)
        training = Training(self.model, loss, examples.lengths, masks, self.around, plan, folder, key)
        if self.rounding:
            training.books, training.acting = self.rounding.books, self.rounding.acting
        return training

    def finish(self) -> None:
        """Write into the weights what their folder is to hold."""
        if self.rounding and self.adapter is None:
            self.rounding.finish()

    def counted(self) -> tuple[int, int]:
        """Zeros among the weights that compression changes, and how many these are."""
        weights = self.weights.values()
        return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def _narrowing(count: int, graph: Graph) -> Sequence[PruneNeurons]:
    """The pass that leaves `count` neurons of each block."""
    widths = {block.width for block in PruneNeurons().chosen(graph)}
    most = max(widths, default=0)
    if len(widths) != 1 or not count < most:
        hint = f"give from 1 to {most - 1}" if len(widths) == 1 else None
        found = f"blocks of {', '.join(map(str, sorted(widths))) or 'none'}"
        raise LlmcError(
            "there is no such width of feed-forward blocks", at=f"--neurons {count}", found=found, hint=hint
        )
    return [PruneNeurons(fraction=1 - count / most, multiple=1)]


def _masks(settings: Settings, model: Any, graph: Graph, examples: Examples, batch: int) -> Masks | Units:
    changes = changes_of(settings.specs)
    if isinstance(changes, Prune):
        return Masks(changes, model, graph)
    units = Units(changes, model, graph)
    _ranked(settings, units, model, examples, batch)
    return units


def _ranked(settings: Settings, units: Units, model: Any, examples: Examples, batch: int) -> None:
    if settings.importance == "gradients":
        units.rank(importance(units, model, examples, batch))


def key_of(settings: Settings, teacher: Any, examples: Examples) -> str:
    """Of all that a training's result depends on, but the time it has."""
    made = hashlib.blake2b(json.dumps(asdict(replace(settings, budget=None))).encode())
    for name, value in teacher.state_dict().items():
        made.update(name.encode())
        made.update(value.numpy().tobytes())
    for row in examples.rows:
        made.update(repr(row).encode())
    return made.hexdigest()
