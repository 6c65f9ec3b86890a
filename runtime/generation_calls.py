"""What a model does that generates text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, cast

from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.runtime.chat import Message
    from llmc.runtime.encoder import Encoder
    from llmc.runtime.generated import Generated, TextStream
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session


class GenerationCalls:
    """The part of `Model` that continues texts.

    Options are transformers' (`max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, ...) and OpenAI's
    (`seed`, `logit_bias`, `presence_penalty`, `stop`, `logprobs`, ...): docs/generation.md has them all. What is not
    given is as generation_config.json said when the model was compiled.
    """

    def generate(
        self, prompt: str | Sequence[int], *, session: Session | None = None, **options: Any
    ) -> Generated:
        """Continue a text, or tokens.

        Args:
            session: where; None takes one that the model keeps. What it holds of the prompt's beginning is not computed
                again; all else is forgotten. A text does not depend on it.
            options: see above.

        Raises:
            LlmcError: the model does not generate, the prompt is empty, too long or no text, an option is unknown or
                makes no sense, memory does not suffice.
        """
        return self.stream(prompt, session=session, **options).all()

    def stream(
        self, prompt: str | Sequence[int], *, session: Session | None = None, **options: Any
    ) -> TextStream:
        """The same piece by piece, each as soon as it is certain: `for piece in model.stream(...)`.

        Raises:
            LlmcError: as `generate`.
        """
        model = cast("Model", self)
        entry = generation_of(model)
        ids = _ids(model, entry, prompt, special=True)
        return _stream(model, entry, ids, session, options)

    def search(
        self,
        prompt: str | Sequence[int],
        *,
        num_beams: int = 4,
        num_return_sequences: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        **options: Any,
    ) -> list[Generated]:
        """The likeliest texts as a whole, best first, by beam search; the same as transformers finds.

        Args:
            num_beams: texts that go on at a time, each in a session of its own.
            num_return_sequences: of the best that are given.
            length_penalty, early_stopping: as transformers': see `llmc.runtime.beams.Search`.
            options: as for `generate`, but for those that draw tokens, stop strings and log-probabilities.

        Raises:
            LlmcError: as `generate`.
        """
        from llmc.runtime.beams import Search, search_beams
        from llmc.runtime.generation_options import options_of

        model = cast("Model", self)
        model._open_handle()
        entry = generation_of(model)
        search = Search(num_beams, num_return_sequences, length_penalty, early_stopping)
        ids = _ids(model, entry, prompt, special=True)
        want_tokens(ids, entry.vocabulary)
        encoder = encoder_of(model)
        found = options_of(entry, {"do_sample": False, **options})
        return search_beams(model, entry, ids, found, search, encoder.text_of if encoder else None)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: bool = False,
        session: Session | None = None,
        template: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Answer a conversation, `[{"role": "user", "content": "..."}, ...]`; a text alone is the user's.

        Args:
            stream: give a `TextStream` instead of the whole answer, a `Generated`.
            session: as for `generate`: of a conversation that goes on only what is new is computed.
            template: variables of the chat template, such as `{"tools": [...]}`.
            options: as for `generate`.

        Raises:
            LlmcError: as `generate`; or the model has no chat template, or it fails.
        """
        from llmc.runtime.chat import render

        model = cast("Model", self)
        entry = generation_of(model)
        text = render(model, messages, **(template or {}))
        made = _stream(model, entry, _ids(model, entry, text, special=False), session, options)
        return made if stream else made.all()


def generation_of(model: Model) -> GenerationEntry:
    """How a model generates.

    Raises:
        LlmcError: it does not.
    """
    entry = model.manifest.generation
    if entry is None:
        raise LlmcError(
            "the model does not generate text",
            at=str(model.path),
            found=f"a {model.task} model",
            hint="compile a causal language model's folder",
        )
    return entry


def encoder_of(model: Model) -> Encoder | None:
    """The model's tokenizer, made at the first use; None if it has none."""
    from llmc.runtime.encoder import Encoder

    entry = model.manifest.tokenizer
    if entry is None:
        return None
    made = model.__dict__.get("_whole_encoder")
    if made is None:
        try:
            text = (model.path / entry.file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise LlmcError(f"{entry.file} is no tokenizer: {error}", at=str(model.path)) from None
        made = model.__dict__["_whole_encoder"] = Encoder(text, entry, entry.max_length, str(model.path))
    assert isinstance(made, Encoder)
    return made


def _ids(model: Model, entry: GenerationEntry, prompt: Any, special: bool) -> list[int]:
    """The tokens of a prompt.

    Raises:
        LlmcError: it is neither a text nor tokens, or has none.
    """
    if isinstance(prompt, str):
        encoder = encoder_of(model)
        if encoder is None:
            raise LlmcError(
                "the artifact has no tokenizer", at=str(model.path), hint="give tokens: [1, 2, 3]"
            )
        ids = encoder.ids(prompt, special)
    else:
        ids = _numbers(prompt)
    if not ids and entry.bos is not None:
        return [entry.bos]
    if not ids:
        raise LlmcError("the prompt is empty", hint="the model has no token that begins a text: give a word")
    return ids


def _numbers(prompt: Any) -> list[int]:
    try:
        return [index(token) for token in prompt]
    except TypeError:
        raise LlmcError(f"not a text or a list of tokens: {prompt!r:.60}") from None


def _stream(
    model: Model,
    entry: GenerationEntry,
    ids: Sequence[int],
    session: Session | None,
    given: dict[str, Any],
) -> TextStream:
    from llmc.runtime.generated import TextStream
    from llmc.runtime.generation import Generation
    from llmc.runtime.generation_options import options_of

    model._open_handle()
    if session is not None and getattr(session, "model", None) is not model:
        raise LlmcError(
            "the session is not one of this model", at=str(model.path), hint="open one: model.session()"
        )
    options = options_of(entry, given)
    encoder = encoder_of(model)
    if options.stop_strings and encoder is None:
        raise LlmcError("stop_strings need a tokenizer, which the artifact does not have", at=str(model.path))
    want_tokens(ids, entry.vocabulary)
    used, ended = (session, _nothing) if session is not None else _borrowed(model)
    try:
        generation = Generation(used, entry, ids, options)
    except BaseException:
        ended()
        raise
    decode = encoder.text_of if encoder else None
    seed = options.seed if options.do_sample else None
    return TextStream(generation, ids, decode, options.stop_strings or (), seed, ended)


def want_tokens(ids: Sequence[int], vocabulary: int) -> None:
    """Refuse what C could not even be asked.

    Raises:
        LlmcError: a number is no token's.
    """
    for place, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise LlmcError(f"token {place} of the prompt is {token}, must be within 0..{vocabulary - 1}")


def _nothing() -> None:
    pass


def _borrowed(model: Model) -> tuple[Session, Callable[[], None]]:
    """A session that the model keeps, and how it is given back; another one while it is lent."""
    try:
        session = model._idle.pop()
    except IndexError:
        session = model.session()

    def give_back() -> None:
        if model._handle is not None and not model._idle:
            model._idle.append(session)

    return session, give_back
