"""Several texts at once: a run gives every text its next token, or brings it on through its prompt.

As many as asked for go on at a time; when one ends the next begins, and no run waits for the longest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError
from llmc.runtime.beams import want_fits
from llmc.runtime.generated import Generated, TextStream
from llmc.runtime.generation import Generation, next_of_all
from llmc.runtime.generation_calls import text_stream
from llmc.runtime.prompts import Given, checked_options, generation_of, given_of

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.generation_options import GenerationOptions
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session

_Asked = tuple[int, Given, "GenerationOptions"]  # number, prompt, options
MOST = 1024  # texts at a time


def generate_all(
    model: Model,
    prompts: Sequence[Any],
    images: Sequence[Any],
    session: Session | None,
    max_batch: int,
    each: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> list[Generated]:
    """See `Model.generate`. All prompts and options are looked at before the first text begins."""
    model._open_handle()
    entry = generation_of(model)
    if session is not None:
        raise LlmcError("several texts have a session each", hint="leave session out, or give one prompt")
    if type(max_batch) is not int or not 1 <= max_batch <= MOST:
        raise LlmcError(f"max_batch is {max_batch!r}, must be within 1..{MOST}")
    own = _own(prompts, each)
    together = entry.images is not None and entry.images.together  # such prompts are run whole
    asked = [
        _asked(model, entry, i, p, seen, options, o)
        for i, (p, seen, o) in enumerate(zip(prompts, images, own, strict=True))
    ]
    return _Batch(model, entry, asked, 1 if together else max_batch).run()


def search_all(
    model: Model,
    prompts: Sequence[Any],
    images: Sequence[Any],
    beams: int,
    each: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> list[Generated]:
    """The best text of each prompt, one after the other: a search runs all its beams at once."""
    own = _own(prompts, each)
    return [
        _searched(model, i, p, {"num_beams": beams, "images": seen}, options, o)
        for i, (p, seen, o) in enumerate(zip(prompts, images, own, strict=True))
    ]


def _searched(model: Model, number: int, prompt: Any, *options: Mapping[str, Any]) -> Generated:
    with _named(number):
        return model.search(prompt, **_merged(*options))[0]


def _merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """The later before the earlier, by whichever name."""
    from llmc.runtime.generation_options import plain_names

    return {name: value for some in options for name, value in plain_names(some).items()}


@contextmanager
def _named(number: int) -> Iterator[None]:
    """Say which prompt an error is about."""
    try:
        yield
    except LlmcError as error:
        told = f"prompt {number}: {error.problem}"
        raise LlmcError(told, at=error.at, found=error.found, hint=error.hint) from None


def _own(prompts: Sequence[Any], each: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]]:
    """The options of each prompt."""
    if each is None:
        return [{}] * len(prompts)
    if not isinstance(each, list | tuple) or not all(map(_are_options, each)):
        raise LlmcError(f"each is {each!r:.60}, must be a list of options by name, one for each prompt")
    if len(each) != len(prompts):
        raise LlmcError(f"each has options of {len(each)} prompts, there are {len(prompts)}")
    return each


def _are_options(own: Any) -> bool:
    return isinstance(own, Mapping) and all(isinstance(name, str) for name in own)


def _asked(
    model: Model, entry: GenerationEntry, number: int, prompt: Any, images: Any, *options: Mapping[str, Any]
) -> _Asked:
    with _named(number):
        own = _merged(*options)
        given = given_of(model, entry, prompt, True, own, images)
        found = checked_options(model, entry, given.ids, own)
        want_fits(entry, given.ids)
    return number, given, found


class _Batch:
    """The texts that go on, and those that wait."""

    def __init__(self, model: Model, entry: GenerationEntry, asked: Sequence[_Asked], most: int) -> None:
        self._model, self._entry, self._most = model, entry, most
        self._waiting = deque(asked)
        self._going: dict[int, tuple[Generation, TextStream]] = {}
        self._free: list[Session] = []
        self._done: dict[int, Generated] = {}

    def run(self) -> list[Generated]:
        """All texts, in the order of their prompts."""
        while self._waiting or self._going:
            while self._waiting and len(self._going) < self._most:
                self._begin(*self._waiting.popleft())
            self._advance()
        return [self._done[number] for number in sorted(self._done)]

    def _begin(self, number: int, given: Given, options: GenerationOptions) -> None:
        session = self._free.pop() if self._free else self._model.session()
        session.choose_adapter(options.adapter)
        generation = Generation(session, self._entry, given.ids, options, given.source, given.looked)
        prompt = given.source or given.ids
        stream = text_stream(self._model, generation, prompt, options, lambda: self._free.append(session))
        self._going[number] = generation, stream

    def _advance(self) -> None:
        going = list(self._going.items())
        found = next_of_all([generation for _, (generation, _) in going])
        for (number, (generation, stream)), token in zip(going, found, strict=True):
            if token is not False:
                stream.take(token)
            if generation.report.finish:
                stream.take(None)  # nothing follows: the next text need not wait for another run
            if not stream.is_open:
                self._done[number] = stream.result
                del self._going[number]
