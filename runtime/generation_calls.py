"""What a model does that generates text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

from llmc.errors import LlmcError
from llmc.runtime.prompts import (
    Given,
    are_several,
    checked_options,
    encoder_of,
    generation_of,
    given_of,
    images_of_all,
    want_own,
    want_tokens,
)

if TYPE_CHECKING:
    from llmc.runtime.arrays import Array
    from llmc.runtime.chat import Message
    from llmc.runtime.generated import Generated, TextStream
    from llmc.runtime.generation import Generation
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.generation_options import GenerationOptions
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session


MAX_BATCH = 8


class GenerationCalls:
    """The part of `Model` that continues texts.

    Options are transformers' (`max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, ...) and OpenAI's
    (`seed`, `logit_bias`, `presence_penalty`, `stop`, `logprobs`, ...): docs/generation.md has them all. What is not
    given is as generation_config.json said when the model was compiled.
    """

    @overload
    def generate(
        self,
        prompt: str | Sequence[int] | Array = "",
        *,
        images: Any = None,
        session: Session | None = None,
        num_beams: int | None = None,
        **options: Any,
    ) -> Generated: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        *,
        images: Any = None,
        num_beams: int | None = None,
        max_batch: int = MAX_BATCH,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Generated]: ...

    def generate(
        self,
        prompt: Any = "",
        *,
        images: Any = None,
        session: Session | None = None,
        num_beams: int | None = None,
        max_batch: int = MAX_BATCH,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Generated | list[Generated]:
        """Continue a text, or tokens; of an encoder-decoder, make a text of the source that they are. Or of several.

        Args:
            prompt: a text, tokens, or a list of texts or of tokens. A list gives a list in the same order, and every
                text is the one that its prompt gives alone. Of an encoder-decoder whose source is no text, the array
                f32 that its encoder takes, or with `images` how the text begins.
            images: of a model that sees, those that the prompt has places for: paths, images of Pillow, or arrays u8
                [height, width, 3]; one or a list, of several prompts a list with as many entries. Of a model that
                makes a text of one image, that image.
            num_beams: more than 1: the best text that `search` finds, one prompt after the other; None: as the model's
                makers say, mostly 1. Where tokens are drawn, a text is
                held to a grammar or has an assistant, or a session is given, it is 1.
            max_batch: texts of a list that go on at a time, each in a session of its own; when one ends the next
                begins.
            each: of a list, options of each prompt, which go before those of all.
            session: of one prompt, where; None takes one that the model keeps. What it holds of the prompt's beginning
                is not computed again; all else is forgotten. A text does not depend on it, but for its adapter.
            options: see above; and `adapter`, a name in `Model.adapters`, None: the session's, of one that is given.

        Raises:
            LlmcError: the model does not generate, the prompt is empty, too long or no text, images do not fit it, an
                option is unknown or makes no sense, memory does not suffice.
        """
        model, several = cast("Model", self), are_several(prompt)
        if each is not None and not several:
            raise LlmcError(
                "each has options of several prompts, there is one", hint="give a list of prompts"
            )
        if options.pop("num_return_sequences", None) not in (None, 1):
            raise LlmcError(
                "generate gives the best text alone",
                hint="model.search(num_return_sequences=...) gives several",
            )
        beams = _beams(generation_of(model), num_beams, session, options)
        if beams == 1 and not several:
            return self.stream(prompt, images=images, session=session, **options).all()
        if beams != 1 and session is not None:
            raise LlmcError("num_beams cannot go with a session: each beam has one of its own")
        if beams != 1 and not several:
            return self.search(prompt, images=images, num_beams=beams, **options)[0]
        from llmc.runtime.generation_batch import generate_all, search_all

        shown = images_of_all(prompt, images)
        if beams != 1:
            return search_all(model, prompt, shown, beams, each, options)
        return generate_all(model, prompt, shown, session, max_batch, each, options)

    def stream(
        self,
        prompt: str | Sequence[int] | Array = "",
        *,
        images: Any = None,
        session: Session | None = None,
        **options: Any,
    ) -> TextStream:
        """The same piece by piece, each as soon as it is certain: `for piece in model.stream(...)`.

        Raises:
            LlmcError: as `generate`.
        """
        model = cast("Model", self)
        entry = generation_of(model)
        given = given_of(model, entry, prompt, True, options, images)
        return _stream(model, entry, given, session, options)

    def search(
        self,
        prompt: str | Sequence[int] | Array = "",
        *,
        images: Any = None,
        num_beams: int | None = None,
        num_return_sequences: int = 1,
        length_penalty: float | None = None,
        early_stopping: bool | str | None = None,
        renormalize_logits: bool | None = None,
        **options: Any,
    ) -> list[Generated]:
        """The likeliest texts as a whole, best first, by beam search; the same as transformers finds.

        Args:
            images: as for `generate`.
            num_beams: texts that go on at a time, each in a session of its own; None: as the model's
                makers say, else 4.
            num_return_sequences: of the best that are given.
            length_penalty, early_stopping, renormalize_logits: as transformers': see `llmc.runtime.beams.Search`.
            options: as for `generate`, but for those that draw tokens, stop strings and log-probabilities.

        Raises:
            LlmcError: as `generate`.
        """
        from llmc.runtime.beams import Search, search_beams
        from llmc.runtime.generation_options import options_of

        model = cast("Model", self)
        model._open_handle()
        entry = generation_of(model)
        asked = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "renormalize_logits": renormalize_logits,
        }
        own = {name: value for name, value in entry.defaults.items() if name in asked}
        given_here = {name: value for name, value in asked.items() if value is not None}
        search = Search(num_return_sequences=num_return_sequences, **{**own, **given_here})
        given = given_of(model, entry, prompt, True, options, images)
        want_tokens(given.ids, entry.vocabulary)
        encoder = encoder_of(model)
        found = options_of(entry, {"do_sample": False, **options})
        decode = encoder.text_of if encoder else None
        return search_beams(model, entry, given.ids, found, search, decode, given.source, given.looked)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        images: Any = None,
        stream: bool = False,
        session: Session | None = None,
        template: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Answer a conversation, `[{"role": "user", "content": "..."}, ...]`; a text alone is the user's.

        A content may be a list of parts, `{"type": "text", "text": "..."}` and `{"type": "image", "path": "a.png"}`
        (or `"image"`: an image of Pillow or an array).

        Args:
            images: of the parts that name none, in their order.
            stream: give a `TextStream` instead of the whole answer, a `Generated`.
            session: as for `generate`: of a conversation that goes on only what is new is computed.
            template: variables of the chat template, such as `{"tools": [...]}`.
            options: as for `generate`.

        Raises:
            LlmcError: as `generate`; or the model has no chat template, or it fails.
        """
        from llmc.runtime.chat import render
        from llmc.runtime.looking import from_messages
        from llmc.runtime.media import batch_of

        model = cast("Model", self)
        entry = generation_of(model)
        messages, shown = from_messages(
            messages, [] if images is None else batch_of(images, "images", (2, 3))
        )
        text = render(model, messages, template or {})
        given = given_of(model, entry, text, False, options, shown or None)
        made = _stream(model, entry, given, session, options)
        return made if stream else made.all()


