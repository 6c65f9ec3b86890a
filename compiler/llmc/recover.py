"""What compression takes from a model, won back: minutes of training with zeros or rounding in place."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmc.compiler.frontends import overlay, plain_folder
from llmc.compiler.frontends.folder import Summary, inspect
from llmc.compiler.frontends.tasks import GENERATION, SCORING
from llmc.distillation import CLASSIFYING, Columns, Examples, Figures, Measure, examples_of
from llmc.errors import LlmcError
from llmc.masks import graph_of
from llmc.passes.compress.cluster import Share
from llmc.passes.compress.prune import Pattern, Prune
from llmc.replicas import DEVICES
from llmc.straight_through import MODES, share_of
from llmc.students import Student
from llmc.training import FILE, Elsewhere, Plan, Tell, Training
from llmc.units import WAYS, changes_of
from llmc.workers import working

EPOCHS, RATE, BLOCKS_RATE, LORA_RATE, RAMP = 3, 1e-4, 3e-4, 1e-3, 0.3
_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_LEFT_OUT = ("config.json", "adapter_config.json", "trainer_state.json")


@dataclass(frozen=True)
class Settings:
    """How to train; None: what suits the task.

    Args:
        prune: the zeros to hold, as `--prune` writes them, once or more; or
        quant: how to round, a mode of `--quant`: "int8" or "w4"; or
        share: how many values weights share, as `--share` writes it; or
        layers: how many stay of the model's; or
        neurons: how wide its feed-forward blocks become; or
        bag, boost: how many members of an ensemble to train (`llmc.members.train`).
        freeze: how many layers of members stay as they are, with the embeddings; None: two thirds.
        lora: the rank of an adapter that is trained beside compressed weights, in place of these.
        importance: what heads and neurons are chosen by, "gradients" on the data or "magnitude".
        steps, epochs, budget: the training ends with the first of them; `budget` is in seconds.
        alpha: share of the teacher's answers in the loss, the rest is the labels'; None: 1 without labels, else 0.5.
        max_seq: tokens of a row; longer ones are cut.
        ramp: share of the training in which zeros become more; None: heads and neurons 0.3, single weights and blocks
            are chosen by samples before.
    """

    prune: str | Sequence[str] | None = None
    quant: str | None = None
    share: str | None = None
    layers: int | None = None
    neurons: int | None = None
    bag: int | None = None
    boost: int | None = None
    freeze: int | None = None
    lora: int | None = None
    steps: int | None = None
    epochs: int | None = None
    budget: float | None = None
    rate: float | None = None
    batch: int | None = None
    seed: int = 0
    temperature: float = 2.0
    alpha: float | None = None
    hidden: float = 1.0
    ramp: float | None = None
    max_seq: int | None = None
    importance: str = WAYS[0]

    def __post_init__(self) -> None:
        others = self.quant, self.share, self.layers, self.neurons, self.bag, self.boost
        asked = [bool(self.specs), *(other is not None for other in others)]
        if sum(asked) != 1:
            raise LlmcError(
                "recover is for either zeros, rounding, shared values, a smaller model or an ensemble",
                hint="give --prune, --quant, --share, --layers, --neurons, --bag or --boost",
            )
        if self.lora is not None and not (self.specs or self.quant or self.share):
            hint = "give --prune, --quant or --share with it"
            raise LlmcError("--lora trains an adapter beside weights that keep their shapes", hint=hint)
        if self.importance not in WAYS:
            raise LlmcError("no such importance", found=self.importance, hint=f"use {' or '.join(WAYS)}")
        if self.quant is not None and self.quant not in MODES:
            raise LlmcError(
                f"recover does not round as --quant {self.quant}", hint=f"use {' or '.join(MODES)}"
            )
        for name, value, least, most in (
            ("--alpha", self.alpha, 0.0, 1.0),
            ("--hidden", self.hidden, 0.0, 1e6),
            ("--ramp", self.ramp, 0.0, 0.9),
            ("--temperature", self.temperature, 0.01, 100.0),
            ("--lr", self.rate, 1e-12, 1.0),
        ):
            if value is not None and not least <= value <= most:
                raise LlmcError(f"{name} is {value:g}, must be within {least:g} to {most:g}")

    @property
    def specs(self) -> Sequence[str]:
        """Each of `prune`."""
        return (
            () if self.prune is None else (self.prune,) if isinstance(self.prune, str) else tuple(self.prune)
        )

    @property
    def rounding(self) -> str | Share:
        """As `Rounding` takes it."""
        return str(self.quant) if self.share is None else share_of(self.share)


@dataclass(frozen=True)
class Recovery:
    """What was done.

    Args:
        trained_rows, held_rows: rows to learn from, and those kept back, which the figures are of.
        zeros, weights: of the weights that are pruned or rounded, of fewer layers all, how many are zero.
        seconds: of training alone.
        before, compressed, recovered: the figures of the original, of it compressed, of what was written.
    """

    path: Path
    task: str
    trained_rows: int
    held_rows: int
    steps: int
    seconds: float
    zeros: int
    weights: int
    before: Figures
    compressed: Figures
    recovered: Figures

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "path": str(self.path)}


def recover(
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
) -> Recovery:
    """Train a model with what compression does to it in place, and write it as a folder of Hugging Face.

    Dropout stays off, embedding tables stay as they are; all other weights are trained.

    Args:
        model: a Hugging Face folder of a text classifier or a causal language model.
        data: texts with or without labels; of a language model text alone.
        output: the folder to write; checkpoints are beside it until it is written.
        resume: go on from the checkpoint.
        workers, threads: how many workers of a Ray cluster share each step, and threads of each; None: none.
        device: "cpu", or "auto": a GPU where there is one.
        progress: gets a stage and the share that is done.
        clock: what `Settings.budget` is measured by.

    Raises:
        LlmcError: the model, the data or an option is of no use, or the loss is no number. Nothing is written then.
    """
    output, data = Path(output), Path(data)
    folder = output.parent / f"{output.name}.checkpoint"
    want_room(output, folder, resume)
    _want_understood(settings)
    progress("import the model", 0.0)
    with loaded(Path(model)) as (source, summary, whole):
        _want_adapter_of_use(settings, summary.task.name, Path(model))
        progress("read the data", 0.02)
        named = columns or Columns()
        examples, held = examples_of(summary, whole, data, named, settings.max_seq, settings.seed)
        alpha = _alpha(settings.alpha, examples, data)
        plan = plan_of(settings, examples, clock)
        made = partial(graph_of, source, summary.task.name)
        student = Student.of(settings, whole, made, examples, plan.batch)
        with working(workers, threads, device, say, plan.batch) as elsewhere:
            measure = Measure(held, plan.batch, getattr(elsewhere, "device", None))
            progress("measure", 0.04)
            before, compressed = measure(student.teacher), student.measured(measure)
            if student.by_samples(settings) and not resume:
                progress("change the weights by samples", 0.08)
            training = student.training(settings, examples, alpha, plan, folder, resume)
            _run(training, elsewhere, resume, progress, say)
        recovered = _measured_again(student, measure, compressed, progress, say)
        progress("write the folder", 0.98)
        _write(student, source, summary.config, Path(model), output)
    training.remove()
    counts = len(examples.rows), len(held.rows), training.step, training.seconds
    return Recovery(output, summary.task.name, *counts, *student.counted(), before, compressed, recovered)


def _run(
    training: Training, elsewhere: Elsewhere | None, resume: bool, progress: Tell, say: Callable[[str], None]
) -> None:
    """From the start, or from the checkpoint on; `elsewhere` makes the gradients, if anything does."""
    training.elsewhere = elsewhere
    if resume:
        training.resume()
    training.run(lambda stage, done: progress(stage, 0.1 + 0.85 * done), say)


def _measured_again(
    student: Student, measure: Measure, before: Figures, progress: Tell, say: Callable[[str], None]
) -> Figures:
    """What the trained student is worth."""
    student.finish()
    progress("measure", 0.95)
    recovered = student.measured(measure)
    if recovered.worse_than(before):
        say("recover: nothing was won back; train longer, with another --lr, or compress less")
    return recovered


def _write(student: Student, source: Path, config: Mapping[str, Any], model: Path, output: Path) -> None:
    """The student's folder, or its adapter alone."""
    if student.adapter is None:
        write_folder(student.model, source, config, output)
        return
    with appearing(output) as part:
        student.adapter.write(part, model)


