"""The manifest's field `generation.speech`: the tokens before a text that is speech written down (format.md)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmc.errors import LlmcError
from llmc.runtime.fields import Field

_UNKNOWN = -1  # among `forced`: a language that is to be found


@dataclass(frozen=True)
class SpeechEntry:
    """What comes before a text.

    Args:
        languages, tasks: their tokens by name, such as "en" and "transcribe".
        names: of languages in full, such as "english" -> "en".
        forced: the tokens behind the first where neither language nor task is given; -1: the language, to be found.
        no_timestamps: the token that says so; the timestamps are behind it. None: the model has none.
        latest_start: number of the latest timestamp that a text may begin with.
        language, task, timestamps: what the model's makers say.
    """

    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    names: Mapping[str, str]
    forced: tuple[int, ...]
    no_timestamps: int | None
    latest_start: int | None
    language: str | None
    task: str | None
    timestamps: bool

    def language_of(self, asked: Any) -> int:
        """The token of a language.

        Raises:
            LlmcError: the model has no such language.
        """
        name = str(asked).lower().strip("<|>")
        name = self.names.get(name, name)
        if name in self.languages:
            return self.languages[name]
        if not self.languages:
            raise LlmcError("language cannot be set: the model has but one")
        close = difflib.get_close_matches(name, [*self.names, *self.languages], n=3, cutoff=0.5)
        hint = f"near it: {', '.join(close)}" if close else f"it has {', '.join(sorted(self.languages)[:20])}"
        raise LlmcError(f"the model has no language {asked!r:.40}", hint=hint)

    def task_of(self, asked: Any) -> int:
        """The token of a task.

        Raises:
            LlmcError: the model has no such task.
        """
        if asked in self.tasks:
            return self.tasks[asked]
        known = f"it has {', '.join(sorted(self.tasks))}" if self.tasks else "the model has but one"
        raise LlmcError(f"the model has no task {asked!r:.40}", hint=known)

    def wants_language(self, language: Any, task: Any) -> bool:
        """Whether the language is to be found by listening, where these are asked for."""
        if not self.languages or language or self.language:
            return False
        forced = () if task or self.task else self.forced
        return not forced or forced[0] == _UNKNOWN

    def prompt(self, start: int, language: Any, task: Any, timestamps: bool, found: int | None) -> list[int]:
        """The tokens before a text, as transformers puts them.

        Args:
            found: the token of the language that was heard.

        Raises:
            LlmcError: there is no such language or task.
        """
        language, task = language or self.language, task or self.task
        ids = [start, *(() if language or task else self.forced)]
        token = self.language_of(language) if language else found
        if token is not None:
            ids[1:2] = [token]
        if task:
            ids.append(self.task_of(task))
        elif language and self.tasks and not set(ids) & set(self.tasks.values()):
            ids.append(self.task_of("transcribe"))
        if self.no_timestamps is not None and ids[-1] == self.no_timestamps:
            ids.pop()
        if self.no_timestamps is not None and not timestamps:
            ids.append(self.no_timestamps)
        return [number for number in ids if number != _UNKNOWN]


def read_speech(entry: Field, vocabulary: int) -> SpeechEntry:
    """The entry, checked.

    Raises:
        LlmcError: a field is not what it should be.
    """

    def token(field: Field) -> int:
        return field.integer(0, vocabulary - 1)

    def named(key: str) -> dict[str, int]:
        return {k: token(f) for k, f in entry[key].mapping().items()} if key in entry else {}

    return SpeechEntry(
        languages=named("languages"),
        tasks=named("tasks"),
        names={k: f.text() for k, f in entry["names"].mapping().items()} if "names" in entry else {},
        forced=tuple(f.integer(-1, vocabulary - 1) for f in entry["forced"].items())
        if "forced" in entry
        else (),
        no_timestamps=token(entry["no_timestamps"]) if "no_timestamps" in entry else None,
        latest_start=entry["latest_start"].integer(0, vocabulary) if "latest_start" in entry else None,
        language=entry["language"].text() if "language" in entry else None,
        task=entry["task"].text() if "task" in entry else None,
        timestamps=bool(entry["timestamps"].scalar()) if "timestamps" in entry else False,
    )
