"""`llmc run` on files of images and sounds: a batch at a time; a file that is none does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmc.cli import media_answers
from llmc.cli.arrays import save
from llmc.cli.lines import Line, want_all
from llmc.cli.media_answers import THRESHOLD, Asked
from llmc.cli.output import print_json
from llmc.errors import LlmcError
from llmc.runtime.media import Images, Sounds, text_arrays

_ROWS = 8  # of a run: images are large
SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3")


def image_suffixes() -> set[str]:
    """Of files that Pillow opens."""
    from llmc.errors import extras_named

    with extras_named():
        from PIL import Image
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def files_of(given: Sequence[str], suffixes: Callable[[], Any], what: str) -> list[Path]:
    """The files, for a folder those in it of which the names end so, in order of their names.

    Raises:
        LlmcError: a folder has none.
    """
    found: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(f for f in path.iterdir() if f.suffix.lower() in suffixes())
        if not inside:
            raise LlmcError(f"the folder has no {what} in it", at=str(path))
        found += inside
    return found


class Told:
    """Answers, problems and arrays so far."""

    def __init__(self, as_json: bool, output: Path | None) -> None:
        self.as_json, self.output = as_json, output
        self.answers: list[dict[str, Any]] = []
        self.lines: list[Line] = []
        self.parts: list[Any] = []

    def add(self, here: Sequence[dict[str, Any]], arrays: Any) -> None:
        """One batch."""
        self.answers += here
        self.lines += [Line(a["file"], problem=a.get("error", "")) for a in here]
        if self.output is not None and arrays:
            self.parts.append(arrays)
        if not self.as_json:
            media_answers.show([a for a in here if "error" not in a])

    def end(self) -> None:
        """Print and write what is left.

        Raises:
            LlmcError: files could not be run.
        """
        if self.parts:
            save(joined(self.parts), self.output)
        if self.as_json:
            print_json(self.answers)
        want_all(self.lines, "files")


def joined(parts: Sequence[Any]) -> dict[str, Any]:
    """The outputs of all batches; those whose shapes differ, as of sounds of several lengths, are numbered."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(n for part in parts for n in part):
        rows = [row for part in parts for row in part[name]]
        same = len({row.shape for row in rows}) == 1
        found |= {name: np.stack(rows)} if same else {f"{name}_{i}": row for i, row in enumerate(rows, 1)}
    return found


def run_images(
    model: Any, given: Sequence[str], texts: Sequence[str], threshold: float | None, told: Told
) -> None:
    """Answers for images; with texts, which of them fits each image.

    Raises:
        LlmcError: the model takes no images, or some of the files are none.
    """
    if model.generates and model.manifest.generation.images is None:
        raise LlmcError("the model takes no images", at=str(model.path), found=f"a {model.task} model")
    if model.generates:
        hint = (
            '--prompt "... what is this?" --image FILE, with the model\'s mark for each image in the prompt'
        )
        raise LlmcError("the model answers prompts about images", at=str(model.path), hint=hint)
    eyes = Images(model)
    asked = Asked(texts, THRESHOLD if threshold is None else threshold)
    files = files_of(given, image_suffixes, "images")
    reads = "input_ids" in model.inputs
    if bool(texts) != reads:
        raise _texts_wanted(model) if reads else LlmcError("the model takes no texts", at=str(model.path))
    pair = pairs_of(model, texts) if reads else None
    for chunk in _chunks(files, _most(model, eyes.name)):
        opened = {file: open_one(eyes.open, file) for file in chunk}
        good = [image for image in opened.values() if not isinstance(image, LlmcError)]
        outputs = {} if not good else pair(eyes(good)) if pair else model(**{eyes.name: eyes(good)})
        rows = iter(range(len(good)))
        here = [
            failed(file, image)
            if isinstance(image, LlmcError)
            else {
                "file": str(file),
                **media_answers.describe(model, outputs, next(rows), image, asked),
            }
            for file, image in opened.items()
        ]
        told.add(here, _kept(model, outputs, good) if told.output else None)
    told.end()


def _texts_wanted(model: Any) -> LlmcError:
    hint = 'give candidates: --text "a photo of a cat" --text "a photo of a dog"'
    return LlmcError("the model compares images with texts", at=str(model.path), hint=hint)


def pairs_of(model: Any, texts: Sequence[str]) -> Callable[[Any], Any]:
    """Images to outputs, with the texts. Where a model takes as many of both, the fewer are filled up with the last."""
    words = text_arrays(model, list(texts))
    counts = {i.shape[0] for name, i in model.inputs.items() if name in (*words, "pixel_values")}
    if len(counts) > 1:
        return lambda pixels: model(**words, pixel_values=pixels)

    def run(pixels: Any) -> Any:
        rows = max(len(pixels), len(texts))

        def filled(array: Any) -> Any:
            return np.concatenate([array, np.repeat(array[-1:], rows - len(array), 0)])

        given = {name: filled(array) for name, array in (*words.items(), ("pixel_values", pixels))}
        return model(**given)

    return run


def _kept(model: Any, outputs: Any, opened: Sequence[Any]) -> Any:
    """What `--output` has of a batch: of a segmentation the class of each pixel, else the outputs."""
    if model.task == "image-segmentation" and getattr(outputs.get("logits"), "ndim", 0) == 4:
        return {"class_map": [media_answers.class_map(outputs, i, image) for i, image in enumerate(opened)]}
    return outputs


def run_audio(
    model: Any, given: Sequence[str], resample: bool, told: Told, spoken: dict[str, Any] | None = None
) -> None:
    """Answers for sounds, waveforms one at a time: what fills up the shorter of a batch could change an answer.

    Args:
        spoken: of a model that writes down speech, what `Model.transcribe` is told.

    Raises:
        LlmcError: the model takes no sounds, or some of the files are none.
    """
    spoken = {name: value for name, value in (spoken or {}).items() if value is not None}
    if model.generates:
        from llmc.cli import speech

        speech.run(model, files_of(given, lambda: SOUND_FILES, "sounds"), resample, told, spoken)
        return
    if spoken:
        names = ", ".join(f"--{name}" for name in spoken)
        raise LlmcError(f"{names} is for models that write down speech", at=str(model.path))
    ears = Sounds(model)
    for file in files_of(given, lambda: SOUND_FILES, "sounds"):
        sound = open_one(lambda f: ears.open(f, resample=resample), file)
        if isinstance(sound, LlmcError):
            told.add([failed(file, sound)], None)
            continue
        outputs = model(**ears([sound]))
        answer = media_answers.describe(model, outputs, 0, None, Asked())
        told.add([{"file": str(file), **answer}], outputs)
    told.end()


def open_one(open_file: Callable[[Path], Any], file: Path) -> Any:
    """What is in a file, or why it cannot be used."""
    try:
        return open_file(file)
    except LlmcError as error:
        if (
            error.at is None or Path(error.at) != file
        ):  # nothing about this one, such as a package that is missing
            raise
        return error


def failed(file: Path, error: LlmcError) -> dict[str, Any]:
    more = ", ".join(part for part in (error.found, error.hint) if part)
    return {"file": str(file), "error": f"{error.problem}{f' ({more})' if more else ''}"}


def _most(model: Any, name: str) -> int:
    axis = model.inputs[name].shape[0]
    return min(_ROWS, axis if isinstance(axis, int) else model.dims[axis][1])


def _chunks(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    return (files[i : i + size] for i in range(0, len(files), size))
