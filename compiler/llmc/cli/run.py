"""`llmc run`: an artifact on texts or arrays, or its self-test."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llmc.cli.lines import Line, encode, read_lines, want_all
from llmc.cli.output import json_option, lengths_of, no_check_option, print_json, require_artifact
from llmc.cli.verbosity import say
from llmc.errors import LlmcError, TextsCut

_ROWS = 32  # of a run: a larger batch is no faster a text
_EPILOG = """\b
Examples:
  llmc run my-model.llmc --text "a film to remember"
  llmc run my-model.llmc --text "first" --text "second" --json
  cat lines.txt | llmc run my-model.llmc --text -               one text a line, blank ones too
  llmc run embedder.llmc --prompt query --text "who wrote it?"
  llmc run qa.llmc --text "Who wrote it?" --pair "It was written by Ada."
  llmc run my-model.llmc --input input_ids=ids.npy --output out.npz
  llmc run decoder.llmc --function step --past 16 --input input_ids=ids.npy
  llmc run my-model.llmc --selftest

\b
What is printed follows the model's task: embeddings, labels with probabilities, labelled tokens, the answer's
span, or the words that fit the mask. --json and --output give everything. A text that is no UTF-8, or that
the tokenizer cannot take, is named on stderr; the others run, and the exit code is 1. There may be any number
of texts. Those longer than the model takes are cut, with a warning that counts them; --strict refuses them.
"""


@click.command("run", epilog=_EPILOG, short_help="Run an artifact on texts or arrays.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--text", "texts", multiple=True, help="A text; repeat it for a batch; - reads lines from stdin."
)
@click.option(
    "--pair", "pairs", multiple=True, help="The second text of each --text (the context of a question)."
)
@click.option("--prompt", metavar="NAME", help="Of the model's prompts this one.  [default: the model's]")
@click.option(
    "--strict", is_flag=True, help="A text longer than the model takes cannot be run; it is cut otherwise."
)
@click.option("--input", "inputs", metavar="NAME=FILE.npy", multiple=True, help="An input array; repeatable.")
@click.option(
    "--output", metavar="FILE.npz", type=click.Path(path_type=Path), help="Write the outputs there."
)
@click.option("--function", metavar="NAME", help="Of the model's functions this one.  [default: the first]")
@click.option(
    "--past", type=click.IntRange(min=0), help="Positions, zeros, that the states hold.  [default: 0]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: the runtime's]")
@click.option("--variant", help="Use this code variant rather than the best for the CPU.")
@click.option("--selftest", is_flag=True, help="Compare with the outputs recorded when it was compiled.")
@no_check_option
@json_option
def command(
    artifact: Path,
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    prompt: str | None,
    strict: bool,
    inputs: tuple[str, ...],
    output: Path | None,
    function: str | None,
    past: int | None,
    threads: int | None,
    variant: str | None,
    selftest: bool,
    no_check: bool,
    as_json: bool,
) -> None:
    """Run ARTIFACT on texts, on NumPy arrays, or on its own recorded samples."""
    if sum((bool(texts), bool(inputs), selftest)) != 1:
        raise click.UsageError("Give one of --text, --input or --selftest.")
    if (function or past is not None) and not inputs:
        raise click.UsageError("--function and --past go with --input.")
    if (prompt is not None or pairs or strict) and not texts:
        raise click.UsageError("--prompt, --pair and --strict go with --text.")
    lines = read_lines(texts, pairs)
    require_artifact(artifact)

    import llmc

    model = llmc.load(artifact, threads=threads, variant=variant, check_weights=not no_check)
    say(f"{artifact}: threads {model.threads}, code {model.variant}")
    if selftest:
        _selftest(model, as_json)
    elif inputs:
        arrays = dict(map(_read_input, inputs))
        outputs = _in_session(model, function, past, arrays)
        _show_arrays(outputs, output, as_json)
    else:
        _run_texts(model, lines, prompt, strict, output, as_json)


def _selftest(model: Any, as_json: bool) -> None:
    result = model.selftest()
    if as_json:
        facts = {"passed": result.passed, "cases": result.cases, "largest_error": result.largest_error}
        print_json({**facts, "failures": list(result.failures)})
    elif result.passed:
        click.echo(f"self-test passed: {result.cases} cases, largest difference {result.largest_error:.1e}")
    if not result.passed:
        raise LlmcError(
            "the self-test failed",
            at=str(model.path),
            found="; ".join(result.failures),
            hint="compile the model again; if it fails again, this is a bug in llmc",
        )


def _in_session(model: Any, function: str | None, past: int | None, arrays: dict[str, Any]) -> Any:
    """Run a function once, after `past` positions of zeros."""
    with model.session() as session:
        if past is not None:
            sizes = dict.fromkeys(lengths_of(model), past)
            session.resize(**sizes, **_sizes_of_states(model, function, arrays))
        return session.run(arrays, function=function)


def _sizes_of_states(model: Any, function: str | None, arrays: dict[str, Any]) -> dict[str, int]:
    """The sizes, other than lengths, that states and inputs have in common, as the inputs have them."""
    name = function or next(iter(model.functions))
    takes = model.functions[name].inputs if name in model.functions else {}
    wanted = {axis for state in model.states.values() for axis in state.shape if isinstance(axis, str)}
    return {
        axis: size
        for name, array in arrays.items()
        if name in takes
        for axis, size in zip(takes[name].shape, array.shape, strict=False)
        if axis in wanted and axis not in model.lengths
    }


def _show_arrays(outputs: Any, output: Path | None, as_json: bool) -> None:
    _save(outputs, output)
    if as_json:
        print_json(dict(outputs))
        return
    for name, array in outputs.items():
        flat = array.reshape(-1)
        shape = "x".join(map(str, array.shape))
        click.echo(f"{name} {array.dtype}[{shape}]  {' '.join(f'{v:.5g}' for v in flat[:6])} ...")


def _read_input(text: str) -> tuple[str, Any]:
    """`name=file.npy` as the name and the array."""
    import numpy as np

    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise click.UsageError(f"--input {text!r} is not NAME=FILE.npy.")
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise LlmcError("input file was not found", at=f"--input {name}", found=file) from error
    except (ValueError, EOFError, OSError) as error:
        hint = "save it with numpy.save(file, array)"
        raise LlmcError(
            "not a .npy file that can be read", at=f"--input {name}", found=str(error), hint=hint
        ) from error
    if not isinstance(array, np.ndarray):
        raise LlmcError("an input is one array in a .npy file", at=f"--input {name}", found="a .npz archive")
    return name, array


def _run_texts(
    model: Any, lines: list[Line], prompt: str | None, strict: bool, output: Path | None, as_json: bool
) -> None:
    """Answers in the order of the texts; those that cannot be run come as an error, after the others."""
    from llmc.cli import answers

    told: list[dict[str, Any]] = []
    seen: list[Line] = []
    parts: list[Any] = []
    order = _by_length(model, lines) if as_json and output is None else list(range(len(lines)))
    for chunk in _chunks(model, [lines[i] for i in order]):
        chunk, encoded = encode(model, chunk, prompt, strict)
        outputs = {} if encoded is None else model(**encoded.arrays)
        found = iter([] if encoded is None else answers.describe(model, encoded, outputs))
        here = [{"at": line.place, "error": line.problem} if line.problem else next(found) for line in chunk]
        seen += chunk
        if output is not None and encoded is not None:
            parts.append(outputs)
        if as_json:
            told += here
        else:
            answers.show([answer for answer in here if "error" not in answer])
    if parts:
        _save(parts[0] if len(parts) == 1 else joined(model, parts), output)
    if as_json:
        print_json(_in_place(told, order))
    _warn_of_cuts(model, sum(not line.problem for line in seen))
    want_all(_in_place(seen, order))


def _by_length(model: Any, lines: list[Line]) -> list[int]:
    """The lines to run one after the other: of embeddings the longest first, as `Model.encode` does.

    Lines without a letter stay among others: a batch of nothing else has no tokens.
    """
    places = list(range(len(lines)))
    if str(model.task) != "sentence-embedding" or not all(line.text.strip() for line in lines):
        return places
    return sorted(places, key=lambda i: -len(lines[i].text))


def _in_place(found: list[Any], order: list[int]) -> list[Any]:
    """What came in `order`, each where it was."""
    return [entry for _, entry in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]


def _chunks(model: Any, lines: list[Line]) -> Iterator[list[Line]]:
    """As many lines at a time as the model takes, and no more than are fast together."""
    from llmc.runtime.text import most_rows

    size = min(_ROWS, most_rows(model) or _ROWS)
    return (lines[i : i + size] for i in range(0, len(lines), size))


def joined(model: Any, parts: list[Any]) -> dict[str, Any]:
    """The outputs of all chunks; where they are by token, rows of a chunk of shorter texts are filled up with zeros.

    Raises:
        LlmcError: an output has no row for each text.
    """
    import numpy as np

    from llmc.runtime.text import most_rows

    axis = model.inputs["input_ids"].shape[0]
    for name in parts[0]:
        if model.outputs[name].shape[:1] != (axis,):
            problem = f"the output {name!r} has no row for each text, and a run takes {most_rows(model)}"
            raise LlmcError(
                problem, at="--output", found=f"{name} {model.outputs[name]}", hint="give fewer texts"
            )
    entry = model.manifest.tokenizer
    left = entry is not None and entry.padding_side == "left"

    def filled(array: Any, shape: tuple[int, ...]) -> Any:
        gaps = [(0, 0), *((0, to - size) for size, to in zip(array.shape[1:], shape, strict=True))]
        return np.pad(array, [gap[::-1] if left else gap for gap in gaps])

    found = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        shape = tuple(map(max, zip(*(a.shape[1:] for a in arrays), strict=True)))
        found[name] = np.concatenate([filled(a, shape) for a in arrays])
    return found


def _warn_of_cuts(model: Any, count: int) -> None:
    from llmc.runtime.text import Tokenizer

    tokenizer = Tokenizer.of(model)
    if tokenizer.cut_texts:
        hint = "--strict makes it an error"
        warnings.warn(TextsCut(tokenizer.cut_texts, count, tokenizer.longest, hint=hint), stacklevel=2)


def _save(outputs: Any, path: Path | None) -> None:
    """Write the outputs as .npz under a temporary name, then rename."""
    if path is None:
        return
    import numpy as np

    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, array in outputs.items():
                with archive.open(f"{_member(name)}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _member(name: str) -> str:
    """The name of an output as one in an archive: unpacked, it must not lie elsewhere."""
    leads_out = name.startswith("/") or ".." in name.split("/")
    return name.replace("%", "%25").replace("/", "%2F") if leads_out else name
