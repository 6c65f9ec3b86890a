"""What compression takes from a model, won back: it is trained for minutes, held to its zeros, on its own answers."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import overlay, plain_folder
from llmc.compiler.frontends.folder import Summary, inspect, require_tokenizer
from llmc.compiler.frontends.tasks import GENERATION, SCORING, scores_of
from llmc.dataset import Row, label_index, read_rows
from llmc.distillation import Distillation, Example, Examples, Figures, Measure
from llmc.errors import LlmcError, TextsCut
from llmc.masks import Masks, graph_of, hold, prune_of
from llmc.training import Plan, Training

CLASSIFYING = "text-classification"
LEAST_ROWS, EPOCHS = 20, 3
MAX_SEQ = 256  # tokens of a row, where nothing else is asked for
_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_LEFT_OUT = ("config.json", "adapter_config.json", "trainer_state.json")


@dataclass(frozen=True)
class Settings:
    """How to train; None: what suits the task.

    Args:
        prune: the zeros to hold, as `--prune` writes them.
        steps, epochs, budget: the training ends with the first of them; `budget` is in seconds.
        alpha: share of the teacher's answers in the loss, the rest is the labels'; None: 1 without labels, else 0.5.
        max_seq: tokens of a row; longer ones are cut.
        ramp: share of the training in which zeros become more, up to what was asked for.
    """

    prune: str
    steps: int | None = None
    epochs: int | None = None
    budget: float | None = None
    rate: float = 1e-4
    batch: int | None = None
    seed: int = 0
    temperature: float = 2.0
    alpha: float | None = None
    hidden: float = 1.0
    ramp: float = 0.3
    max_seq: int | None = None

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--alpha", self.alpha, 0.0, 1.0),
            ("--hidden", self.hidden, 0.0, 1e6),
            ("--ramp", self.ramp, 0.0, 0.9),
            ("--temperature", self.temperature, 0.01, 100.0),
            ("--lr", self.rate, 1e-12, 1.0),
        ):
            if value is not None and not least <= value <= most:
                raise LlmcError(f"{name} is {value:g}, must be within {least:g} to {most:g}")


@dataclass(frozen=True)
class Recovery:
    """What was done.

    Args:
        trained_rows, held_rows: rows to learn from, and those kept back, which the figures are of.
        zeros, weights: of the weights that can be pruned, how many are zero.
        seconds: of training alone.
        before, pruned, recovered: the figures of the original, of it with the zeros, and of what was written.
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
    pruned: Figures
    recovered: Figures

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class Columns:
    """Names of columns; guessed where they are None."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


def recover(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    columns: Columns | None = None,
    resume: bool = False,
    progress: Callable[[str, float], None] = lambda stage, done: None,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> Recovery:
    """Train a model with its zeros in place, and write it as a folder of Hugging Face.

    Dropout stays off, tables and what `prune` cannot choose of them stay as they are; all other weights are trained.

    Args:
        model: a Hugging Face folder of a text classifier or a causal language model.
        data: texts with or without labels; of a language model text alone.
        output: the folder to write; checkpoints are beside it until it is written.
        resume: go on from the checkpoint.
        progress: gets a stage and the share that is done.
        clock: what `Settings.budget` is measured by.

    Raises:
        LlmcError: the model, the data or an option is of no use, or the loss is no number. Nothing is written then.
    """
    output, data = Path(output), Path(data)
    folder = output.parent / f"{output.name}.checkpoint"
    _want_room(output, folder, resume)
    change = prune_of(settings.prune)
    progress("import the model", 0.0)
    with _loaded(Path(model)) as (source, summary, student):
        progress("read the data", 0.02)
        examples, held = _examples(summary, student, data, columns or Columns(), settings)
        alpha = _alpha(settings.alpha, examples, data)
        masks = Masks(change, student, graph_of(source, summary.task.name))
        teacher = copy.deepcopy(student)
        batch = settings.batch or (8 if examples.scores == "tokens" else 32)
        measure = Measure(held, batch)
        progress("measure", 0.04)
        before = measure(teacher)
        hold(masks.weights, masks.at())
        pruned = measure(student)
        student.load_state_dict(teacher.state_dict())
        _let_train(student, masks)
        loss = Distillation(student, teacher, examples, alpha, settings.temperature, settings.hidden)
        plan = _plan(settings, len(examples.rows), batch, clock)
        training = Training(
            student, loss, examples.lengths, masks, plan, folder, _key(settings, teacher, examples)
        )
        if resume:
            training.resume()
        training.run(lambda stage, done: progress(stage, 0.1 + 0.85 * done), say)
        progress("measure", 0.95)
        recovered = measure(student)
        for weight in masks.weights.values():
            weight.data.add_(0.0)  # -0 becomes 0, as `prune` writes it
        zeros = sum(int((weight == 0).sum()) for weight in masks.weights.values())
        progress("write the folder", 0.98)
        _write(student, source, output)
    training.remove()
    counts = len(examples.rows), len(held.rows), training.step, training.seconds, zeros, masks.count
    return Recovery(output, summary.task.name, *counts, before, pruned, recovered)


def _want_room(output: Path, folder: Path, resume: bool) -> None:
    if os.path.lexists(output):
        raise LlmcError("the output exists", at=str(output), hint="give another name, or remove it")
    if not output.absolute().parent.is_dir():
        raise LlmcError("the folder to write into does not exist", at=str(output.parent))
    if folder.exists() and not resume:
        raise LlmcError(
            "a checkpoint of an earlier training is there",
            at=str(folder),
            hint="--resume goes on from it; or remove it",
        )


@contextmanager
def _loaded(path: Path) -> Iterator[tuple[Path, Summary, Any]]:
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


def _let_train(model: Any, masks: Masks) -> None:
    """All floats but the tables, unless a product reads one and loses weights of it."""
    import torch

    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    chosen = {id(weight) for weight in masks.weights.values()}
    for weight in model.parameters():
        weight.requires_grad_(
            weight.is_floating_point() and (id(weight) not in tables or id(weight) in chosen)
        )


def _plan(settings: Settings, rows: int, batch: int, clock: Callable[[], float]) -> Plan:
    per_epoch = -(-rows // batch)
    by_epochs = (settings.epochs or EPOCHS) * per_epoch
    steps = settings.steps or by_epochs
    if settings.epochs is not None:
        steps = min(steps, by_epochs)
    return Plan(steps, batch, settings.rate, settings.seed, settings.ramp, settings.budget, clock)


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


def _key(settings: Settings, teacher: Any, examples: Examples) -> str:
    """Of all that a training's result depends on, but the time it has."""
    made = hashlib.blake2b(json.dumps(asdict(replace(settings, budget=None))).encode())
    for name, value in teacher.state_dict().items():
        made.update(name.encode())
        made.update(value.numpy().tobytes())
    for row in examples.rows:
        made.update(repr(row).encode())
    return made.hexdigest()


