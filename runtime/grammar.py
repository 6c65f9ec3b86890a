"""Texts held to a JSON schema, a regular expression or a grammar, by the library llguidance."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from ctypes import memmove, memset
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError, LlmcWarning, extras_named
from llmc.runtime.prompts import encoder_of
from llmc.runtime.token_bytes import Vocabulary

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.generation_options import GenerationOptions
    from llmc.runtime.model import Model

KINDS = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
# Between the parts of JSON a blank, or a line with its indentation: never blanks without end, which models fall into.
_BLANKS = {"whitespace_pattern": r"( |\n[ \t]{0,20})"}
_KEPT = 32  # grammars of a model


@dataclass(frozen=True)
class Asked:
    """What a text must be: a kind of `KINDS`, and the schema, expression or grammar as a text."""

    kind: str
    text: str

    @staticmethod
    def of(options: GenerationOptions) -> Asked | None:
        """What options ask for; None: any text.

        Raises:
            LlmcError: they ask for several things, or a schema is no JSON.
        """
        found = [kind for kind in KINDS if getattr(options, kind) is not None]
        if len(found) > 1:
            raise LlmcError(f"{' and '.join(found)} cannot go together", hint="a text follows one of them")
        if not found:
            return None
        value = getattr(options, found[0])
        return Asked(found[0], _schema(value) if found[0] == "json_schema" else value)


def _schema(given: Any) -> str:
    """A schema as JSON: a text, what JSON reads, or a class of pydantic."""
    made = given.model_json_schema() if hasattr(given, "model_json_schema") else given
    try:
        schema = json.loads(made) if isinstance(made, str) else json.loads(json.dumps(made))
    except (TypeError, ValueError, RecursionError) as error:
        raise LlmcError(f"json_schema is no JSON: {error}") from None
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise LlmcError(f"json_schema is {schema!r:.60}, must be an object", hint='{"type": "object"}')
    return json.dumps({"x-guidance": _BLANKS, **schema})


def _to_library(asked: Asked, vocabulary: Vocabulary) -> str:
    """As llguidance reads grammars. Where the blank that a text begins with is not shown, one may come before."""
    head = "" if vocabulary.forces else '%llguidance {"no_forcing": true}\n'
    if asked.kind == "regex":
        return json.dumps({"grammars": [{"lark_grammar": head + _regex(asked.text, vocabulary.drops_blank)}]})
    schema = asked.kind == "json_schema"
    body: dict[str, Any] = {"json_schema": json.loads(asked.text)} if schema else {"lark_grammar": asked.text}
    if not head and not vocabulary.drops_blank:
        return json.dumps({"grammars": [body]})
    start = f"{head}start: {'/ ?/ ' if vocabulary.drops_blank else ''}@text"
    return json.dumps({"grammars": [{"lark_grammar": start}, {"name": "text", **body}]})


def _regex(text: str, drops_blank: bool) -> str:
    """The expression as a grammar; a text of its own that begins with a blank needs another before it."""
    import llguidance

    inside = llguidance.regex_to_lark(text, "")
    if not drops_blank:
        return f"start: /{inside}/"
    return f"start: TEXT\nTEXT: / (?:{inside})/ | (/(?:{inside})/ & ~/ (?s:.*)/)"


class Constraint:
    """What holds one text to its grammar; C asks it before each token.

    Args:
        size: tokens of the model that is held.
        skipped: of the new tokens so many come before the text.
        error: what went wrong, for whoever called C.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary, size: int, skipped: int) -> None:
        self._matcher, self._vocabulary, self._skipped, self._held = matcher, vocabulary, skipped, 0
        self._bytes = (size + 31) // 32 * 4
        self.error: BaseException | None = None

    def allow(self, user: Any, made: Any, count: int, allowed: Any) -> int:
        """`allow` of llmc.h."""
        try:
            return self._fill(made, count - self._skipped, allowed)
        except BaseException as error:  # C cannot let it through; whoever called C raises it
            self.error = error
            return -1

    def _fill(self, made: Any, count: int, allowed: Any) -> int:
        if count < 0:
            memset(allowed, 0xFF, self._bytes)
            return 0
        self._go_to(made, count)
        self._want_whole()
        if self._matcher.is_stopped():
            return 1
        mask = self._matcher.compute_bitmask()
        self._want_whole()
        if self._matcher.is_accepting() and self._vocabulary.only_ends(mask):
            return 1
        memmove(allowed, mask, min(self._bytes, len(mask)))
        return 0

    def _go_to(self, made: Any, count: int) -> None:
        """Have read the first tokens of the text, and no other."""
        if self._held > count:
            self._matcher.rollback(self._held - count)
        for place in range(self._held, count):
            self._matcher.consume_token(made[self._skipped + place])
        self._held = count

    def behind(self, made: Sequence[int], size: int) -> Constraint:
        """For whoever goes on behind new tokens, by a model of so many tokens."""
        other = Constraint(self._matcher.deep_copy(), self._vocabulary, size, self._skipped)
        other._held = self._held
        other._go_to(made, max(0, len(made) - self._skipped))
        return Constraint(other._matcher, self._vocabulary, size, max(0, self._skipped - len(made)))

    def _want_whole(self) -> None:
        if self._matcher.is_error():
            raise _failed(self._matcher)


