"""`--prune 0.3`, `--share 16`, `--factorize 64` as pipeline text: what they write runs, and replays."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmc.errors import LlmcError

_NUMBER = r"\d*\.?\d+"
_FORMS = {
    "prune": '0.3, 4x1:0.8, 16x4:0.8, 2:4, heads:0.25, neurons:0.25, channels:0.3, or options: sparsity=0.3,skip=["a"]',
    "share": "16, 256, or options such as clusters=16,tables=false",
    "factorize": "a rank such as 64, energy=0.9, or other options of the pass",
}


def compression(
    prune: Sequence[str] = (),
    share: str | None = None,
    factorize: str | None = None,
    *,
    samples: bool = False,
    int8: bool = False,
) -> str:
    """The passes that the shortcuts name, in the order that suits: matrices shrink, then lose values.

    Args:
        samples: whether there are some, so that `reconstruct` chooses zeros instead of `prune`.
        int8: whether products are rounded to int8: then N:M, which is larger and slower in float32, and blocks of 16x4,
            which int8 skips, stay in plain weights.

    Raises:
        LlmcError: a shortcut is not of one of the known forms.
    """
    parts = [_prune(text, int8) for text in prune]
    if samples:
        own = re.compile(r"^prune-channels{(?!.*\bby\s*=)")
        parts = [own.sub('prune-channels{by="activations",', part) for part in parts]
        parts = [re.sub(r"^prune{", "reconstruct{", part) for part in parts]
    structured = [p for p in parts if p.startswith("prune-")]
    if factorize is not None:
        structured.append(_plain("factorize", "rank", r"\d+", factorize))
    structured += [p for p in parts if not p.startswith("prune-")]
    if share is not None:
        structured.append(_plain("share", "clusters", r"\d+", share))
    return ",".join(structured)


def option(name: str) -> str:
    """The shortcut that a pass of `compression` was asked for by."""
    return "--prune" if name == "reconstruct" else f"--{name.partition('-')[0]}"


def joined(*texts: str) -> str:
    """Pipeline texts one after the other."""
    return ",".join(t for t in texts if t.strip())


def _prune(text: str, int8: bool) -> str:
    parts = re.fullmatch(r"([^,]*?)\s*(,\s*[\w-]+\s*=.*)?", text.strip(), re.DOTALL)
    form, more = (parts[1], parts[2] or "") if parts else (text, "")
    if int8 and re.fullmatch(r"\d+:\d+|16x4(:.*)?", form) and not re.search(r"\bwhole\s*=", more):
        more = f",whole=true{more}"
    if re.fullmatch(r"\d+:\d+", form):
        return f'prune{{pattern="{form}"{more}}}'
    if found := re.fullmatch(rf"(\d+x\d+)(?::({_NUMBER}))?", form):
        share = f",sparsity={found[2]}" if found[2] else ""
        # of each layer so many: products gain by the blocks that are gone, and small weights keep some
        scope = "" if re.search(r"\bscope\s*=", more) else ',scope="layer"'
        return f'prune{{pattern="{found[1]}"{share}{scope}{more}}}'
    if found := re.fullmatch(rf"(heads|neurons|channels):({_NUMBER})", form):
        return f"prune-{found[1]}{{fraction={found[2]}{more}}}"
    if re.fullmatch(_NUMBER, form):
        return f"prune{{sparsity={form}{more}}}"
    return _plain("prune", "sparsity", _NUMBER, text)


def _plain(name: str, option: str, number: str, text: str) -> str:
    text = text.strip()
    if re.fullmatch(number, text):
        return f"{name}{{{option}={text}}}"
    if not re.match(r"[\w-]+\s*=", text):
        raise LlmcError(f"--{name} {text!r} is not understood", hint=f"write {_FORMS[name]}")
    return f"{name}{{{text}}}"
