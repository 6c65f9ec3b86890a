"""What every command prints with: JSON, tables, numbers with units, progress. rich is imported when used."""

from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from llmc.cli.verbosity import is_quiet
from llmc.errors import LlmcError

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")

no_check_option = click.option(
    "--no-check",
    is_flag=True,
    help="Do not read all of the weights first, to compare them with their checksums.",
)


def _load_extensions(ctx: click.Context, param: click.Parameter, files: tuple[str, ...]) -> None:
    """What is installed, then the files in the order given."""
    from importlib.metadata import entry_points

    if not files and not entry_points(group="llmc.extensions"):
        return  # the compiler need not be imported for that
    from llmc.compiler import extensions

    extensions.load_installed()
    for file in files:
        extensions.load(file)


extension_option = click.option(
    "-x",
    "--extension",
    "extensions",
    metavar="FILE",
    multiple=True,
    expose_value=False,
    callback=_load_extensions,
    help="Python file with ops, kernels, passes or targets of your own; repeatable.",
)


base_option = click.option(
    "--base",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The base model, where MODEL is a PEFT adapter.",
)


def adapter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--base` and `--adapter`, of commands that read a model's folder."""
    of_adapter = click.option(
        "--adapter",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="A PEFT adapter to merge into MODEL, its base.",
    )
    return base_option(of_adapter(command))


add_pass_option = click.option(
    "--add-pass",
    "add_passes",
    metavar="SPEC[@PLACE]",
    multiple=True,
    help="Passes more; `llmc passes` lists passes and places. Repeatable.  [default place: user]",
)


def quant_option(help: str) -> Callable[[Any], Any]:
    """`--quant`, with what a command says of it."""
    kinds = click.Choice(["none", "int8", "int8-static", "fp16", "bf16", "bf16a16", "w8", "w4", "w4a8"])
    return click.option("--quant", type=kinds, default="none", show_default=True, help=help)


def stats_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--calib-stats` and `--calib-merge`, of commands that calibrate."""
    kept = click.option(
        "--calib-stats",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Keep there what is gathered of --calib, and go on where a run was stopped.",
    )
    merged = click.option(
        "--calib-merge",
        metavar="DIR",
        type=click.Path(path_type=Path),
        multiple=True,
        help="What was gathered of another part of the data, to merge in; repeatable.",
    )
    return kept(merged(command))


def pass_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `llmc compile` that choose passes, of commands that run them and compile nothing."""
    for option in reversed(_PASS_OPTIONS):
        command = option(command)
    return command


_PASS_OPTIONS = (
    click.option("--target", default="native", show_default=True, help="As in `llmc compile`, and so below."),
    click.option("-O", "level", type=click.IntRange(0, 3), default=3, show_default=True, help="Level."),
    click.option("--passes", metavar="PIPELINE", help="A pipeline instead of the level's."),
    add_pass_option,
    click.option("--only-passes", metavar="PIPELINE", help="These passes and nothing else."),
    click.option("--prune", metavar="SPEC", multiple=True, help="See docs/compression.md."),
    click.option("--share", metavar="SPEC", help="See docs/compression.md."),
    click.option("--factorize", metavar="SPEC", help="See docs/compression.md."),
    quant_option("See docs/quantisation.md."),
    click.option("--attention", type=click.Choice(["int8", "float"]), default="int8", show_default=True),
    click.option("--group", type=click.IntRange(min=0), metavar="COLUMNS", help="Of w8, w4 and w4a8."),
    click.option("--zero-points", is_flag=True, help="Of w8, w4 and w4a8."),
    click.option("--calib", metavar="FILE|auto", help="Samples."),
    click.option("--matmul", type=click.Choice(["fma", "int8x3"]), default="fma", show_default=True),
    click.option(
        "--state-dtype", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True
    ),
)


_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    r"""The text on one line, without what a terminal would obey: a label of a model may be "\x1b[2J".

    Control characters, those that turn the direction of text and lone surrogates are written as Python does.
    """
    if text.isprintable() or not any(_obeyed(c) for c in text):
        return text
    return "".join(repr(c)[1:-1] if _obeyed(c) else c for c in text)


