"""`llmc recover`: a model folder -> the same, trained with zeros or rounding in place."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llmc.cli.output import Progress, Seconds, json_option, print_json, print_table, require_folder, time_text
from llmc.cli.verbosity import is_quiet
from llmc.errors import many

_EPILOG = """\b
Examples:
  llmc recover ./my-model --prune 2:4 --data train.tsv -o my-model-24
  llmc recover ./my-model --prune 0.5 --data texts.txt --time-budget 3m -o half     no labels needed
  llmc recover ./my-model --prune 0.5 --data train.tsv -o half --resume             after an interrupt
  llmc recover ./my-lm --quant w4 --data book.txt --max-seq 128 -o my-lm-w4
  llmc recover ./my-model --prune heads:0.25 --prune neurons:0.4 --data train.tsv -o my-model-small
  llmc recover ./my-lm --quant w4 --lora 8 --data book.txt -o my-adapter       trained beside weights that stay
  llmc recover ./my-model --bag 3 --data train.tsv -o members                        an ensemble's
  llmc recover ./my-model --prune 2:4 --data train.tsv --workers 2 -o my-model-24   by two workers of Ray's
  llmc recover ./my-model --layers 3 --data texts.txt -o my-model-3                  a smaller one, taught by MODEL
  llmc compile my-model-24 --prune 2:4 -o small.llmc                                the same zeros

\b
MODEL is a Hugging Face folder of a text classifier, of a model that gives a number for a text, or of a causal
language model; DATA is as for `llmc eval`. The student learns the answers of MODEL itself, and labels where there are
any. A tenth of the rows is held back and measured. Ctrl-C leaves a checkpoint beside the output, and no output.
"""


@click.command("recover", epilog=_EPILOG, short_help="Train a model for minutes, pruned or rounded.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--prune",
    metavar="SPEC",
    multiple=True,
    help="Zeros in place: 0.5, 2:4, 4x1:0.8, heads:0.25 and neurons:0.4, or options of the pass.",
)
@click.option(
    "--quant", type=click.Choice(["int8", "w4"]), help="Or rounding in place, as --quant of compile does."
)
@click.option(
    "--share", metavar="N", help="Or N values for each weight, as --share of compile does: 16, 256."
)
@click.option(
    "--layers", type=click.IntRange(min=1), help="Or every k-th layer alone, so that these are left."
)
@click.option(
    "--neurons",
    type=click.IntRange(min=1),
    help="Or feed-forward blocks so wide, of the most important neurons.",
)
@click.option(
    "--bag", type=click.IntRange(2, 64), metavar="N", help="Or N members of an ensemble, by bagging."
)
@click.option("--boost", type=click.IntRange(2, 64), metavar="N", help="Or N members, by boosting.")
@click.option(
    "--freeze",
    type=click.IntRange(min=0),
    metavar="N",
    help="Layers of members that stay, with the embeddings.  [default: two thirds]",
)
@click.option(
    "--lora",
    type=click.IntRange(1, 1024),
    metavar="RANK",
    help="Train an adapter beside what --prune, --quant or --share leave of a language model; OUT is that adapter.",
)
@click.option(
    "--importance",
    type=click.Choice(["gradients", "magnitude"]),
    default="gradients",
    show_default=True,
    help="What heads and neurons are chosen by: gradients on DATA, or weights alone.",
)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Texts, with labels or without.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--text-column", "text", metavar="NAME", help="Column of the text.  [default: guessed]")
@click.option("--pair-column", "pair", metavar="NAME", help="Column of the second text.  [default: guessed]")
@click.option("--label-column", "label", metavar="NAME", help="Column of the label.  [default: guessed]")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Steps at most.  [default: as many as the epochs have]"
)
@click.option("--epochs", type=click.IntRange(min=1), help="Times through the data at most.  [default: 3]")
@click.option(
    "--time-budget",
    "budget",
    type=Seconds(),
    metavar="TIME",
    help="Training at most: 3m. The schedule fits it.",
)
@click.option(
    "--lr", "rate", type=float, help="Largest learning rate.  [default: 1e-4; blocks 3e-4; --lora 1e-3]"
)
@click.option("--batch", type=click.IntRange(min=1), help="Rows of a step.  [default: 32; of text 8]")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of what is held back, and of the order."
)
@click.option(
    "--temperature", type=float, default=2.0, show_default=True, help="Softens the teacher's answers."
)
@click.option(
    "--alpha", type=float, help="Share of the teacher in the loss.  [default: 0.5; without labels 1]"
)
@click.option(
    "--hidden",
    type=float,
    default=1.0,
    show_default=True,
    help="Weight of what each layer gives; 0: left out.",
)
@click.option(
    "--ramp",
    type=float,
    help="Share of the training in which zeros become more.  [default: heads and neurons 0.3; others at once]",
)
@click.option(
    "--max-seq", type=click.IntRange(min=2), help="Tokens of a row.  [default: the model's, at most 256]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: PyTorch's]")
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Workers of a Ray cluster that share each step, or train members side by side.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu"]),
    default="auto",
    show_default=True,
    help="auto: on a GPU where there is one.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint that an interrupt left.")
@json_option
def command(model: Path, data: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Train MODEL for minutes with what compression does to it in place; writes a folder."""
    if sum(options[name] not in (None, ()) for name in (*_COMPRESSED, *_MEMBERS)) != 1:
        asked = ", ".join(f"--{name}" for name in (*_COMPRESSED, *_MEMBERS))
        raise click.UsageError(f"give one of {asked}: what to train for.")
    members = next((name for name in _MEMBERS if options[name]), None)
    require_folder(model, "a model folder")
    with Progress("recover") as progress:
        progress("loading PyTorch", 0.0)
        import torch

        from llmc.distillation import Columns
        from llmc.recover import Settings, recover

        columns = Columns(*(options.pop(name) for name in ("text", "pair", "label")))
        also: Any = {name: options.pop(name) for name in ("resume", "workers", "threads", "device")}
        if also["threads"] is not None:
            torch.set_num_threads(also["threads"])
        also |= {"columns": columns, "progress": progress, "say": progress.say}
        given: Any = (model, data, output, Settings(**options))
        if members:
            from llmc.members import train

            found: Any = train(*given, **also)
        else:
            found = recover(*given, **also)
    if as_json:
        print_json(found.to_dict())
    elif not is_quiet() and members:
        _show_members(found)
    elif not is_quiet():
        _show(model, found, options)


