"""`llmc eval`: an artifact's answers on data, or its perplexity, beside those of a baseline."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import click

from llmc.cli.output import json_option, print_json, print_table, printable, require_artifact
from llmc.cli.verbosity import is_quiet
from llmc.errors import LlmcError, LlmcWarning, TextsCut

_EPILOG = """\b
Examples:
  llmc eval small.llmc --data test.csv                                accuracy
  llmc eval small.llmc --data test.csv --baseline ./my-model          and the same rows by PyTorch
  llmc eval small.llmc --data test.jsonl --baseline dense.llmc --max-drop 1%
  llmc eval small.llmc --data test.csv --baseline dense.llmc --slice-by language --max-drop 2% --each-slice
  llmc eval embedder.llmc --data lines.txt --baseline ./my-model --min-cosine 0.99
  llmc eval classifier.llmc --data photos/                             images in a folder for each class
  llmc eval classifier.llmc --data test.jsonl --baseline ./my-model    {"image": "cat.jpg", "label": "cat"}
  llmc eval m.llmc --data d.tsv --text-column body --label-column stars --json
  llmc eval writer.llmc --data book.txt --baseline ./my-model --max-rise 0.5%   perplexity
  llmc eval translator.llmc --data pairs.tsv --baseline ./my-model --max-drop 0.5%   chrF, ROUGE

\b
DATA is .jsonl, .csv, .tsv (a column of texts, one of labels: names or numbers from 0) or .txt (a text a line). For
models of images or sounds the column has paths, from the table's folder on, and a folder of folders will do.
Of a model that generates text it is the perplexity of a .txt file, or of all texts of a table, that is measured; of one
that makes a text of another, chrF and ROUGE of what it makes of a column of sources, beside one of references.
Judge by the difference with its interval, not by two accuracies: both models see the same rows. Exit code 1
if a limit is broken.
"""


class Share(click.ParamType[float]):
    """A share such as `1%` or `0.01`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", str(value).strip())
        if not found or float(found[1]) > (100 if found[2] else 1):
            self.fail(f"{value!r} is not a share; write 1% or 0.01", param, ctx)
        return float(found[1]) / (100 if found[2] else 1)


@click.command(
    "eval", epilog=_EPILOG, short_help="Measure an artifact's accuracy on data, beside a baseline."
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Texts or files, with labels if there are."
)
@click.option(
    "--baseline",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="Another artifact, or a model folder.",
)
@click.option("--text-column", "text", metavar="NAME", help="Column of the text or file.  [default: guessed]")
@click.option("--pair-column", "pair", metavar="NAME", help="Column of the second text.  [default: guessed]")
@click.option(
    "--label-column", "label", metavar="NAME", help="Column of the label or reference.  [default: guessed]"
)
@click.option(
    "--slice-by", metavar="NAME", help="Measure the rows of each value of this column for themselves, too."
)
@click.option("--max-drop", type=Share(), help="Most accuracy that may be lost to the baseline: 1%.")
@click.option("--min-accuracy", type=Share(), help="Least accuracy.")
@click.option("--min-agreement", type=Share(), help="Least share of answers equal to the baseline's.")
@click.option("--min-cosine", type=Share(), help="Least mean cosine to the baseline's embeddings.")
@click.option("--each-slice", is_flag=True, help="Each slice has to keep these limits, too.")
@click.option(
    "--slice-rows",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help="Of slices with fewer rows no limit is asked.  [default: 1]",
)
@click.option(
    "--strict", is_flag=True, help="A text longer than the artifact takes is an error; it is cut otherwise."
)
@click.option(
    "--window", type=int, metavar="TOKENS", help="Of a text seen at once.  [default: 1024, or the bound]"
)
@click.option("--stride", type=int, metavar="TOKENS", help="From window to window.  [default: half of one]")
@click.option(
    "--adapter", metavar="NAME", help="Of those beside the model, the baseline without.  [default: none]"
)
@click.option("--max-rise", type=Share(), help="Most perplexity above the baseline's: 1%.")
@click.option("--num-beams", type=int, help="Of texts made of others.  [default: the model's, mostly 1]")
@click.option("--max-new-tokens", type=int, help="Of each.  [default: the model's]")
@click.option("--src-lang", help="The sources' language.")
@click.option("--tgt-lang", help="The texts' language.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="ROWS", help="Stop after so many rows, or tokens."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: the runtime's]")
@json_option
def command(artifact: Path, data: Path, baseline: Path | None, as_json: bool, **options: Any) -> None:
    """Run ARTIFACT over the rows of a file and count: accuracy, agreement with a baseline, paired difference."""
    require_artifact(artifact)
    if baseline is not None and not baseline.is_dir():
        from llmc.compiler.frontends.hub import download_hint

        hint = download_hint(baseline) or "give an artifact or a model folder"
        raise LlmcError("the baseline was not found", at=str(baseline), hint=hint)
    of_texts = {name: options.pop(name) for name in ("window", "stride", "max_rise", "adapter")}
    of_pairs = {name: options.pop(name) for name in _OF_PAIRS}
    kind = _generates(artifact)
    if kind == "pairs":
        others = {
            name: value for name, value in {**of_texts, **options}.items() if name not in _OF_REFERENCES
        }
        _want_none(artifact, others, "not for models that make a text of another")
        _nearness(artifact, data, baseline, as_json, {**of_pairs, **options})
        return
    _want_none(artifact, of_pairs, "for models that make a text of another")
    if kind == "texts":
        _perplexity(artifact, data, baseline, as_json, of_texts, options)
        return
    if used := [f"--{name.replace('_', '-')}" for name, value in of_texts.items() if value is not None]:
        raise LlmcError(f"{', '.join(used)} is for models that generate text", at=str(artifact))
    from llmc.evaluate import Limits, evaluate

    limits = Limits(**_limits(options))
    found = evaluate(artifact, data, baseline, limits=limits, progress=_progress(), **options)
    if as_json:
        print_json(found.to_dict())
    else:
        print_table("", ["measure", ">value", "95 % interval"], _lines(found))
        _show_classes(found)
        _show_slices(found)
        for what, why in found.not_measured.items():
            click.echo(printable(f"not measured: {what}: {why}"))
    _warn(found)
    if found.broken:
        raise LlmcError(f"a limit is broken: {'; '.join(found.broken)}", at=str(artifact))


