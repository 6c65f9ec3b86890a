"""`llmc run` on a model that generates: a prompt, the prompts of files, or a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from llmc.cli.output import print_json, printable
from llmc.cli.verbosity import say
from llmc.errors import LlmcError

_OPTIONS: Mapping[str, tuple[Any, str]] = {
    "max-new-tokens": (int, "Most new tokens.  [default: the model's, or 256]"),
    "min-new-tokens": (int, "Fewest new tokens."),
    "do-sample": (bool, "Draw tokens instead of taking the likeliest."),
    "temperature": (float, "Above 1: more even, below: more certain."),
    "top-k": (int, "Draw from so many of the likeliest tokens.  [default: 50]"),
    "top-p": (float, "Draw from the likeliest tokens that make up this share."),
    "min-p": (float, "Draw from tokens with this share of the likeliest one's probability."),
    "typical-p": (float, "Draw from the least surprising tokens that make up this share."),
    "repetition-penalty": (float, "Above 1: what has come comes less."),
    "presence-penalty": (float, "Taken off the logits of new tokens that have come."),
    "frequency-penalty": (float, "The same for each time that they have come."),
    "seed": (int, "The same seed draws the same text."),
    "num-beams": (
        int,
        "The likeliest text as a whole, by beam search over so many.  [default: the model's, mostly 1]",
    ),
    "no-repeat-ngram-size": (int, "So many tokens in a row come once and not again."),
    "src-lang": (str, "Of a model that translates, the prompt's language."),
    "tgt-lang": (str, "And the new text's."),
    "top-logprobs": (int, "With --json, so many of the likeliest tokens at each place."),
    "prompt-lookup-num-tokens": (int, "Guess so many tokens from the text so far; it stays the same."),
    "assistant-model": (
        str,
        "A smaller artifact with the same tokens guesses the next ones; the text stays the same.",
    ),
    "num-assistant-tokens": (int, "So many at a time.  [default: 5]"),
    "adapter": (str, "Of the model's adapters this one; `llmc inspect` lists them."),
    "json-schema": (str, "The text is JSON that fits this schema: a file, or the schema itself."),
    "regex": (str, "The whole text matches this regular expression."),
    "grammar": (str, "A file: the text is of this grammar, written as Lark's."),
}


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of a model that generates, but --prompt; a command gets what was given of them."""
    for name, (kind, told) in reversed(list(_OPTIONS.items())):
        flag = {"is_flag": True, "default": None} if kind is bool else {"type": kind}
        command = click.option(f"--{name}", help=told, **flag)(command)
    command = click.option(
        "--stop", "stop_strings", multiple=True, help="A text that ends the new one; repeatable."
    )(command)
    command = click.option("--stream", is_flag=True, help="Print the text as it comes.")(command)
    command = click.option("--chat", is_flag=True, help="Converse, by the model's chat template.")(command)
    place = click.Path(path_type=Path)
    command = click.option(
        "--prompt-file",
        "prompt_files",
        metavar="FILE",
        type=place,
        multiple=True,
        help="A prompt; repeatable.",
    )(command)
    return command


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, by the names of `Model.generate`; they are taken out of a command's settings."""
    names = [name.replace("-", "_") for name in _OPTIONS]
    found = {name: settings.pop(name) for name in names}
    found["stop_strings"] = list(settings.pop("stop_strings")) or None
    return {name: value for name, value in found.items() if value is not None}


def prompts(prompt: str | None, files: Sequence[Path]) -> list[str]:
    """The texts to continue; `-` is all of standard input.

    Raises:
        LlmcError: one cannot be read, or is no UTF-8.
    """
    found = [] if prompt is None else [sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt)]
    places = ["standard input" if prompt == "-" else "--prompt"][: len(found)]
    for file in files:
        try:
            found.append(file.read_bytes())
        except OSError as error:
            raise LlmcError(f"cannot read the prompt: {error.strerror or error}", at=str(file)) from None
        places.append(str(file))
    return [_text(raw, place) for raw, place in zip(found, places, strict=True)]


def _text(raw: bytes, place: str) -> str:
    try:
        return raw.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at {error.start + 1}"
        raise LlmcError("the prompt is not UTF-8", at=place, found=found) from None