def _want_adapter_of_use(settings: Settings, task: str, model: Path) -> None:
    if settings.lora is not None and task != GENERATION:
        raise LlmcError(
            "an adapter stands beside a causal language model alone",
            at=str(model),
            found=f"the task {task}",
            hint="leave --lora out: the model itself is trained then",
        )


def _want_understood(settings: Settings) -> None:
    """Say what is wrong with an option before any work."""
    if settings.specs:
        changes = changes_of(settings.specs)
        if settings.lora is not None and not isinstance(changes, Prune):
            raise LlmcError(
                "--lora trains an adapter beside weights that keep their shapes",
                at=" ".join(f"--prune {spec}" for spec in settings.specs),
                hint="heads and neurons go from a model that is trained itself: leave --lora out",
            )
    if settings.share is not None:
        share_of(settings.share)


def want_room(output: Path, folder: Path, resume: bool) -> None:
    """Refuse an output that exists, and checkpoints that are there or not as they should."""
    if os.path.lexists(output):
        raise LlmcError("the output exists", at=str(output), hint="give another name, or remove it")
    if not output.absolute().parent.is_dir():
        raise LlmcError("the folder to write into does not exist", at=str(output.parent))
    if resume and not any(folder.rglob(FILE)):
        raise LlmcError(
            "there is no checkpoint to go on from", at=str(folder / FILE), hint="leave --resume out"
        )
    if folder.exists() and not resume:
        raise LlmcError(
            "a checkpoint of an earlier training is there",
            at=str(folder),
            hint="--resume goes on from it; or remove it",
        )
    try:
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.absolute().parent):
            pass  # before minutes of training are spent
    except OSError as error:
        raise LlmcError(f"cannot write the folder: {error.strerror or error}", at=str(output)) from None


