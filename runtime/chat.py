"""Conversations to texts: a chat template, rendered as transformers renders it, in Jinja's sandbox."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from llmc.errors import LlmcError, extras_named, first_line

if TYPE_CHECKING:
    from llmc.runtime.model import Model

MOST_CHARACTERS = 1 << 24
MOST_STEPS = 1_000_000  # lines of a template's code, as Jinja writes it in Python
MOST_FACTOR = 10_000  # that repeats a text, or is an exponent
Message = Mapping[str, Any]
_NONE: Mapping[str, Any] = MappingProxyType({})


def render(model: Model, messages: str | Sequence[Message], variables: Mapping[str, Any] = _NONE) -> str:
    """The text of a conversation, by the artifact's template.

    Args:
        messages: `{"role": "user", "content": "..."}` and so on; a text alone is the user's.
        variables: others that the template names, such as `tools`; `add_generation_prompt` ends it with what begins an
            answer, which is so unless they say otherwise.

    Raises:
        LlmcError: the artifact has no template, a message or a variable is none, or the template fails or does not end.
    """
    entry = model.manifest.generation
    if entry is None or entry.chat is None:
        raise LlmcError(
            "the model has no chat template", at=str(model.path), hint="give a prompt: model.generate(...)"
        )
    listed = _messages(messages)
    _want_variables(variables)
    usual = {"tools": None, "documents": None, "add_generation_prompt": True}
    known = {**usual, **entry.chat_tokens, **variables, "messages": listed}
    try:
        text = (model.path / entry.chat).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LlmcError(f"cannot read {entry.chat}: {error}", at=str(model.path)) from None
    return _rendered(text, known, str(model.path))


def _want_variables(variables: Any) -> None:
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise LlmcError(f"not a template's variables: {variables!r:.60}", hint='{"tools": [...]}')
    if "messages" in variables:
        raise LlmcError("messages cannot be a template's variable", hint="they are the first argument")


def _messages(messages: Any) -> list[dict[str, Any]]:
    listed = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(listed, Sequence) or not listed:
        raise LlmcError(f"not a conversation: {messages!r:.60}", hint='[{"role": "user", "content": "..."}]')
    for i, message in enumerate(listed):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise LlmcError(
                f"message {i + 1} is none: {message!r:.60}", hint='{"role": "user", "content": "..."}'
            )
    try:
        return list(json.loads(json.dumps([_thought(m) for m in listed])))  # templates see plain data alone
    except (TypeError, ValueError, RecursionError) as error:
        raise LlmcError(f"a message holds what JSON cannot: {error}") from None


_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def _thought(message: Mapping[str, Any]) -> dict[str, Any]:
    """What was thought is there by each name that templates read, whichever it has, as in transformers."""
    found = next((message[name] for name in _THOUGHTS if message.get(name) is not None), None)
    return (
        dict(message) if found is None else {"thinking": found, **dict(message), "reasoning_content": found}
    )


def _rendered(text: str, variables: Mapping[str, Any], at: str) -> str:
    with extras_named():
        import jinja2
    try:
        template = _template(text)
        with _Watch() as watch:
            pieces, characters = [], 0
            for piece in template.generate(**variables):
                pieces.append(piece)
                characters += len(piece)
                watch.want_room(characters)
            return "".join(pieces)
    except _EndlessTemplateError:
        problem, hint = "the chat template does not end", "mend chat_template.jinja, and compile again"
    except jinja2.TemplateError as error:
        problem, hint = f"the chat template fails: {first_line(error)}", "are these messages what it takes?"
    except Exception as error:  # whatever a template's expressions raise
        told = f"{type(error).__name__}: {first_line(error)}"
        problem, hint = f"the chat template fails: {told}", "are these messages what it takes?"
    raise LlmcError(problem, at=at, hint=hint)


class _EndlessTemplateError(BaseException):  # no template may catch it
    pass


class _Watch:
    """Counts the lines that run in this thread, and ends what has run too many."""

    def __enter__(self) -> _Watch:
        self._left, self._before = MOST_STEPS, sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename == "<template>" else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _EndlessTemplateError
        return self._line

    def want_room(self, characters: int) -> None:
        if characters > MOST_CHARACTERS:
            raise _EndlessTemplateError


@functools.lru_cache(maxsize=8)
def _template(text: str) -> Any:
    """The template, in an environment as transformers makes it."""
    import jinja2.ext

    environment = _sandbox()(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["namespace"], environment.globals["dict"] = _plain_namespace(), _PlainDict()
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(text)


def _sandbox() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Products, but for those that fill the memory."""
            large = max((abs(n) for n in (left, right) if isinstance(n, int)), default=0)
            if large > MOST_FACTOR and not (
                isinstance(left, int) and isinstance(right, int) and operator == "*"
            ):
                _raise(f"{operator} with {large:.3g} is too much")
            return super().call_binop(context, operator, left, right)

    return Sandbox


class _PlainDict:
    """`dict` in templates: the type itself has methods that none needs."""

    fromkeys = staticmethod(dict.fromkeys)

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)


def _plain_namespace() -> Any:
    from jinja2.utils import Namespace

    class PlainNamespace(Namespace):
        """Takes no name that Python gives a meaning to."""

        def __init__(*args: Any, **named: Any) -> None:  # noqa: N805, RUF100  # `self` is a name that may be set
            own, *given = args
            held = dict(*given, **named)
            _want_plain(held)
            Namespace.__init__(own, held)

        def __setitem__(self, name: str, value: Any) -> None:
            _want_plain([name])
            super().__setitem__(name, value)

    return PlainNamespace


def _want_plain(names: Iterable[str]) -> None:
    for name in names:
        if str(name).startswith("_"):
            _raise(f"a namespace takes no {name}")


def _generation_tag() -> Any:
    """`{% generation %}` marks what an assistant says; here it is what is in it."""
    import jinja2.ext
    from jinja2 import nodes

    class GenerationTag(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return GenerationTag


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
