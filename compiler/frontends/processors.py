"""What a folder's processors do to images and sounds, as the manifest's field `preprocess` says it.

transformers builds the processor, so that what the file leaves out is what its class has. What comes of its translation
is compared with what the processor makes before an artifact is written (`llmc.preprocessing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from llmc.compiler.frontends.image_steps import fixed_size, translated
from llmc.compiler.frontends.json_file import read_object
from llmc.errors import LlmcError, extras_named, first_line

FILES = ("preprocessor_config.json", "processor_config.json")
_WITHOUT = (
    "compile a copy of the folder without preprocessor_config.json, and give the model arrays (run --input)"
)


@dataclass(frozen=True)
class Processor:
    """transformers' own processor, to compare with.

    Args:
        steps: what it does, as the manifest says it; of images `kind` is missing.
        at: its file.
        shape: channels, height and width of the images that the model takes.
        changed: settings that it is called with, because its own make images of any size.
    """

    made: Any
    steps: Mapping[str, Any]
    at: str
    shape: tuple[int, ...] = ()
    changed: Mapping[str, Any] = field(default_factory=dict)

    def image(self, image: Any) -> Any:
        """f32 [channels, height, width] of an image of Pillow.

        None if it is not of the model's size and the processor does nothing about `changed`.
        """
        fits = (image.height, image.width) == self.shape[1:]
        options = [self.changed, {}] if fits and self.changed else [self.changed]
        for settings in options:
            try:
                made = self.made(image, **settings, return_tensors="np")["pixel_values"][0]
            except Exception as error:  # anything that transformers raises
                if not self.changed:
                    self.refuse(f"its own error: {first_line(error)}")
                continue
            if not self.changed or made.shape == self.shape:
                return made
        return self.refuse("images of other sizes") if fits else None

    def sound(self, sound: Any) -> Any:
        """What the model takes of samples f32, the first axis left out."""
        options = {"padding": True} if self.steps["kind"] == "waveform" else {}
        rate = self.steps["sampling_rate"]
        try:
            made = self.made(sound, sampling_rate=rate, return_tensors="np", **options)
        except Exception as error:  # anything that transformers raises
            self.refuse(f"its own error: {first_line(error)}")
        return next(made[n] for n in ("input_values", "input_features") if n in made)[0]

    def refuse(self, found: str) -> NoReturn:
        """What llmc does is not what the processor does."""
        raise LlmcError(
            f"llmc does not do to inputs what {type(self.made).__name__} does",
            at=self.at,
            found=f"{found}, where it was tried",
            hint=_WITHOUT,
        )


def for_inputs(root: Path, shapes: Mapping[str, Sequence[Any]]) -> Processor | None:
    """What makes the inputs of these names and shapes; None where nothing does, as for videos and texts.

    Raises:
        LlmcError: it cannot be made, or llmc does not know it.
    """
    if len(shape := shapes.get("pixel_values", ())) == 4:
        return images_of(root, [int(n) for n in shape[1:]])
    return sounds_of(root) if {"input_values", "input_features"} & shapes.keys() else None


def processor_of(root: Path, kind: str) -> Any:
    """transformers' processor, or None if the folder has none.

    Args:
        kind: "image_processor" or "feature_extractor".

    Raises:
        LlmcError: it cannot be made.
    """
    file = file_of(root, kind)
    if file is None:
        return None
    import transformers

    auto = "AutoImageProcessor" if kind == "image_processor" else "AutoFeatureExtractor"
    options = {"backend": "pil"} if kind == "image_processor" else {}
    with extras_named():
        if kind == "image_processor":
            import PIL  # noqa: F401  # transformers' own message of its lack is long
    try:
        return getattr(transformers, auto).from_pretrained(
            root, trust_remote_code=False, local_files_only=True, **options
        )
    except Exception as error:  # anything that transformers raises
        raise LlmcError(
            f"transformers cannot make the folder's {kind.replace('_', ' ')}: {first_line(error)}",
            at=str(file),
            hint=_WITHOUT,
        ) from error


def file_of(root: Path, kind: str) -> Path | None:
    """The file that describes it; processor_config.json goes before, if it has it inside."""
    own, whole = (root / name for name in FILES)
    if whole.exists() and kind in read_object(whole):
        return whole
    if not own.exists():
        return None
    read_object(own)
    return own


def image_steps(root: Path) -> dict[str, Any]:
    """What the folder's image processor does, as the manifest says it; empty if it has none.

    Raises:
        LlmcError: the processor cannot be made.
    """
    processor = processor_of(root, "image_processor")
    return {} if processor is None else translated(processor)


def images_of(root: Path, shape: Sequence[int]) -> Processor | None:
    """The processor of a model that takes images of `shape`, channels, height and width; None if the folder has none.

    One whose images have many sizes is replaced by one that stretches to the model's.

    Raises:
        LlmcError: it cannot be made.
    """
    processor = processor_of(root, "image_processor")
    if processor is None:
        return None
    steps, changed = translated(processor), {}
    if shape[0] == 1:
        steps["channels"] = "grey"
    if fixed_size(steps) is None:
        size = {"size": {"height": shape[1], "width": shape[2]}}
        steps = {k: v for k, v in steps.items() if k != "pad_size"} | size
        changed = {**size, "do_pad": False}
    return Processor(processor, steps, str(file_of(root, "image_processor")), tuple(shape), changed)


# --- sounds


def sounds_of(root: Path) -> Processor | None:
    """The feature extractor of a model of sounds; None if the folder has none.

    Raises:
        LlmcError: it cannot be made, or llmc does not know it.
    """
    extractor = processor_of(root, "feature_extractor")
    if extractor is None:
        return None
    name, at = type(extractor).__name__, str(file_of(root, "feature_extractor"))
    if name not in _EXTRACTORS:
        raise LlmcError(f"llmc does not know what {name} does to sounds", at=at, hint=_WITHOUT)
    return Processor(extractor, _EXTRACTORS[name](extractor), at)


def _wav2vec2(extractor: Any) -> dict[str, Any]:
    return {
        "kind": "waveform",
        "normalize": bool(extractor.do_normalize),
        "masked": bool(extractor.return_attention_mask),
        "padding": float(extractor.padding_value),
        "sampling_rate": int(extractor.sampling_rate),
    }


def _ast(extractor: Any) -> dict[str, Any]:
    return {
        "kind": "kaldi",
        "sampling_rate": int(extractor.sampling_rate),
        "bins": int(extractor.num_mel_bins),
        "frames": int(extractor.max_length),
        "normalize": bool(extractor.do_normalize),
        "mean": float(extractor.mean),
        "std": 2 * float(extractor.std),
    }


def _whisper(extractor: Any) -> dict[str, Any]:
    return {
        "kind": "whisper",
        "sampling_rate": int(extractor.sampling_rate),
        "bins": int(extractor.feature_size),
        "samples": int(extractor.n_samples),
        "window": int(extractor.n_fft),
        "hop": int(extractor.hop_length),
        "padding": float(extractor.padding_value),
    }


_EXTRACTORS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "Wav2Vec2FeatureExtractor": _wav2vec2,
    "ASTFeatureExtractor": _ast,
    "WhisperFeatureExtractor": _whisper,
}