_LIMITS = ("max_drop", "min_accuracy", "min_agreement", "min_cosine")


def _limits(options: dict[str, Any]) -> dict[str, Any]:
    """Taken out of the options."""
    found = {name: options.pop(name) for name in _LIMITS}
    each, rows = options.pop("each_slice"), options.pop("slice_rows")
    if each and all(value is None for value in found.values()):
        hint = ", ".join(f"--{name.replace('_', '-')}" for name in _LIMITS)
        raise click.UsageError(f"--each-slice is for limits: {hint}.")
    if rows is not None and not each:
        raise click.UsageError("--slice-rows is for --each-slice.")
    return {**found, "each_slice": each, "slice_rows": rows or 1}


def _generates(artifact: Path) -> str:
    """Whether the model goes on with "texts", makes one of another, "pairs", or neither, "".

    By a glance at the manifest; whoever opens the artifact checks it.
    """
    try:
        fields = json.loads((artifact / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    entry = fields.get("generation") if isinstance(fields, dict) else None
    if not isinstance(entry, dict):
        return ""
    return "pairs" if "encoder" in entry and "speech" not in entry else "texts"


_OF_PAIRS = (
    "num_beams",
    "max_new_tokens",
    "src_lang",
    "tgt_lang",
)  # options of models that make a text of another
_OF_REFERENCES = (
    "text",
    "label",
    "limit",
    "threads",
    "strict",
    "max_drop",
    "min_agreement",
)  # and others they have
_OF_TEXTS = ("text", "limit", "threads")  # options that perplexity has too


def _perplexity(
    artifact: Path,
    data: Path,
    baseline: Path | None,
    as_json: bool,
    of_texts: dict[str, Any],
    options: dict[str, Any],
) -> None:
    if used := [f"--{n.replace('_', '-')}" for n, v in options.items() if v and n not in _OF_TEXTS]:
        raise LlmcError(f"{', '.join(used)} is not for models that generate text", at=str(artifact))
    from llmc.perplexity import perplexity

    shared = {"column": options["text"], "limit": options["limit"], "threads": options["threads"]}
    found = perplexity(artifact, data, baseline, progress=_progress("tokens"), **of_texts, **shared)
    if as_json:
        print_json(found.to_dict())
    else:
        rows = [("tokens", f"{found.tokens}, windows of {found.window} every {found.stride}")]
        rows += [("perplexity", f"{found.perplexity:.4f}")]
        if found.baseline_perplexity is not None and found.rise is not None:
            rows.append(("baseline's perplexity", f"{found.baseline_perplexity:.4f}"))
            rows.append(("rise", f"{round(100 * found.rise, 3) + 0.0:+.3f} %"))  # no "-0.000"
        print_table("", ["measure", ">value"], rows)
    if found.broken:
        raise LlmcError(f"a limit is broken: {'; '.join(found.broken)}", at=str(artifact))


def _want_none(artifact: Path, options: dict[str, Any], who: str) -> None:
    """Refuse options of other models."""
    if used := [f"--{n.replace('_', '-')}" for n, v in options.items() if v not in (None, False)]:
        verb = "is" if len(used) == 1 else "are"
        raise LlmcError(f"{', '.join(used)} {verb} {who}", at=str(artifact))


def _nearness(
    artifact: Path, data: Path, baseline: Path | None, as_json: bool, options: dict[str, Any]
) -> None:
    from llmc.references import nearness

    given = {name: options[name] for name in (*_OF_PAIRS, *_OF_REFERENCES)}
    found = nearness(artifact, data, baseline, progress=_progress(), **given)
    if as_json:
        print_json(found.to_dict())
    else:
        print_table("", ["measure", ">value", "95 % interval"], _of_references(found))
    if found.cut:
        warnings.warn(TextsCut(found.cut, found.rows, hint="--strict makes it an error"), stacklevel=2)
    if found.broken:
        raise LlmcError(f"a limit is broken: {'; '.join(found.broken)}", at=str(artifact))


def _of_references(found: Any) -> list[tuple[str, str, str]]:
    lines = [("rows", str(found.rows), "")]
    for name, value in found.scores.items():
        lines.append((name, f"{value:.2f}", ""))
        if found.differences is not None:
            low, high = found.intervals[name]
            lines.append(("  baseline's", f"{found.baseline_scores[name]:.2f}", ""))
            lines.append(("  difference", f"{found.differences[name]:+.2f}", f"{low:+.2f} to {high:+.2f}"))
    if found.agreement is not None:
        lines.append(("same texts", f"{100 * found.agreement:.2f} %", ""))
    return lines


def _warn(found: Any) -> None:
    """What was not measured, and texts that were not seen whole."""
    if found.task != "sentence-embedding" and found.accuracy is None:
        warnings.warn(
            LlmcWarning("no accuracy: the data has no labels; --label-column NAME names them"), stacklevel=2
        )
    for who, count in (("", found.cut), ("baseline: ", found.baseline_cut)):
        if count:
            hint = "--strict makes it an error" if not who else ""
            warnings.warn(TextsCut(count, found.rows, who=who, hint=hint), stacklevel=2)


_CLASSES = 20  # that are shown
_OF_CLASSES = tuple(p + name for name in ("precision", "recall", "f1") for p in ("", "baseline_"))


def _show_classes(found: Any) -> None:
    """Precision, recall and F1 of each class, beside the baseline's."""
    if not found.classes:
        return
    names = [name for name in _OF_CLASSES if name in found.classes[0]]
    shown, more = found.classes, len(found.classes) - _CLASSES
    if more > 0:
        shown = sorted(shown, key=lambda one: float(one["f1"]))[:_CLASSES]
    columns = ["class", ">rows", *(f">{_title(name)}" for name in names)]
    rows = [(one["class"], one["rows"], *(_percent(one[name]) for name in names)) for one in shown]
    print_table("classes" if more <= 0 else "classes of the least F1", columns, rows)
    if more > 0:
        click.echo(f"... and {more} classes more; --json has all")


def _title(name: str) -> str:
    return name.replace("baseline_", "baseline's ").replace("f1", "F1").replace("_", " ")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _show_slices(found: Any) -> None:
    """The figures of each slice."""
    from llmc.measures import FEW

    if not found.slices:
        return
    shares = ("accuracy", "baseline_accuracy", "agreement")
    given = [
        name for name in (*shares, "difference", "cosine_mean", "cosine_min") if vars(found)[name] is not None
    ]
    spans = ["95 % interval"] if "difference" in given else []
    rows = [_slice_row(one, given, shares, FEW) for one in found.slices]
    columns = ["value", ">rows", *(f">{_title(name)}" for name in given), *spans, ""]
    print_table(f"slices by {found.slice_by}", columns, rows)


def _slice_row(one: Any, given: list[str], shares: tuple[str, ...], few: int) -> list[object]:
    row: list[object] = ["(none)" if one["value"] is None else one["value"], one["rows"]]
    for name in given:
        show = _points if name == "difference" else _percent if name in shares else "{:.5f}".format
        row.append(show(one[name]))
    if one["interval"] is not None:
        row.append(_span(one["interval"]))
    return [*row, f"fewer than {few} rows" if one["rows"] < few else ""]


def _points(value: float) -> str:
    return f"{100 * value:+.2f} points"


def _span(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:+.2f} to {100 * high:+.2f} points"


def _progress(what: str = "rows") -> Any:
    """How many are done, on stderr, each time they have doubled."""
    following = 256

    def show(rows: int) -> None:
        nonlocal following
        if rows >= following:
            following = 2 * rows
            if not is_quiet():
                click.echo(f"eval: {rows} {what}", err=True)

    return show


def _lines(found: Any) -> list[tuple[str, str, str]]:
    shares = {
        "accuracy": found.accuracy,
        "among the first five": found.top5,
        "baseline's accuracy": found.baseline_accuracy,
        "baseline's first five": found.baseline_top5,
        "same answers": found.agreement,
    }
    lines = [("rows", str(found.rows), "")]
    lines += [(name, f"{100 * value:.2f} %", "") for name, value in shares.items() if value is not None]
    if found.difference is not None:
        lines.append(("difference", _points(found.difference), _span(found.interval)))
        lines.append(("McNemar's p", f"{found.p_value:.3g}", ""))
    shares = {
        "macro F1": found.macro_f1,
        "baseline's macro F1": found.baseline_macro_f1,
        "calibration error": found.calibration_error,
        "  baseline's": found.baseline_calibration_error,
    }
    lines += [(name, f"{100 * value:.2f} %", "") for name, value in shares.items() if value is not None]
    if found.cosine_mean is not None:
        lines += [
            ("mean cosine", f"{found.cosine_mean:.5f}", ""),
            ("least cosine", f"{found.cosine_min:.5f}", ""),
        ]
    return lines
