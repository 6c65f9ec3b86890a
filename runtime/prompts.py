"""What a prompt is to a model that generates: tokens, or of an encoder-decoder those of a source; one or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime import languages
from llmc.runtime.arrays import check_names
from llmc.runtime.looking import Looked, expanded, images_of, prepared, want_rows
from llmc.runtime.media import Images, batch_of
from llmc.runtime.source import no_source, reads_text, want_source

if TYPE_CHECKING:
    from llmc.runtime.encoder import Encoder
    from llmc.runtime.generation_entry import EncoderEntry, GenerationEntry
    from llmc.runtime.generation_options import GenerationOptions
    from llmc.runtime.model import Model


@dataclass(frozen=True)
class Given:
    """The tokens that a text begins with, of an encoder-decoder those of the source, and images."""

    ids: Sequence[int]
    source: Sequence[int] = ()
    looked: Looked | None = None


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


def want_own(model: Model, session: Any) -> None:
    """Refuse a session of another model; None is none.

    Raises:
        LlmcError: it is one, or no session at all.
    """
    if session is not None and getattr(session, "model", None) is not model:
        raise LlmcError(
            "the session is not one of this model", at=str(model.path), hint="open one: model.session()"
        )


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


def given_of(
    model: Model,
    entry: GenerationEntry,
    prompt: Any,
    special: bool,
    options: dict[str, Any],
    images: Any = None,
) -> Given:
    """What a prompt is to the model; languages are taken out of the options.

    Args:
        prompt: where the source is no text, an array for the encoder, or how the text begins.
        special: whether a text gets the tokens that begin and end one.
        images: of the prompt, one or several.

    Raises:
        LlmcError: the prompt is empty or too long, there is no such language, or images do not fit it.
    """
    if entry.encoder is not None and entry.speech is None and not reads_text(model, entry.encoder):
        return _of_array(model, entry.encoder, prompt, images)
    if entry.images is not None or images is not None:
        return _with_images(model, entry, prompt, special, images)
    if entry.encoder is None:
        if isinstance(prompt, list | tuple) and not prompt:
            raise LlmcError(
                "the prompt is empty: a list without a token or a text",
                hint='"" begins a text with nothing before it',
            )
        return Given(_ids(model, entry, prompt, special))
    encoder = encoder_of(model)
    ids = [] if isinstance(prompt, str) and not prompt.strip() else _tokens(model, prompt, special)
    source, target = languages.take(encoder, options, str(model.path))
    if source is not None:
        ids = languages.from_language(ids, source, languages.languages_of(encoder), str(model.path))
    if target is not None:
        options["forced_bos_token_id"] = target
    want_source(model, entry.encoder, ids)
    return Given([entry.encoder.start], ids)


def _of_array(model: Model, encoder: EncoderEntry, prompt: Any, images: Any) -> Given:
    """A source that is an image or a sound, and how the text begins."""
    source = prompt if isinstance(prompt, np.ndarray) else None
    begun = [] if source is not None or prompt == "" else _tokens(model, prompt, False)
    if images is not None:
        if source is not None or len(shown := batch_of(images, "images", (2, 3))) != 1:
            raise LlmcError("a text is made of one image", at=str(model.path))
        eyes = Images(model)
        source = eyes([eyes.open(shown[0])])
    if source is None:
        raise no_source(model, encoder)
    info = model.functions[encoder.function].inputs[encoder.source]
    array = np.asarray(source, np.float32).reshape((1,) * (len(info.shape) - source.ndim) + source.shape)
    if begun[:1] != [encoder.start] and not (encoder.bare and begun):
        begun = [encoder.start, *begun]
    return Given(begun, looked=Looked({encoder.source: array}))


def _with_images(model: Model, entry: GenerationEntry, prompt: Any, special: bool, images: Any) -> Given:
    known = images_of(model)
    looked = Looked() if images is None else prepared(model, batch_of(images, "images", (2, 3)))
    if isinstance(prompt, str):
        prompt = expanded(known, prompt, looked, str(model.path))
    ids = _ids(model, entry, prompt, special and "begin" not in known.texts)
    want_rows(known, ids, looked)
    return Given(ids, looked=looked)


def _tokens(model: Model, prompt: Any, special: bool) -> list[int]:
    """The tokens of a text, or those given.

    Raises:
        LlmcError: it is neither.
    """
    if not isinstance(prompt, str):
        return _numbers(prompt)
    encoder = encoder_of(model)
    if encoder is None:
        raise LlmcError("the artifact has no tokenizer", at=str(model.path), hint="give tokens: [1, 2, 3]")
    return encoder.ids(prompt, special)


def _ids(model: Model, entry: GenerationEntry, prompt: Any, special: bool) -> list[int]:
    """The tokens of a prompt.

    Raises:
        LlmcError: it is neither a text nor tokens, or has none.
    """
    ids = _tokens(model, prompt, special)
    if not ids and entry.bos is not None:
        return [entry.bos]
    if not ids:
        raise LlmcError("the prompt is empty", hint="the model has no token that begins a text: give a word")
    return ids


def are_several(prompt: Any) -> bool:
    """Whether it is a list of prompts: one of texts, or of lists of tokens."""
    if isinstance(prompt, str) or not isinstance(prompt, list | tuple) or not prompt:
        return False
    return isinstance(prompt[0], str) or hasattr(prompt[0], "__len__")


def images_of_all(prompts: Sequence[Any], images: Any) -> Sequence[Any]:
    """The images of each prompt; None: it has none.

    Raises:
        LlmcError: there are not as many entries as prompts.
    """
    if images is None:
        return [None] * len(prompts)
    if not isinstance(images, list | tuple) or len(images) != len(prompts):
        raise LlmcError(
            f"images has no entry for each of {len(prompts)} prompts",
            hint="give a list with the images of each prompt: [[first], [second, third], None]",
        )
    return images


def _numbers(prompt: Any) -> list[int]:
    try:
        if isinstance(prompt, bytes | bytearray):  # a text that has not been decoded, and no tokens
            raise TypeError
        return [index(token) for token in prompt]
    except TypeError:
        raise LlmcError(f"not a text or a list of tokens: {prompt!r:.60}") from None


def want_tokens(ids: Sequence[int], vocabulary: int) -> None:
    """Refuse what C could not even be asked.

    Raises:
        LlmcError: a number is no token's.
    """
    for place, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise LlmcError(f"token {place} of the prompt is {token}, must be within 0..{vocabulary - 1}")


def checked_options(
    model: Model, entry: GenerationEntry, ids: Sequence[int], given: Mapping[str, Any]
) -> GenerationOptions:
    """The options of a text, and whether they go with its prompt.

    Raises:
        LlmcError: one is unknown or makes no sense, a number is no token's.
    """
    from llmc.runtime.generation_options import options_of

    options = options_of(entry, given)
    if options.adapter is not None:
        check_names("adapter", [options.adapter], dict.fromkeys(model.adapters))
    encoder = encoder_of(model) if options.stop_strings else None
    if options.stop_strings and encoder is None:
        raise LlmcError("stop_strings need a tokenizer, which the artifact does not have", at=str(model.path))
    want_tokens(ids, entry.vocabulary)
    if encoder is not None:
        options = options.by_special(entry, encoder.special)
    if options.is_held:
        from llmc.runtime.grammar import matcher_of

        matcher_of(model, entry, options)
        options = replace(options, forced_eos_token_id=None)  # the grammar says where a text ends
    if options.assistant_model is not None:
        from llmc.runtime.assistant import want_partner

        want_partner(model, options.assistant_model, entry)
    return options
