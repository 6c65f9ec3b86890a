"""`llmc run`: an artifact on texts or arrays, or its self-test."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llmc.cli import generate, speech
from llmc.cli.arrays import read_input, save, show_arrays
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
  llmc run classifier.llmc --image cat.jpg --image photos/         files, or all images of a folder
  llmc run clip.llmc --image cat.jpg --text "a cat" --text "a dog" which text fits
  llmc run detector.llmc --image street.jpg --threshold 0.8
  llmc run speech.llmc --audio hello.wav --language en --timestamps
  llmc run my-model.llmc --input input_ids=ids.npy --output out.npz
  llmc run decoder.llmc --function step --past 16 --input input_ids=ids.npy
  llmc run my-model.llmc --selftest
  llmc run writer.llmc --prompt "Once upon a time" --stream --max-new-tokens 100
  llmc run writer.llmc --prompt-file question.txt --do-sample --temperature 0.7 --seed 1 --json
  llmc run writer.llmc --chat                                      a conversation, a line each
  llmc run seer.llmc --prompt "<image> What is this?" --image photo.jpg

\b
What is printed follows the model's task: embeddings, labels with probabilities, labelled tokens, the answer's
span, the words that fit the mask; of images labels, objects with boxes in pixels, areas or depths; of sounds
labels or what was said. --json and --output give everything. A text that is no UTF-8, or that
the tokenizer cannot take, or a file that cannot be read, is named on stderr; the others run, and the exit
code is 1. There may be any number
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
@click.option(
    "--prompt",
    metavar="TEXT|NAME",
    help="A text to continue, - reads stdin; with --text, of the model's prompts this one.",
)
@generate.options
@click.option(
    "--strict", is_flag=True, help="A text longer than the model takes cannot be run; it is cut otherwise."
)
@click.option(
    "--image", "images", metavar="FILE", multiple=True, help="An image, or a folder of images; repeatable."
)
@click.option("--audio", metavar="FILE", multiple=True, help="A sound, or a folder of sounds; repeatable.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Least score of an object.  [default: 0.5]")
@click.option(
    "--resample", is_flag=True, help="Convert sounds at another rate than the model's (needs soxr)."
)
@speech.options
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
    images: tuple[str, ...],
    audio: tuple[str, ...],
    threshold: float | None,
    resample: bool,
    inputs: tuple[str, ...],
    output: Path | None,
    function: str | None,
    past: int | None,
    threads: int | None,
    variant: str | None,
    selftest: bool,
    no_check: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run ARTIFACT on texts, images, sounds, NumPy arrays, a prompt, or on its own recorded samples."""
    asked = {"text": texts, "image": images, "audio": audio, "input": inputs, "selftest": selftest}
    spoken = speech.given(settings)
    continues = prompt is not None and not (texts or audio)
    if settings["chat"] or settings["prompt_files"] or continues:
        others = {"pair": pairs, "strict": strict, "threshold": threshold, "resample": resample, **spoken}
        generate.want_alone(
            {**asked, "image": (), **others, "output": output, "function": function, "past": past}
        )
        model = _with_assistant(artifact, settings, threads, variant, no_check)
        generate.run(model, prompt, images, as_json, settings)
        return
    generate.want_none(settings)
    _want_sense(
        asked,
        {
            "text": {"prompt": prompt, "pair": pairs or None, "strict": strict or None},
            "image": {"threshold": threshold},
            "audio": {"resample": resample or None, **spoken},
            "input": {"function": function, "past": past},
        },
    )
    lines = read_lines(texts, pairs)
    model = _opened(artifact, threads, variant, no_check)
    if selftest:
        _selftest(model, as_json)
    elif inputs:
        arrays = dict(map(read_input, inputs))
        outputs = _in_session(model, function, past, arrays)
        show_arrays(outputs, output, as_json)
    elif images and _describes(model):
        generate.run(model, "", images, as_json, settings)
    elif images:
        _media().run_images(model, images, _texts_beside(lines), threshold, _media().Told(as_json, output))
    elif audio:
        _media().run_audio(model, audio, resample, _media().Told(as_json, output), spoken)
    else:
        _run_texts(model, lines, prompt, strict, output, as_json)


def _describes(model: Any) -> bool:
    """Whether the model makes a text of an image alone."""
    entry = model.manifest.generation if model.generates else None
    return entry is not None and entry.encoder is not None and entry.speech is None


def _media() -> Any:
    from llmc.cli import media

    return media


def _texts_beside(lines: list[Line]) -> tuple[str, ...]:
    """The texts that images are compared with, each of which must be there."""
    want_all(lines)
    return tuple(line.text for line in lines)


def _with_assistant(
    artifact: Path, settings: dict[str, Any], threads: int | None, variant: str | None, no_check: bool
) -> Any:
    """The model; its assistant, which works with the same threads, goes into the settings in place of its path."""
    if settings["assistant_model"] is None:
        return _opened(artifact, threads, variant, no_check)
    from llmc.runtime import Threads

    shared = Threads(threads)
    settings["assistant_model"] = _opened(Path(settings["assistant_model"]), shared, None, no_check)
    return _opened(artifact, shared, variant, no_check)


def _opened(artifact: Path, threads: Any, variant: str | None, no_check: bool) -> Any:
    require_artifact(artifact)

    import llmc

    model = llmc.load(artifact, threads=threads, variant=variant, check_weights=not no_check)
    say(f"{artifact}: threads {model.threads}, code {model.variant}")
    return model


def _want_sense(given: dict[str, Any], settings: dict[str, dict[str, Any]]) -> None:
    """One kind of input, or images and texts, and no setting of another kind."""
    kinds = {name for name, value in given.items() if value}
    if len(kinds) != 1 and kinds != {"text", "image"}:
        raise click.UsageError("Give one of --text, --prompt, --image, --audio, --input or --selftest.")
    for kind, options in settings.items():
        used = [name for name, value in options.items() if value is not None]
        if used and (kind not in kinds or (kind == "text" and "image" in kinds)):
            *first, last = (f"--{name}" for name in options)
            verb = "go" if first else "goes"
            names = f"{', '.join(first)} and {last}" if first else last
            raise click.UsageError(f"{names} {verb} with --{kind}.")


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


def _run_texts(
    model: Any, lines: list[Line], prompt: str | None, strict: bool, output: Path | None, as_json: bool
) -> None:
    """Answers in the order of the texts; those that cannot be run come as an error, after the others."""
    if model.generates and model.manifest.generation.speech is not None:
        raise LlmcError("the model writes down speech", at=str(model.path), hint="give a sound: --audio FILE")
    if model.generates:
        raise LlmcError("the model continues texts", at=str(model.path), hint="give the text by --prompt")
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
        save(parts[0] if len(parts) == 1 else joined(model, parts), output)
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
