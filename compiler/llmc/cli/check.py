"""`llmc check`: will it compile, for which targets and precisions, and how large will it be."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmc.cli import values
from llmc.cli.fixed_dims import dim_option
from llmc.cli.output import (
    adapter_options,
    extension_option,
    json_option,
    print_json,
    print_table,
    printable,
    size_text,
)

if TYPE_CHECKING:
    from llmc.foresight import Foresight

_EPILOG = """\b
Examples:
  llmc check ./my-model                        every target and precision
  llmc check ./my-model --target cuda --quant int8
  llmc check ./config-only --json              config.json alone is enough

\b
Nothing is compiled and no weight is read: the model is made with the shapes of config.json and a few of its layers
are traced. So numbers are not compared: `llmc compile` does that. Exit codes: 0 it will compile, 1 it will not,
2 there was an error, or only its\nweights can tell.
"""


@click.command("check", epilog=_EPILOG, short_help="Say whether a model will compile, before any work.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target", shell_complete=values.targets, help="As in `llmc compile`.  [default: x86, arm and cuda]"
)
@click.option(
    "--quant",
    type=click.Choice(["none", "fp16", "bf16", "bf16a16", "int8", "int8-static", "w8", "w4", "w4a8"]),
    help="This precision.",
)
@click.option(
    "--group", type=click.IntRange(min=0), metavar="COLUMNS", help="As in `llmc compile`, of w8, w4 and w4a8."
)
@click.option("--zero-points", is_flag=True, help="Likewise.")
@click.option(
    "--task", default="auto", show_default=True, shell_complete=values.tasks, help="What to compute."
)
@click.option("--max-seq", type=click.IntRange(min=1), help="Upper bound of the sequence.")
@dim_option
@adapter_options
@extension_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    target: str | None,
    quant: str | None,
    group: int | None,
    zero_points: bool,
    task: str,
    max_seq: int | None,
    dims: dict[str, Any] | None,
    fixed: dict[str, Any] | None,
    base: Path | None,
    adapter: Path | None,
    as_json: bool,
) -> None:
    """Say whether MODEL will compile, for which targets and precisions, and how large it will be."""
    from llmc.cli import show_error
    from llmc.compiler.frontends.uncollected import uncollected
    from llmc.errors import LlmcError
    from llmc.foresight import foresee

    targets = [target] if target else ["x86", "arm", "cuda"]
    try:
        modes = _modes(quant, group, zero_points)
        with uncollected():
            found = foresee(model, task, max_seq, targets, base, adapter, dims, fixed, group, zero_points)
    except LlmcError as error:
        show_error(error)
        ctx.exit(2)
    wanted = [(t, q) for t in targets for q in (modes or found.precisions[t])]
    verdicts = {t: {q: found.serves(t, q) for u, q in wanted if u == t} for t in targets}
    if as_json:
        print_json({**asdict(found), "compiles": verdicts})
    else:
        _show(found, wanted)
    asked = all if quant else any  # without a wish, one way to compile is good news
    if not asked(found.serves(t, q) for t, q in wanted):
        ctx.exit(1 if found.certain else 2)


def _modes(quant: str | None, group: int | None, zero_points: bool) -> list[str]:
    """The precisions that are asked for; none: all that there are.

    Raises:
        LlmcError: there are no such groups in any of them.
    """
    if group is None and not zero_points:
        return [quant] if quant else []
    from llmc.errors import LlmcError
    from llmc.foresight import STORED
    from llmc.quantisation import Quantisation

    taken, refusals = [], list[LlmcError]()
    for mode in [quant] if quant else STORED:
        calib = "auto" if mode == "int8-static" else None
        try:
            taken.append(Quantisation(mode, calib, group=group, zero_points=zero_points).mode)
        except LlmcError as error:
            refusals.append(error)
    if not taken:
        raise refusals[0]
    return taken


def _show(found: Foresight, wanted: list[tuple[str, str]]) -> None:
    depth = f", {found.layers[1]} of {found.layers[0]} layers looked at" if found.layers[0] else ""
    click.echo(printable(f"{found.architecture} for {found.task}: {found.parameters:,} parameters{depth}"))
    for name, kind in found.inputs.items():
        click.echo(printable(f"  {name}: {kind}"))
    for problem in found.problems:
        words = (
            "cannot be imported" if found.certain else "cannot be told without the weights, compile to see"
        )
        click.echo(printable(f"{words}: {problem}"))
    rows = [
        (
            target,
            quant,
            _verdict(found, target, quant),
            size_text(found.weights[quant]) if quant in found.weights else "",
        )
        for target, quant in wanted
    ]
    print_table("", ["target", "precision", "compiles", ">weights, about"], rows)
    for target, lacking in found.targets.items():
        for line in lacking:
            click.echo(printable(f"no kernel on {target}: {line}"))
    click.echo(f"compiling takes about {size_text(found.needed)} of memory")


def _verdict(found: Foresight, target: str, quant: str) -> str:
    from llmc.foresight import STORED

    if quant not in found.precisions[target]:
        return "no: the target has not this precision"
    if quant in found.idle.get(target, ()):
        return f"no: it {'is quantised already' if found.quantised else 'has nothing to quantise so'}"
    if found.keeps_states and quant == "int8-static":
        return "no: it does not calibrate functions that have states"
    if target in found.without_zeros and quant in STORED:
        return "no: the target has no kernels for groups with zero points"
    if not found.certain:
        return "unknown"
    return "yes" if found.serves(target, quant) else "no"