_MEMBERS = ("bag", "boost")
_COMPRESSED = {
    "prune": "pruned",
    "quant": "rounded",
    "share": "shared",
    "layers": "fewer layers",
    "neurons": "narrower",
}


def _show(model: Path, found: Any, options: Mapping[str, Any]) -> None:
    columns = ["", *(f">{name}" for name in vars(found.before) if getattr(found.before, name) is not None)]
    rows = [
        (title, *(_cell(name, value) for name, value in vars(figures).items() if value is not None))
        for title, figures in (
            ("before", found.before),
            (_COMPRESSED[next(name for name in _COMPRESSED if options[name])], found.compressed),
            ("recovered", found.recovered),
        )
    ]
    print_table(f"{found.held_rows} rows held back", columns, rows)
    click.echo(f"{many(found.steps, 'steps')} in {time_text(found.seconds)} on {found.trained_rows} rows")
    if options["prune"]:
        share = found.zeros / found.weights
        click.echo(f"{found.zeros} of {found.weights} weights are zero ({share:.1%})")
    asked = [f"--prune {shlex.quote(spec)}" for spec in options["prune"]]
    asked += [f"--{name} {shlex.quote(options[name])}" for name in ("quant", "share") if options[name]]
    whole = [str(found.path)] if not options["lora"] else [str(model), f"--adapter recovered={found.path}"]
    command = " ".join(["llmc compile", *whole, *asked, f"-o {found.path.name}.llmc"])
    click.echo(f"wrote {found.path}\n\nnext:  {command}")


def _show_members(found: Any) -> None:
    rows = [("before", _cell("accuracy", found.first), "")]
    for place, name in enumerate(found.members):
        weight = f"{found.weights[place]:.2f}" if found.weights else ""
        rows.append((name, _cell("accuracy", found.accuracy[place]), weight))
    rows += [(f"--ensemble {name}", _cell("accuracy", share), "") for name, share in found.together.items()]
    print_table(f"{found.judged_rows} rows held back", ["", ">accuracy", ">weight"], rows)
    click.echo(f"{many(found.steps, 'steps')} in {time_text(found.seconds)} on {found.trained_rows} rows")
    first, *others = (found.path / name for name in found.members)
    members = "".join(f" --member {other}" for other in others)
    joined = f"{members} --ensemble {found.best}" if others else ""  # boosting may end with the first
    command = f"llmc compile {first}{joined} -o {found.path.name}.llmc"
    click.echo(f"wrote {found.path}\n\nnext:  {command}")


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name in ("accuracy", "agreement") else f"{value:.4f}"