def _obeyed(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING


def print_json(value: Any) -> None:
    """`value` as indented JSON; NumPy numbers and arrays become numbers and lists."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return str(value)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; columns named with a leading `>` are aligned right. Without names, no header."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title), "table.title") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=any(columns),
    )
    for name in columns:
        table.add_column(
            name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    print_rich(table)


def print_rich(table: Any) -> None:
    """What rich draws: in colour on a terminal, elsewhere as plain lines."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    # Elsewhere than on a terminal rich would guess 80 columns and pad every line to its end.
    console = Console(width=160, highlight=False, no_color=True)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def size_text(count: float) -> str:
    """Bytes as 512 B, 3.1 kB, 5.9 MB (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def time_text(seconds: float) -> str:
    """Seconds as 12 us, 3.45 ms, 1.20 s."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


class Seconds(click.ParamType[float]):
    """A duration such as `3`, `3s`, `500ms` or `2m`, as seconds; 0 if `zero`."""

    name = "time"

    def __init__(self, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|)", str(value).strip())
        if not found or (float(found[1]) == 0 and not self._zero):
            self.fail(f"{value!r} is not a duration; write 3s, 500ms or 2m", param, ctx)
        return float(found[1]) * {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0}[found[2]]


class Counts(click.ParamType[list[int]]):
    """Whole numbers such as `128,512`."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text := str(value).replace(" ", "")):
            self.fail(f"{value!r} is not a list of numbers; write 128,512", param, ctx)
        return [int(number) for number in text.split(",")]


def require_folder(path: Path, what: str) -> Path:
    """`path` if it is a folder.

    Raises:
        LlmcError: it is missing or a file.
    """
    if path.is_dir():
        return path
    if path.exists():
        raise LlmcError(f"{what} is a folder, this is a file", at=str(path))
    raise LlmcError(f"{what} was not found", at=str(path), hint=_where(path, what))


def _where(path: Path, what: str) -> str | None:
    """How to find what was not found: a model may be a name on a hub, of another path some part exists."""
    from llmc.compiler.frontends.hub import download_hint

    if "model" in what and (hint := download_hint(path)):
        return hint
    nearest = next((p for p in path.parents if p.is_dir()), None)
    return f"{nearest} exists; what follows it does not" if nearest else None


def is_artifact(path: Path) -> bool:
    """Whether `path` is a folder that llmc wrote."""
    return (path / "manifest.json").is_file()


def require_artifact(path: Path) -> Path:
    """`path` if it is an artifact.

    Raises:
        LlmcError: it is missing, a file or another kind of folder.
    """
    require_folder(path, "an artifact")
    if is_artifact(path):
        return path
    if (path / "config.json").is_file():
        raise LlmcError(
            "this is a model folder, not an artifact",
            at=str(path),
            found="config.json, no manifest.json",
            hint=f"compile it first: llmc compile {path} -o {path.resolve().name}.llmc",
        )
    raise LlmcError("this folder is not an artifact", at=str(path), found="no manifest.json")


def lengths_of(model: Any) -> tuple[str, ...]:
    """The sizes that `--past` sets: those along which the model's states grow.

    Raises:
        LlmcError: it has no such state.
    """
    if model.lengths:
        return tuple(model.lengths)
    raise LlmcError("the model has no state that grows", at=str(model.path), hint="leave --past out")


class Progress:
    """Stages on stderr: a bar on a terminal, one line for each stage elsewhere; nothing if -q. Call it with both."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = time.perf_counter()
        self._stage = ""
        self._quiet = is_quiet()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self._quiet:
            self._open_bar()
        return self

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=1.0)

    def __call__(self, stage: str, fraction: float) -> None:
        """`stage` is under way and `fraction` of the whole, 0 to 1, is done."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._label}: {stage}", completed=fraction)
        elif stage != self._stage and not self._quiet:
            seconds = time.perf_counter() - self._start
            click.echo(f"{self._label}: {fraction:4.0%} {seconds:6.1f} s  {stage}", err=True)
        self._stage = stage

    def say(self, line: str) -> None:
        """A line of its own on stderr, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
