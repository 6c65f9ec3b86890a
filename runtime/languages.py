"""Languages of models that translate between several: a token names each, in the source and as the first new token."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmc.errors import LlmcError

# `fr_XX` of mBART, `fra_Latn` of NLLB, `__fr__` of M2M100, `<2fr>` of MADLAD
_LANGUAGE = re.compile(r"__([a-z]{2,3})__|([a-z]{2,3}_[A-Z][A-Za-z]{1,3})|<2([a-z]{2,3}(?:_[A-Za-z]+)?)>")
_NAMES = "src_lang", "tgt_lang"


def languages_of(encoder: Any) -> Mapping[str, int]:
    """Language -> its token; of `fr_XX` there is `fr` too, where that is one language alone."""
    if encoder is None:
        return {}
    found: dict[str, int] = {}
    for number, token in encoder.whole.get_added_tokens_decoder().items():
        if match := _LANGUAGE.fullmatch(token.content):
            found[next(filter(None, match.groups()))] = number
    short = [name.partition("_")[0] for name in found]
    return {**{s: n for s, n in zip(short, found.values(), strict=True) if short.count(s) == 1}, **found}


def take(encoder: Any, options: dict[str, Any], at: str) -> tuple[int | None, int | None]:
    """The tokens of `src_lang` and `tgt_lang`, which are taken out of the options; None: not asked for.

    Raises:
        LlmcError: the model has no such language.
    """
    asked = [options.pop(name, None) for name in _NAMES]
    if asked == [None, None]:
        return None, None
    known = languages_of(encoder)
    source, target = (
        None if value is None else _token(value, name, known, at)
        for value, name in zip(asked, _NAMES, strict=True)
    )
    return source, target


def _token(value: Any, name: str, known: Mapping[str, int], at: str) -> int:
    if isinstance(value, str) and value.strip("_<>") in known:
        return known[value.strip("_<>")]
    if not known:
        raise LlmcError(f"{name} cannot be set: the model's tokens name no languages", at=at)
    close = difflib.get_close_matches(str(value), known, n=3, cutoff=0.3)
    raise LlmcError(
        f"the model has no language {value!r:.40}",
        at=at,
        found=name,
        hint=f"near it: {', '.join(close)}" if close else f"it has {', '.join(sorted(known)[:20])}",
    )


def from_language(ids: Sequence[int], token: int, known: Mapping[str, int], at: str) -> list[int]:
    """The source's tokens with another language's token in the place of the one there.

    Raises:
        LlmcError: there is none.
    """
    places = [i for i, number in enumerate(ids) if number in set(known.values())]
    if not places:
        raise LlmcError("src_lang cannot be set: the source's tokens name no language", at=at)
    edge = places[0] if places[0] == 0 else places[-1]
    return [token if i == edge else number for i, number in enumerate(ids)]