@contextmanager
def loaded(path: Path) -> Iterator[tuple[Path, Summary, Any]]:
    """The plain folder, what is in it, and its model in float32, on transformers' fastest attention."""
    from llmc.compiler.frontends import forward
    from llmc.compiler.frontends.implementations import set_way
    from llmc.compiler.frontends.pretrained import build
    from llmc.compiler.frontends.quiet import quiet

    if not path.is_dir():
        inspect(path)  # says what it is instead
    with plain_folder.plain(plain_folder.origin(path)) as plain:
        summary = inspect(plain.path)
        if summary.task.name not in (CLASSIFYING, GENERATION, SCORING):
            raise LlmcError(
                f"recover knows no training for the task {summary.task.name}",
                at=str(path),
                hint="it trains text classifiers and causal language models",
            )
        with quiet():
            model, _ = build(summary)
            forward.in_one_piece(model)
            set_way(model, "sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
        yield plain.path, summary, model


def plan_of(settings: Settings, examples: Examples, clock: Callable[[], float]) -> Plan:
    """How long to train, and how fast."""
    batch = settings.batch or (8 if examples.scores == "tokens" else 32)
    by_epochs = (settings.epochs or EPOCHS) * -(-len(examples.rows) // batch)
    steps = settings.steps or by_epochs
    if settings.epochs is not None:
        steps = min(steps, by_epochs)
    ramp = RAMP if settings.ramp is None else settings.ramp
    return Plan(steps, batch, _rate(settings), settings.seed, ramp, settings.budget, clock)


def _rate(settings: Settings) -> float:
    if settings.rate is not None or settings.lora is not None:
        return settings.rate or LORA_RATE
    changes = changes_of(settings.specs) if settings.specs else None
    in_blocks = isinstance(changes, Prune) and Pattern.parse(changes.pattern).height > 1
    return BLOCKS_RATE if in_blocks else RATE


def _alpha(alpha: float | None, examples: Examples, data: Path) -> float:
    labelled = examples.labelled and examples.scores != "sigmoid"
    if alpha is None:
        return 0.5 if labelled else 1.0
    if alpha < 1 and not labelled:
        why = "labels that may hold together are not read" if examples.scores == "sigmoid" else None
        raise LlmcError(
            "there are no labels to learn from",
            at=str(data),
            found=why or f"--alpha {alpha:g}",
            hint="leave --alpha out, or name their column: --label-column NAME",
        )
    return alpha


# --- the folder


def _as_it_was(config: Any, stated: Mapping[str, Any]) -> None:
    """What was set to train, and is no part of the model."""
    for name, default in (("use_cache", True), ("chunk_size_feed_forward", 0)):
        if hasattr(config, name):
            setattr(config, name, stated.get(name, default))


@contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A folder under a temporary name until all is there."""
    part = output.parent / f".{output.name}.{secrets.token_hex(4)}.part"
    try:
        part.mkdir()
        yield part
        part.rename(output)
    except OSError as error:
        raise LlmcError(f"cannot write the folder: {error.strerror or error}", at=str(output)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_folder(model: Any, source: Path, stated: Mapping[str, Any], output: Path) -> None:
    """The model and the other files of its folder."""
    from llmc.compiler.frontends.quiet import quiet

    _as_it_was(model.config, stated)
    with appearing(output) as part:
        with quiet():
            model.save_pretrained(part)
        for file in sorted(source.iterdir()):
            wanted = (
                file.suffix in _FILES and file.name not in _LEFT_OUT and not overlay.is_weights(file.name)
            )
            if wanted and file.is_file() and not (part / file.name).exists():
                shutil.copyfile(file, part / file.name)
