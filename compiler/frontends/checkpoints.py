"""Checkpoints whose weights have other names than the model's: wrappers around it, and classes that nobody names.

DataParallel, torch.compile and Lightning put a name of theirs before every weight's, and Lightning the weights into a
dict of their own. What transformers would take for a model without weights is renamed here; what remains unknown
stays, for the import to refuse.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import overlay
from llmc.compiler.frontends.folder import PICKLED, SAFETENSORS, read_config, read_weights, want_readable
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.regular_file import want_regular
from llmc.errors import LlmcError

WRAPPERS = ("module", "_orig_mod")  # no model of transformers calls a part of itself so
NESTED = ("state_dict", "model_state_dict", "model", "module")  # keys below which trainers put the weights
STACKS = {"layer", "layers", "block", "blocks", "h"}
MOST_OF = 0.9  # of all names that begin alike, for this to be the name of a wrapper


@dataclass(frozen=True)
class Changes:
    """What a folder's checkpoint is to be read as.

    Args:
        prefix: goes from the names of weights, empty if nothing does.
        nested: the key below which a pickle has the weights, if they lie deeper.
        architecture: the class that the weights are of, where config.json does not say.
        file: of a checkpoint of a variant such as fp16, the one file there is.
    """

    prefix: str = ""
    nested: str = ""
    architecture: str = ""
    file: str = ""

    def __bool__(self) -> bool:
        return bool(self.prefix or self.nested or self.architecture or self.file)


@dataclass(frozen=True)
class _Names:
    """Names of weights with their shapes, None where they are not known, and the key that they lie below."""

    shapes: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    nested: str = ""


def changes(root: Path, speaks: bool = True) -> Changes:
    """How a transformers folder is to be read; nothing of it is changed.

    Args:
        speaks: whether its tokenizer is the model's: that of an adapter's base may be another.

    Raises:
        LlmcError: the folder or its weights cannot be read.
    """
    config = read_config(root)
    file = "" if files(root) else _variant(root)
    want_readable(root, config, None if file else read_weights(root), speaks)
    names = _names(root, file)
    prefix = _prefix(root, config, names.shapes)
    shapes = {_without(name, prefix): shape for name, shape in names.shapes.items()}
    named = config.get("architectures") or not isinstance(config.get("model_type"), str)
    found = "" if named or (root.parent / "modules.json").exists() else _class_of(root, shapes)
    return Changes(prefix, names.nested, found, file)


def write(root: Path, folder: Path, found: Changes) -> None:
    """The folder as `changes` say, into `folder`: links, and what is written anew."""
    renamed = bool(found.prefix or found.nested)
    overlay.link(root, folder, lambda name: not (renamed and overlay.is_weights(name)))
    if found.file:
        overlay.link_as(root / found.file, folder / SAFETENSORS)
    if found.architecture:
        config = {**read_object(root / "config.json"), "architectures": [found.architecture]}
        overlay.write_json(folder / "config.json", config)
    if renamed:
        for file in files(root) or [root / found.file]:
            _rewrite(file, folder / file.name, found)
        for index in root.glob("*.index.json"):
            _rewrite_index(index, folder / index.name, found.prefix)


def files(root: Path) -> list[Path]:
    """The weight files, as transformers chooses them."""
    for name in (SAFETENSORS, PICKLED):
        if (root / name).exists():
            return [root / name]
        if (root / f"{name}.index.json").exists():
            places = read_object(root / f"{name}.index.json").get("weight_map")
            known = set(places.values()) if isinstance(places, dict) else set()
            return [root / name for name in sorted(map(str, known)) if Path(name).name == name]
    return []


def _variant(root: Path) -> str:
    """The one file that transformers would load as a variant, such as model.fp16.safetensors."""
    found = [p.name for p in root.glob("model.*.safetensors")]
    return found[0] if len(found) == 1 else ""


def _names(root: Path, file: str) -> _Names:
    if file:
        from llmc.compiler.frontends.safetensors_file import read_header

        return _Names({name: t.shape for name, t in read_header(root / file).items()})
    known = read_weights(root)
    if known is not None:
        return _Names({name: t.shape for name, t in known.items()})
    return _of_pickles(files(root))


def _of_pickles(files: Iterable[Path]) -> _Names:
    """Of files that cannot be read nothing is known: the import says what is wrong."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    nested = ""
    for file in files:
        try:
            content = _opened(file)
        except LlmcError:
            return _Names()
        nested = _key(content)
        weights = content[nested] if nested else content
        shapes |= {name: tuple(value.shape) for name, value in weights.items() if hasattr(value, "shape")}
    return _Names(shapes, nested)


def _opened(file: Path) -> Mapping[str, Any]:
    """A pickle of weights; no code of it is run."""
    import torch

    want_regular(file)
    try:
        try:
            content = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        except (RuntimeError, ValueError):  # the format before zip files cannot be mapped
            content = torch.load(file, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError) as error:
        raise LlmcError(f"cannot read {file.name}", at=str(file), found=type(error).__name__) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise LlmcError(f"{file.name} is no dict of weights", at=str(file))
    return content


def _key(content: Mapping[str, Any]) -> str:
    """Below which key a trainer's checkpoint has the weights; none if they lie open."""
    if any(hasattr(value, "shape") and value.ndim for value in content.values()):
        return ""
    return next((key for key in NESTED if isinstance(content.get(key), dict)), "")


def _prefix(root: Path, config: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """What wrappers have put before the names."""
    found = ""
    for _ in range(3):
        names = [name.removeprefix(found) for name in shapes if name.startswith(found)]
        first, count = next(iter(Counter(n.partition(".")[0] for n in names).most_common(1)), ("", 0))
        if count < MOST_OF * len(shapes) or not all("." in n for n in names if n.startswith(first)):
            break
        rest = [name.removeprefix(f"{first}.") for name in names if name.startswith(f"{first}.")]
        if {name.partition(".")[0] for name in rest} <= STACKS:
            break  # an encoder without a head: nearly all of it is its layers
        if first not in WRAPPERS and not _wraps(root, config, first, names, rest):
            break
        found += f"{first}."
    return found


def _wraps(root: Path, config: Mapping[str, Any], first: str, names: list[str], rest: list[str]) -> bool:
    """Whether the names are the model's without what they begin with, and are not with it."""
    from llmc.compiler.frontends.by_weights import expected

    own, base = expected(root, config)
    if first == base or not own:
        return False  # transformers takes its own prefix away and puts it before

    def known(candidates: list[str]) -> int:
        return sum(name in own or f"{base}.{name}" in own for name in candidates)

    return known(rest) > max(known(names), len(rest) // 2)


def _class_of(root: Path, shapes: Mapping[str, tuple[int, ...] | None]) -> str:
    from llmc.compiler.frontends.by_weights import class_of

    return class_of(root, shapes)


def _without(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _rewrite(file: Path, place: Path, found: Changes) -> None:
    """A weight file with other names, in its own format."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file, save_file

        tensors = {_without(name, found.prefix): value for name, value in load_file(file).items()}
        save_file(tensors, place, metadata={"format": "pt"})
        return
    import torch

    content = _opened(file)
    weights = content[found.nested] if found.nested else content
    torch.save({_without(name, found.prefix): value for name, value in weights.items()}, place)


def _rewrite_index(index: Path, place: Path, prefix: str) -> None:
    content = read_object(index)
    places = {_without(name, prefix): file for name, file in content["weight_map"].items()}
    place.write_text(json.dumps({**content, "weight_map": places}), encoding="utf-8")
