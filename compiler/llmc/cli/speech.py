"""`llmc run --audio` on a model that writes down speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from llmc.errors import LlmcError

_OPTIONS: Mapping[str, tuple[dict[str, Any], str]] = {
    "language": ({"metavar": "NAME"}, "What is spoken, such as en.  [default: found by listening]"),
    "task": ({"metavar": "NAME"}, "Of speech: transcribe, or translate into English."),
    "timestamps": ({"is_flag": True, "default": None}, "Print what was said with its times."),
}


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those of speech."""
    for name, (kind, told) in reversed(list(_OPTIONS.items())):
        command = click.option(f"--{name}", help=told, **kind)(command)
    return command


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that there are, by name; they are taken out of a command's settings."""
    return {name: settings.pop(name) for name in _OPTIONS}


def run(model: Any, files: Sequence[Path], resample: bool, told: Any, spoken: dict[str, Any]) -> None:
    """What is said in files, each in windows; sounds that cannot be used are told at the end.

    Raises:
        LlmcError: there is no such language or task, or some of the files are no sounds.
    """
    from llmc.cli.media import failed, open_one
    from llmc.runtime.media import Sounds
    from llmc.runtime.speech import Listener

    if told.output is not None:
        raise LlmcError("--output is for arrays: what was said is text", hint="--json has all of it")
    listener = Listener(model, spoken.get("language"), spoken.get("task"), spoken.get("timestamps"), {})
    ears = Sounds(model)
    with model.session() as session:
        for file in files:
            sound = open_one(lambda f: ears.open(f, resample=resample, whole=True), file)
            if isinstance(sound, LlmcError):
                told.add([failed(file, sound)], None)
                continue
            made = listener(sound, ears, session)
            parts = [{"start": s.start, "end": s.end, "text": s.text} for s in made.segments]
            times = {"segments": parts} if listener.timestamps or len(parts) > 1 else {}
            told.add([{"file": str(file), "text": made.text, "language": made.language, **times}], None)
    told.end()
