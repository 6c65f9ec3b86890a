"""GGUF files: transformers reads them, dequantises their weights to f32, and makes a plain folder of them."""

from __future__ import annotations

import re
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends import overlay, resident, sizes
from llmc.compiler.frontends.regular_file import want_regular
from llmc.errors import LlmcError, extras_named, first_line

if TYPE_CHECKING:
    from llmc.compiler.frontends.stored_floats import Floats

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_HALVES = " of halves"  # behind a name: rows as transformers has them
_PART = re.compile(r"-\d{5}-of-\d{5}$")


def find(path: Path) -> Path | None:
    """The GGUF file that a path names or that a folder without other weights holds; None for other models.

    Raises:
        LlmcError: there are several, or it is a part of one.
    """
    if path.suffix.lower() == SUFFIX and not path.is_dir():
        return _whole(path)
    entries = list(path.iterdir()) if path.is_dir() else []
    found = sorted(entry for entry in entries if entry.suffix.lower() == SUFFIX)
    if not found or any(overlay.is_weights(entry.name) for entry in entries):
        return None
    if len(found) > 1 and not _PART.search(found[0].stem):
        names = ", ".join(file.name for file in found)
        raise LlmcError(
            "the folder has several GGUF files", at=str(path), found=names, hint="give one of them"
        )
    return _whole(found[0])


def _whole(file: Path) -> Path:
    if not file.exists():
        raise LlmcError("no such model file", at=str(file), hint="is the path right?")
    want_regular(file)
    if _PART.search(file.stem):
        hint = "join them first: llama-gguf-split --merge FIRST-PART OUT.gguf"
        raise LlmcError("the file is a part of a model in several GGUF files", at=str(file), hint=hint)
    with file.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            raise LlmcError(f"{file.name} is not a GGUF file", at=str(file), hint="download it again")
    return file


def write(file: Path, folder: Path, beside: bool) -> str:
    """config.json, weights in f32 and the tokenizer of a GGUF file into `folder`.

    Args:
        beside: whether what lies beside the file is of the model too; its tokenizer goes before the file's.

    Returns:
        the types in which the file has the weights.

    Raises:
        LlmcError: the package gguf is not installed, or transformers cannot read the file.
    """
    with extras_named():
        import accelerate  # noqa: F401  # transformers reads no GGUF file without
        import gguf
    try:
        kinds = sorted({tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors})
    except Exception as error:  # it raises many kinds for a damaged file
        raise _unread(file, error) from None
    if beside:
        overlay.link(file.parent, folder, lambda name: Path(name).suffix.lower() != SUFFIX)
    with overlay.temporary(folder) as place:
        try:
            with redirect_stderr(StringIO()):  # bars that no setting of transformers stops
                _convert(file, place, tokenizer=not (folder / "tokenizer.json").exists())
        except LlmcError:
            raise
        except Exception as error:  # anything transformers and torch raise
            raise _unread(file, error) from None
        overlay.move(place, folder)
    resident.trim()  # of SmolLM2's, 0.82 GB become 0.42
    return ", ".join(kinds)


def _unread(file: Path, error: Exception) -> LlmcError:
    return LlmcError(
        f"transformers cannot read the GGUF file: {first_line(error)}",
        at=str(file),
        found=type(error).__name__,
        hint="compile the folder that it was made of, if transformers does not know its architecture",
    )


def _convert(file: Path, place: Path, tokenizer: bool) -> None:
    import torch
    import transformers

    given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(str(file.parent), trust_remote_code=False, **given)
    sizes.want_of(config.to_dict(), None, str(file))
    known = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    kind = transformers.AutoModelForCausalLM if known else transformers.AutoModel
    # otherwise the weights stay packed where kernels for them are installed, or can be downloaded
    packed = getattr(transformers, "GgufConfig", None)
    options = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    model, info = kind.from_pretrained(
        str(file.parent),
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
        **options,
        **given,
    )
    if left := sorted({*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]}):
        raise LlmcError(
            f"the GGUF file does not hold what {type(model).__name__} takes: {', '.join(map(str, left[:3]))}",
            at=str(file),
            hint="compile the folder that it was made of",
        )
    model.hf_quantizer = None  # it says that the model cannot be saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(place)
    if tokenizer:
        transformers.AutoTokenizer.from_pretrained(
            str(file.parent), trust_remote_code=False, **given
        ).save_pretrained(place)


class GgufFloats:
    """As `StoredFloats`, by the file's own names.

    llama.cpp turns pairs of neighbours where transformers turns the two halves of a head, and has the rows of such
    weights in another order: queries and keys of a Llama are there in both, the second under a name of its own.

    Args:
        shapes: by name.

    Raises:
        LlmcError: the package gguf is not installed.
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        with extras_named():
            import gguf
        reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._heads = {name + _HALVES: heads for name, heads in self._turned(reader).items()}
        own = {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in self._tensors.items()}
        self.shapes = own | {name: own[name.removesuffix(_HALVES)] for name in self._heads}

    def _turned(self, reader: Any) -> dict[str, int]:
        """How many heads the rows of a weight are, of those in llama.cpp's order."""
        if reader.fields["general.architecture"].contents() != "llama":
            return {}
        counts = {"attn_q": "head_count", "attn_k": "head_count_kv"}
        heads = {part: reader.fields.get(f"llama.attention.{key}") for part, key in counts.items()}
        known = {part: int(field.contents()) for part, field in heads.items() if field is not None}
        parts = {name: name.split(".")[-2] for name in self._tensors if name.endswith(".weight")}
        return {name: known[part] for name, part in parts.items() if part in known}

    def read(self, name: str) -> Floats:
        """The values."""
        import numpy as np
        from gguf.quants import dequantize

        tensor, shape = self._tensors[name.removesuffix(_HALVES)], self.shapes[name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        if name in self._heads:
            values = values.reshape(self._heads[name], -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        return np.ascontiguousarray(values, np.float32)
