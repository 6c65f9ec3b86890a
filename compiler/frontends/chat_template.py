"""A folder's chat template: where transformers looks for it, and the special tokens that it may name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.regular_file import want_regular
from llmc.compiler.frontends.sentence_text import want_unicode
from llmc.errors import LlmcError, LlmcWarning

FILE = "chat_template.jinja"
MOST_BYTES = 1 << 20
_OTHERS = "additional_chat_templates"
_DEFAULT = "default"  # of several templates, the one that chats without tools use


def read(root: Path) -> str | None:
    """The text of the template; None if there is none.

    Raises:
        LlmcError: a file is damaged, or holds no template where it should.
    """
    file, others = root / FILE, root / _OTHERS
    if others.is_dir():
        _tell_left_out(sorted(path.stem for path in others.glob("*.jinja")), str(others))
    if file.exists():
        want_regular(file, MOST_BYTES)
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LlmcError(f"cannot read {FILE}: {error}", at=str(file)) from None
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = root / name
        value = read_object(file).get("chat_template") if file.exists() else None
        if value is not None:
            return _text(value, str(file))
    return None


def _tell_left_out(names: list[str], at: str) -> None:
    if names:
        told = f"{at}: of several chat templates {_DEFAULT} is taken, and left out {', '.join(names)}"
        warnings.warn(LlmcWarning(told), stacklevel=2)


def _text(value: Any, at: str) -> str | None:
    """One template, or the one of several that is the default; None if none of them is."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        named = {entry.get("name"): entry.get("template") for entry in value}
        _tell_left_out([str(name) for name in named if name != _DEFAULT], at)
        if _DEFAULT not in named:
            return None
        value = named[_DEFAULT]
    if not isinstance(value, str):
        raise LlmcError("chat_template is not a text", at=at, found=repr(value)[:60])
    want_unicode(value, "chat_template", at)
    return value


def tokens(root: Path, ids: Mapping[str, int | None]) -> dict[str, str]:
    """The special tokens by the names that templates use, such as `bos_token`.

    Args:
        ids: numbers of those that may be missing in the tokenizer's settings.
    """
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second goes before the first
        settings = read_object(root / name) if (root / name).exists() else {}
        for key, value in settings.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    missing = {number: key for key, number in ids.items() if key not in found and number is not None}
    file = root / "tokenizer.json"
    for added in read_object(file, 64 << 20).get("added_tokens", []) if missing and file.exists() else []:
        if isinstance(added, dict) and added.get("id") in missing and isinstance(added.get("content"), str):
            found[missing[added["id"]]] = added["content"]
    for key, text in found.items():
        want_unicode(text, key, str(root))
    return found
