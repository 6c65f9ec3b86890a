"""Texts to tokens by a tokenizer.json and the settings beside it; a bad text is an error that names it."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from llmc.errors import LlmcError, extras_named
from llmc.runtime.fields import Field

Text = str | tuple[str, str]
SIDES = ("right", "left")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class TokenizerEntry:
    """What texts need beside the file.

    Args:
        file: name of the tokenizer.json.
        max_length: the most tokens of a text.
        pad_id, pad_token: what fills shorter texts up, on `padding_side`.
        truncation_side: where longer texts are cut.
        inputs: the inputs that the tokenizer makes; the others keep their defaults.
        prompts: texts by name that may go before every text.
        prompt: the name of the one that does where none is asked for.
    """

    file: str
    max_length: int
    pad_id: int
    pad_token: str
    truncation_side: str = "right"
    padding_side: str = "right"
    inputs: tuple[str, ...] = INPUTS
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None


def read_entry(entry: Field, files: Mapping[str, Any]) -> TokenizerEntry:
    """The manifest's field `tokenizer`."""
    sides = {k: entry[k].one_of(SIDES) for k in ("truncation_side", "padding_side") if k in entry}
    prompts = {k: f.text() for k, f in entry["prompts"].mapping().items()} if "prompts" in entry else {}
    return TokenizerEntry(
        file=entry["file"].one_of(files),
        max_length=entry["max_length"].integer(1, 2**62),
        pad_id=entry["pad_id"].integer(0, 2**31 - 1),
        pad_token=entry["pad_token"].text(),
        inputs=tuple(f.one_of(INPUTS) for f in entry["inputs"].items()) if "inputs" in entry else INPUTS,
        prompts=prompts,
        prompt=entry["prompt"].one_of(prompts) if "prompt" in entry else None,
        **sides,
    )


class BadTexts(LlmcError):
    """Texts of a batch that cannot be tokenised.

    Args:
        rows: place in the batch -> what is wrong.
        count: texts in the batch.
    """

    def __init__(self, rows: Mapping[int, str], count: int, hint: str | None = None) -> None:
        self.rows = dict(rows)
        first, reason = next(iter(self.rows.items()))
        more = f", and {len(self.rows) - 1} more like it" if len(self.rows) > 1 else ""
        super().__init__(f"text {first + 1} {reason}{more}" if count > 1 else f"the text {reason}", hint=hint)


def was_cut(encodings: Sequence[Any]) -> list[int]:
    """The rows of which a part was left out."""
    return [row for row, encoding in enumerate(encodings) if encoding.overflowing]