# --- data


def _examples(
    summary: Summary, model: Any, data: Path, columns: Columns, settings: Settings
) -> tuple[Examples, Examples]:
    """Rows to learn from, and a tenth of all that is held back."""
    import inspect as signatures

    from llmc.compiler.frontends.huggingface import tokenizer_of
    from llmc.compiler.frontends.quiet import quiet
    from llmc.tokens import encoder_of

    require_tokenizer(summary)
    with quiet():
        tokenizer = tokenizer_of(summary)
    assert tokenizer is not None
    longest = min(tokenizer.max_length, summary.max_positions, settings.max_seq or MAX_SEQ)
    encoder = encoder_of(tokenizer, longest)
    if summary.task.name == CLASSIFYING:
        scores = scores_of(summary.config, CLASSIFYING, len(summary.labels), str(summary.root)) or "softmax"
        rows = _of_rows(encoder, data, columns, summary.labels, scores)
    else:
        scores, rows = "tokens", _windows(encoder, data, columns.text, longest)
    if len(rows) < LEAST_ROWS:
        what = "windows of tokens" if scores == "tokens" else "rows"
        raise LlmcError(
            f"the data has {len(rows)} {what}, recovery needs {LEAST_ROWS} at least", at=str(data)
        )
    takes = signatures.signature(model.forward).parameters
    inputs = [name for name in ("input_ids", "attention_mask") if name in takes]
    if "token_type_ids" in takes and "token_type_ids" in tokenizer.inputs:
        inputs.append("token_type_ids")
    random.Random(settings.seed).shuffle(rows)
    held = max(2, len(rows) // 10)
    made = Examples(rows[held:], inputs, tokenizer.pad_id, scores)
    return made, replace(made, rows=rows[:held])


def _of_rows(encoder: Any, data: Path, columns: Columns, labels: Sequence[str], scores: str) -> list[Example]:
    found, cut = [], 0
    for row in read_rows(data, columns.text, columns.pair, columns.label):
        at = f"{data}, line {row.line}"
        try:
            (encoding,) = encoder([row.text if row.pair is None else (row.text, row.pair)])
        except LlmcError as error:
            raise LlmcError(error.problem, at=at) from None
        cut += bool(encoding.overflowing)
        if encoding.ids:
            label = _label(at, row, labels, scores)
            found.append(Example(tuple(encoding.ids), tuple(encoding.type_ids), label))
    if cut:
        warnings.warn(TextsCut(cut, len(found), encoder.longest, hint="see --max-seq"), stacklevel=2)
    return found


def _label(at: str, row: Row, labels: Sequence[str], scores: str) -> float | None:
    if row.label is None or scores == "sigmoid":
        return None
    if scores == "softmax":
        return label_index(at, row.label, labels, len(labels))
    try:
        return float(row.label)
    except (TypeError, ValueError):
        raise LlmcError(
            "the label of a model that gives numbers is none", at=at, found=repr(row.label)[:60]
        ) from None


def _windows(encoder: Any, data: Path, column: str | None, longest: int) -> list[Example]:
    """A text as rows of equal length; what is left at its end has no row of its own."""
    from llmc.perplexity import text_of

    ids = encoder.ids(text_of(data, column), special=False)
    starts = range(0, len(ids) - longest + 1, longest) if len(ids) >= longest * LEAST_ROWS else ()
    if not starts:
        raise LlmcError(
            f"the data has {len(ids)} tokens, recovery needs {LEAST_ROWS} windows of {longest}",
            at=str(data),
            hint="give more text, or a smaller --max-seq",
        )
    return [Example(tuple(ids[start : start + longest]), (0,) * longest) for start in starts]


# --- the folder


def _write(model: Any, source: Path, output: Path) -> None:
    """The model and the other files of its folder, under a temporary name until all is there."""
    from llmc.compiler.frontends.quiet import quiet

    part = output.parent / f".{output.name}.{secrets.token_hex(4)}.part"
    try:
        part.mkdir()
        with quiet():
            model.save_pretrained(part)
        for file in sorted(source.iterdir()):
            wanted = (
                file.suffix in _FILES and file.name not in _LEFT_OUT and not overlay.is_weights(file.name)
            )
            if wanted and file.is_file() and not (part / file.name).exists():
                shutil.copyfile(file, part / file.name)
        part.rename(output)
    except OSError as error:
        raise LlmcError(f"cannot write the folder: {error.strerror or error}", at=str(output)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