def _failed(matcher: Any) -> LlmcError:
    said = matcher.get_error().splitlines()[0]
    if said.startswith("NoExtension"):
        return LlmcError(
            "the text cannot go on: no token of the model fits its schema, expression or grammar",
            hint="does the model's vocabulary have all letters that are needed?",
        )
    return LlmcError(f"the text cannot be held to its grammar: {said}")


def matcher_of(
    model: Model, entry: GenerationEntry, options: GenerationOptions
) -> tuple[Any, Vocabulary] | None:
    """A matcher for one text, at its beginning; None if nothing was asked for.

    Raises:
        LlmcError: llguidance is not there, does not take what was asked for, or does not know such a tokenizer.
    """
    asked = Asked.of(options)
    if asked is None:
        return None
    with extras_named():
        import llguidance  # noqa: F401
    vocabulary = _vocabulary(model, entry, tuple(options.stops(entry)))
    kept = model.__dict__.setdefault("_grammars", functools.lru_cache(_KEPT)(_matcher))
    return kept(vocabulary, asked).deep_copy(), vocabulary


def constraint_of(
    model: Model, entry: GenerationEntry, options: GenerationOptions, prompt: Sequence[int]
) -> Constraint | None:
    """What holds a text behind a prompt to what options ask for; errors as `matcher_of`."""
    found = matcher_of(model, entry, options)
    if found is None:
        return None
    forced = options.forced_bos_token_id is not None and len(prompt) == 1
    return Constraint(*found, entry.vocabulary, int(forced))


def _vocabulary(model: Model, entry: GenerationEntry, ends: tuple[int, ...]) -> Vocabulary:
    """The model's tokens as llguidance has them, made at the first use."""
    made: dict[tuple[int, ...], Vocabulary] = model.__dict__.setdefault("_vocabularies", {})
    if ends not in made:
        encoder = encoder_of(model)
        if encoder is None:
            raise LlmcError(
                "a schema, expression or grammar needs a tokenizer, which the artifact does not have",
                at=str(model.path),
            )
        made[ends] = Vocabulary.of(encoder, entry.vocabulary, ends, str(model.path))
    return made[ends]


def _matcher(vocabulary: Vocabulary, asked: Asked) -> Any:
    """Checked, and at the beginning of a text."""
    import llguidance

    text = _to_library(asked, vocabulary)
    failed, said = llguidance.LLMatcher.validate_grammar_with_warnings(text, vocabulary.tokenizer)
    if failed:
        raise _refused(asked, said[0])
    for line in said:
        warnings.warn(LlmcWarning(f"{asked.kind}: {line}"), stacklevel=2)
    limits = llguidance.LLParserLimits(verbose_errors=False)
    made = llguidance.LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=limits)
    if made.is_error():
        raise _refused(asked, made.get_error())
    made.compute_bitmask()
    if made.is_error():
        raise _failed(made)
    return made


def _refused(asked: Asked, said: str) -> LlmcError:
    """What the library says, in one line and without what it put around the text."""
    lines = [line.strip() for line in said.splitlines()]
    line = next((found[7:] for found in lines if found.startswith("error: ")), lines[0])
    line = re.sub(r"^(at )?\d+\(\d+\): (?=failed to compile JSON)|failed to compile JSON schema: ", "", line)
    return LlmcError(
        f"cannot use this {KINDS[asked.kind]}: {line}", at=asked.kind, found=f"{_shown(asked):.200}"
    )


def _shown(asked: Asked) -> str:
    if asked.kind != "json_schema":
        return asked.text
    schema: Mapping[str, Any] = json.loads(asked.text)
    own = {k: v for k, v in schema.items() if k != "x-guidance" or v != _BLANKS}
    return json.dumps(own)