class Encoder:
    """Makes `tokenizers.Encoding`s, padded to the longest of a batch.

    Truncation is state of the library's object that threads share, so there are two, set up once.
    """

    def __init__(self, text: str, entry: TokenizerEntry, longest: int, at: str) -> None:
        with extras_named():
            import tokenizers  # noqa: F401
        self.entry = entry
        self.pad = {"pad_id": entry.pad_id, "pad_token": entry.pad_token, "direction": entry.padding_side}
        self.text, self.longest = text, longest
        self.bare: Any = None
        self.risky = '"Regex"' in text  # a pattern of the model's own may backtrack without end
        try:
            with self._guard():
                self.whole, self.cut = self._tool(text), self._tool(text)
                self.whole.no_truncation()
        except (
            BaseException
        ) as error:  # the library raises bare Exception for whatever is wrong with the file
            _want_mistake(error)
            raise LlmcError(f"{entry.file} is no tokenizer: {error}", at=at) from None

    def _tool(self, text: str) -> Any:
        """The library's object, which pads to the longest of a batch and cuts."""
        import tokenizers

        made = tokenizers.Tokenizer.from_str(text)
        made.enable_padding(**self.pad)
        made.enable_truncation(self.longest, direction=self.entry.truncation_side)
        return made

    def __call__(
        self, texts: Sequence[Text], *, truncate: bool = True, prompt: str | None = None
    ) -> list[Any]:
        """The encodings.

        Args:
            prompt: name of a prompt; None takes the model's default, if it has one.

        Raises:
            LlmcError: a text is none (`BadTexts`), or there is no such prompt.
        """
        before = self.prompt_of(prompt)
        batch = [(before + t[0], t[1]) if isinstance(t, tuple) else before + t for t in texts]
        return self._encoded(self.cut if truncate else self.whole, batch)

    def unpadded(self, texts: Sequence[str], before: str) -> list[Any]:
        """The encodings, each as long as it is, cut to the longest that is allowed, without places in the text.

        Raises:
            LlmcError: a text is none (`BadTexts`).
        """
        if self.bare is None:
            with self._guard():
                self.bare = self._tool(self.text)
                self.bare.no_padding()
        return self._encoded(self.bare, [before + text for text in texts], fast=True)

    def ids(self, text: str, special: bool = True) -> list[int]:
        """The tokens of one text, whole and not filled up.

        Args:
            special: add the tokens that the model wants around a text.

        Raises:
            LlmcError: it is no text that can be tokenised (`BadTexts`).
        """
        if not isinstance(text, str):
            raise LlmcError(f"not a text: {text!r:.60}")
        if special:
            return list(self._encoded(self.whole, [text])[0].ids)
        if reason := _surrogate(text):
            raise BadTexts({0: reason}, 1)
        with self._guard():
            try:
                return list(self.whole.encode(text, add_special_tokens=False).ids)
            except BaseException as error:
                _want_mistake(error)
                raise BadTexts({0: f"cannot be tokenised: {_line(error)}"}, 1) from None

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens; special ones have none."""
        return str(self.whole.decode(list(ids), skip_special_tokens=True))

    @property
    def special(self) -> dict[str, int]:
        """The tokens that have no text in texts, by how they are written."""
        added = self.whole.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def _encoded(self, tool: Any, batch: Sequence[Text], fast: bool = False) -> list[Any]:
        if bad := {i: reason for i, text in enumerate(batch) if (reason := _surrogate(text))}:
            raise BadTexts(bad, len(batch))
        with self._guard():
            try:
                return list((tool.encode_batch_fast if fast else tool.encode_batch)(batch))
            except BaseException as error:
                _want_mistake(error)
                raise BadTexts(_failing(tool, batch, error), len(batch)) from None

    def prompt_of(self, name: str | None) -> str:
        """The prompt of a name; None: the model's default, if it has one.

        Raises:
            LlmcError: there is no such prompt.
        """
        name = self.entry.prompt if name is None else name
        if name is None:
            return ""
        if name not in self.entry.prompts:
            known = ", ".join(self.entry.prompts) or "none"
            raise LlmcError(f"the model has no prompt {name!r}", hint=f"its prompts: {known}")
        return self.entry.prompts[name]

    def _guard(self) -> Any:
        return held_stderr() if self.risky else nullcontext()


def _want_mistake(error: BaseException) -> None:
    """Let what is no mistake through. A panic of the library is one, though it derives from BaseException."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _failing(tool: Any, batch: Sequence[Text], error: BaseException) -> dict[int, str]:
    """The texts that fail alone as well; all of them if none does."""
    bad = {}
    for row, text in enumerate(batch):
        try:
            tool.encode_batch([text])
        except BaseException as one:
            _want_mistake(one)
            bad[row] = f"cannot be tokenised: {_line(one)}"
    return bad or dict.fromkeys(range(len(batch)), f"cannot be tokenised: {_line(error)}")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _surrogate(text: Text) -> str:
    """What is wrong with a text that UTF-8 cannot write; empty if nothing is."""
    for part in text if isinstance(text, tuple) else (text,):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(part[error.start]):04X} at character {error.start + 1}"
            return f"is not valid Unicode: a lone surrogate, {found}"
    return ""


_LOCK = threading.Lock()


@contextmanager
def held_stderr() -> Iterator[None]:
    """Hold back what the process writes to file descriptor 2; it is dropped if the block fails.

    The library prints a stack trace of its own before it raises. One thread at a time.
    """
    with _LOCK, tempfile.TemporaryFile() as held:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:  # there is no stderr to keep clean
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.truncate(0)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            _replay(held)


def _replay(held: Any) -> None:
    held.seek(0)
    if said := held.read():
        with suppress(OSError):
            os.write(2, said)