def _with_files(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with a schema and a grammar instead of the names of their files.

    Raises:
        LlmcError: a file cannot be read, or is no UTF-8.
    """
    found = dict(options)
    if not found.get("json_schema", "{").lstrip().startswith(("{", "true", "false")):
        found["json_schema"] = _contents(found["json_schema"], "json-schema")
    if "grammar" in found:
        found["grammar"] = _contents(found["grammar"], "grammar")
    return found


def _contents(name: str, option: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LlmcError(f"cannot read --{option}: {told}", at=name) from None


def want_alone(others: dict[str, Any]) -> None:
    """Refuse other inputs beside a prompt."""
    idle = (type(None), bool, tuple)  # 0 is something given
    if used := [f"--{name}" for name, value in others.items() if value or not isinstance(value, idle)]:
        raise click.UsageError(f"{', '.join(used)} cannot go with a prompt that is continued.")


def want_none(settings: dict[str, Any]) -> None:
    """Refuse options of generation without a prompt."""
    used = [*given(dict(settings)), *(["stream"] if settings["stream"] else [])]
    if used:
        names = ", ".join(f"--{name.removesuffix('_strings').replace('_', '-')}" for name in used)
        verb = "goes" if len(used) == 1 else "go"
        raise click.UsageError(f"{names} {verb} with --prompt, --prompt-file or --chat.")


def run(
    model: Any, prompt: str | None, images: Sequence[str], as_json: bool, settings: dict[str, Any]
) -> None:
    """Continue texts, or converse.

    Args:
        images: of the prompt, or of what is said first.

    Raises:
        LlmcError: a prompt cannot be read, the model does not generate, or as `Model.generate`.
    """
    options = _with_files(given(settings))
    shown = _shown(images, settings)
    chat, stream = settings["chat"], settings["stream"]
    if as_json and stream:
        raise click.UsageError("--json prints whole texts, --stream pieces of them; give one.")
    texts = prompts(prompt, settings["prompt_files"])
    if as_json and not texts:
        raise click.UsageError("--json needs a --prompt: a conversation is printed as it comes.")
    if "num_beams" in options and (chat or stream):
        raise click.UsageError("--num-beams finds whole texts: it goes with neither --stream nor --chat.")
    if not texts:
        _converse(model, shown, options)
        return
    told = []
    for text in texts:
        made = _continued(model, text, chat, stream, {**options, **({"images": shown} if shown else {})})
        told.append(described(text, made))
        if not as_json and not stream:
            click.echo(visible(made.text))
    if as_json:
        print_json(told)


def _shown(images: Sequence[str], settings: dict[str, Any]) -> list[Path]:
    if images and settings["prompt_files"]:
        raise click.UsageError("--image goes with --prompt or --chat, not with --prompt-file.")
    if not images:
        return []
    from llmc.cli.media import files_of, image_suffixes

    return files_of(images, image_suffixes, "images")


def _said(text: str, images: Sequence[Path]) -> Any:
    """What the user says, as chat templates take it: images first."""
    if not images:
        return text
    return [*({"type": "image", "path": str(file)} for file in images), {"type": "text", "text": text}]


def _continued(model: Any, text: str, chat: bool, stream: bool, options: dict[str, Any]) -> Any:
    """One new text, printed as it comes if it is to be streamed."""
    if not (chat or stream):
        made = model.generate(text, **options)
        _note(made)
        return made
    if chat:
        messages = [{"role": "user", "content": _said(text, options.pop("images", []))}]
        pieces = model.chat(messages, stream=True, **options)
    else:
        pieces = model.stream(text, **options)
    _show(pieces, stream)
    _note(pieces.result)
    return pieces.result


def _show(pieces: Iterable[str], stream: bool) -> None:
    for piece in pieces:
        if stream:
            click.echo(visible(piece), nl=False)
            sys.stdout.flush()
    if stream:
        click.echo()


def visible(text: str) -> str:
    """The text as it is, but to a terminal nothing that it would obey."""
    if not sys.stdout.isatty():
        return text
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _note(made: Any) -> None:
    usage = made.usage
    say(
        f"{usage.prompt_tokens} tokens of prompt, {usage.cached_tokens} of them held, in {usage.prompt_seconds:.3f} s; "
        f"{usage.new_tokens} new, {usage.tokens_per_second:.1f} a second; ended by {made.finish}"
        + (f"; {usage.accepted} of {usage.guessed} guesses right" if usage.guessed else "")
    )


def described(prompt: str, made: Any) -> dict[str, Any]:
    """A text as JSON has it."""
    tokens = [
        {"id": t.id, "logprob": t.logprob, "top": [{"id": i, "logprob": p} for i, p in t.top]}
        for t in made.tokens
        if t.logprob is not None
    ]
    facts = {
        "prompt": prompt,
        "text": made.text,
        "tokens": made.ids,
        "finish": made.finish,
        "seed": made.seed,
    }
    return {**facts, **asdict(made.usage), **({"logprobs": tokens} if tokens else {})}


def _converse(model: Any, images: Sequence[Path], options: dict[str, Any]) -> None:
    """Line by line, until the input ends; what has been said stays in the session."""
    messages: list[dict[str, Any]] = []
    seen = sys.stdin.isatty()
    with model.session() as session:
        while (line := _next_line(seen)) is not None:
            messages.append({"role": "user", "content": _said(line, [] if messages else images)})
            pieces = model.chat(messages, stream=True, session=session, **options)
            _show(pieces, stream=True)
            _note(pieces.result)
            messages.append(pieces.result.message)


def _next_line(seen: bool) -> str | None:
    """What is said next; None at the end."""
    while True:
        if seen:
            click.echo("> ", nl=False, err=True)
        raw = sys.stdin.buffer.readline()
        if not raw:
            return None
        if text := _text(raw, "standard input").strip():
            return text
