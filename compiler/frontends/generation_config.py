"""What a folder says of generating text: which tokens begin and end one, how tokens are chosen, how a chat is written.

The rules are transformers': generation_config.json goes before config.json, chat_template.jinja before the template in
tokenizer_config.json. An option that llmc does not know, and that would change answers, is warned about by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends import chat_template, speech_config
from llmc.compiler.frontends.generation_settings import KINDS, NAMES, options
from llmc.compiler.frontends.inputs import KEEP, TEXT
from llmc.compiler.frontends.json_file import read_object
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph

FILE = "generation_config.json"
_INNER = ("decoder", "generator", "text_config")  # of a config.json: what its text is made by


@dataclass(frozen=True)
class Generation:
    """What the artifact needs to know.

    Args:
        facts: the manifest's field `generation` (runtime/format.md).
        template: the text of the chat template; None if the folder has none.
    """

    facts: Mapping[str, Any]
    template: str | None = None


def read(
    root: Path,
    config: Mapping[str, Any],
    *,
    function: str,
    tokens: str,
    logits: str,
    vocabulary: int,
    max_length: int,
    keep: str | None = None,
    length: str | None = None,
    encoder: Mapping[str, str] | None = None,
    speech: bool = False,
    images: Mapping[str, Any] | None = None,
) -> Generation:
    """What the files of a model's folder say.

    Args:
        config: what config.json says.
        function, tokens, keep, logits: names of the function, its inputs and its output.
        vocabulary: how many tokens have a logit.
        max_length: the most tokens of a sequence.
        length: the dim along which the states grow; None if they do not.
        encoder: of an encoder-decoder the `function` that reads a source, and its input, `source`.
        speech: whether a source is speech.
        images: how a model is given images; None: it is given none.

    Raises:
        LlmcError: a file is damaged, or a setting is of the wrong kind.
    """
    file = root / FILE
    stated, at = stated_by(root, config), str(file if file.exists() else root / "config.json")
    special = Tokens(stated, config, vocabulary, at)
    facts = {
        "function": function,
        "tokens": tokens,
        "keep": keep,
        "logits": logits,
        "length": length,
        "vocabulary": vocabulary,
        "max_length": max_length,
        "bos": special.one("bos_token_id"),
        "eos": special.several("eos_token_id"),
        "pad": special.one("pad_token_id"),
        "defaults": _known(_options(stated, at, speech), vocabulary),
    }
    if speech:
        facts["speech"] = speech_config.facts(stated, config, vocabulary, at)
    if encoder is not None:
        facts["encoder"] = {**encoder, "start": special.start()}
    if images is not None:
        facts["images"] = dict(images)
    template = chat_template.read(root)
    if template is not None:
        facts["chat"] = _chat(root, special)
    return Generation(facts, template)


def _options(stated: Mapping[str, Any], at: str, speech: bool) -> dict[str, Any]:
    """How tokens are chosen; what only speech has is read by `speech_config`."""
    if not speech:
        return options(stated, at)
    own = {k: v for k, v in stated.items() if k not in speech_config.SETTINGS}
    return options(own, at, {k: v for k, v in KINDS.items() if k not in speech_config.UNHEARD})


def _chat(root: Path, special: Tokens) -> dict[str, Any]:
    named = {name: special.one(f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    return {"file": chat_template.FILE, "tokens": chat_template.tokens(root, named)}


def of_functions(
    root: Path,
    config: Mapping[str, Any],
    functions: Mapping[str, Graph],
    max_length: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What an `Imported` has of a model that generates: its functions, of which `step` makes the text.

    Args:
        max_length: the most tokens of a sequence; None: as many as `step` takes.
        more: as of `read`.

    Raises:
        LlmcError: as `read`.
    """
    from llmc.compiler.frontends.stepping import LOGITS, PAST, STEP

    step = functions[STEP]
    said = read(
        root,
        config,
        function=STEP,
        tokens=TEXT,
        keep=KEEP,
        logits=LOGITS,
        vocabulary=int(step.outputs[LOGITS].shape[-1]),
        max_length=step.dims[PAST].high if max_length is None else max_length,
        length=PAST if PAST in step.dims else None,
        **more,
    )
    return {"functions": functions, "generation": said.facts, "chat_template": said.template}


def _known(found: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Without suppressed tokens beyond the vocabulary: they never come anyway."""
    for key in {"suppress_tokens", "begin_suppress_tokens"} & set(found):
        found[key] = [token for token in found[key] if token < vocabulary]
    return found


def stated_by(root: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a folder; those of an older one are among others in its config.json.

    Raises:
        LlmcError: the file is damaged.
    """
    file = root / FILE
    if file.exists():
        return read_object(file)
    inner: Mapping[str, Any] = next(
        (config[name] for name in _INNER if isinstance(config.get(name), dict)), {}
    )
    return {
        key: value
        for place in (inner, config)
        for key, value in place.items()
        if key in NAMES and value is not None
    }


class Tokens:
    """Numbers of special tokens: those that the generation config leaves out are the model's.

    A number beyond the vocabulary, as small test models have them, is that of a token that never comes.
    """

    def __init__(
        self, stated: Mapping[str, Any], config: Mapping[str, Any], vocabulary: int, at: str
    ) -> None:
        inner = [config.get(name) for name in _INNER]
        self._places = [stated, config, *(part for part in inner if isinstance(part, dict))]
        self._vocabulary, self._at = vocabulary, at

    def several(self, key: str) -> list[int]:
        """All tokens of that name.

        Raises:
            LlmcError: what is there is no number of a token, and no list of them.
        """
        value: Any = next((place[key] for place in self._places if place.get(key) is not None), [])
        ids = value if isinstance(value, list) else [value]
        for number in ids:
            if type(number) is not int:
                raise LlmcError(f"{key} is not the number of a token", at=self._at, found=repr(value)[:60])
        return [number for number in dict.fromkeys(ids) if 0 <= number < self._vocabulary]

    def one(self, key: str) -> int | None:
        """The first of them."""
        return next(iter(self.several(key)), None)

    def start(self) -> int | None:
        """What a decoder of an encoder's begins with."""
        found = self.one("decoder_start_token_id")
        return self.one("bos_token_id") if found is None else found