def _beams(
    entry: GenerationEntry, asked: int | None, session: Session | None, options: Mapping[str, Any]
) -> int:
    """How many beams a text has."""
    if asked is not None:
        return asked
    drawn = options.get("do_sample", entry.defaults.get("do_sample"))
    from llmc.runtime.generation_options import ALONE

    held = any(options.get(name) is not None for name in ALONE)
    return 1 if drawn or held or session is not None else int(entry.defaults.get("num_beams", 1))


def _stream(
    model: Model,
    entry: GenerationEntry,
    prompt: Given,
    session: Session | None,
    given: dict[str, Any],
) -> TextStream:
    from llmc.runtime.generation import Generation

    model._open_handle()
    want_own(model, session)
    options = checked_options(model, entry, prompt.ids, given)
    used, ended = (session, _nothing) if session is not None else _borrowed(model)
    try:
        if session is None or options.adapter is not None:
            used.choose_adapter(options.adapter)
        generation = Generation(used, entry, prompt.ids, options, prompt.source, prompt.looked)
    except BaseException:
        ended()
        raise
    return text_stream(model, generation, prompt.source or prompt.ids, options, ended)


def text_stream(
    model: Model,
    generation: Generation,
    ids: Sequence[int],
    options: GenerationOptions,
    ended: Callable[[], None],
) -> TextStream:
    """The text of a generation."""
    from llmc.runtime.generated import TextStream

    encoder = encoder_of(model)
    decode = encoder.text_of if encoder else None
    seed = options.seed if options.do_sample else None
    return TextStream(generation, ids, decode, options.stop_strings or (), seed, ended)


def _nothing() -> None:
    pass


def _borrowed(model: Model) -> tuple[Session, Callable[[], None]]:
    """A session that the model keeps, and how it is given back; another one while it is lent."""
    session = model._kept_session()

    def give_back() -> None:
        if model._handle is not None and not model._idle:
            model._idle.append(session)

    return session, give_back
