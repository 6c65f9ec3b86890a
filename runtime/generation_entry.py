"""The manifest's field `generation`: how a model generates text, as `format.md` says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmc.runtime.fields import Field
from llmc.runtime.images_entry import ImagesEntry, read_images
from llmc.runtime.speech_entry import SpeechEntry, read_speech

_MOST = 2**62


@dataclass(frozen=True)
class EncoderEntry:
    """What of an encoder-decoder reads the source.

    Args:
        function: its name; it leaves states that the function which generates reads.
        source: its input: tokens i64 [1, source], or what is made of an image or a sound.
        start: the token that a text begins with.
        bare: whether a text that is begun by somebody else may begin with another token.
    """

    function: str
    source: str
    start: int
    bare: bool = False


@dataclass(frozen=True)
class GenerationEntry:
    """What of a model generates text.

    Args:
        function: the name of the function that takes tokens and gives logits.
        tokens, keep: its inputs i64 [1, seq] and i64 [kept], the places whose logits are wanted; None: it gives all.
        logits: its output f32 [1, kept, vocabulary].
        length: the dim along which its states grow; None if they do not.
        vocabulary: how many tokens have a logit.
        max_length: the most tokens of a sequence.
        bos, eos, pad: numbers of the tokens that begin a text, end one, fill one up.
        defaults: options by transformers' names.
        chat: the file of the chat template; None if there is none.
        chat_tokens: texts of special tokens by the names that templates use.
        encoder: of an encoder-decoder; None for others.
        speech: of one that writes down speech.
        images: of one that is given images too.
    """

    function: str
    tokens: str
    keep: str | None
    logits: str
    length: str | None
    vocabulary: int
    max_length: int
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    defaults: Mapping[str, Any]
    chat: str | None
    chat_tokens: Mapping[str, str]
    encoder: EncoderEntry | None = None
    speech: SpeechEntry | None = None
    images: ImagesEntry | None = None


def read_generation(
    entry: Field, functions: Mapping[str, Any], files: Mapping[str, Any], dims: Mapping[str, Any]
) -> GenerationEntry:
    """The entry, checked.

    Args:
        functions: name -> `FunctionEntry`.
        files: by name.
        dims: name -> bounds.

    Raises:
        LlmcError: a field is not what it should be.
    """
    name = entry["function"].one_of(functions)
    inputs, outputs = ([t.name for t in part] for part in (functions[name].inputs, functions[name].outputs))
    vocabulary = entry["vocabulary"].integer(1, _MOST)
    chat = entry["chat"] if "chat" in entry else None  # noqa: SIM401  # a Field is no dict
    return GenerationEntry(
        function=name,
        tokens=entry["tokens"].one_of(inputs),
        keep=entry["keep"].one_of(inputs) if "keep" in entry else None,
        logits=entry["logits"].one_of(outputs),
        length=entry["length"].text() if "length" in entry else None,
        vocabulary=vocabulary,
        max_length=entry["max_length"].integer(1, _MOST),
        bos=_token(entry, "bos", vocabulary),
        eos=tuple(f.integer(0, vocabulary - 1) for f in entry["eos"].items()),
        pad=_token(entry, "pad", vocabulary),
        defaults={key: field.value for key, field in entry["defaults"].mapping().items()},
        chat=chat["file"].one_of(files) if chat else None,
        chat_tokens={k: f.text() for k, f in chat["tokens"].mapping().items()} if chat else {},
        encoder=_encoder(entry["encoder"], functions, vocabulary) if "encoder" in entry else None,
        speech=read_speech(entry["speech"], vocabulary) if "speech" in entry else None,
        images=read_images(entry["images"], functions, dims, _MOST) if "images" in entry else None,
    )


def _encoder(entry: Field, functions: Mapping[str, Any], vocabulary: int) -> EncoderEntry:
    name = entry["function"].one_of(functions)
    source = entry["source"].one_of([t.name for t in functions[name].inputs])
    bare = "bare" in entry and bool(entry["bare"].integer(0, 1))
    return EncoderEntry(name, source, entry["start"].integer(0, vocabulary - 1), bare)


def _token(entry: Field, key: str, vocabulary: int) -> int | None:
    return entry[key].integer(0, vocabulary - 1) if key in entry else None
