"""Programs that ship ONNX files, with an artifact of llmc in the place of ONNX Runtime: do they say the same?

    pip install magika rapidocr-onnxruntime
    python bench/onnx_programs.py magika [--files 500]     labels of files of Python's and the system's folders
    python bench/onnx_programs.py rapidocr [--words 120]   words drawn into images, found and read

Both run once with their own sessions and once with llmc's model in each; what differs is listed, with exit code 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import llmc

SYSTEM = ("/etc", "/usr/share", "/usr/lib", "/usr/bin", "/usr/include")  # after Python's own folders
LARGEST = 4 << 20  # bytes of a file
WORD_SIZES = (22, 28, 36, 48)  # points
LINES = 4  # of words in an image
DIMS = {"rec": {"dim__": 48}}  # the height of lines, which the file leaves open


class Session:
    """A session of ONNX Runtime whose `run` is a model's.

    Args:
        session: what is asked for all else.
        model: has the same inputs and outputs by name.
    """

    def __init__(self, session: Any, model: llmc.Model) -> None:
        self._session, self._model, self.runs = session, model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        """As InferenceSession.run."""
        self.runs += 1
        given = {
            name: np.asarray(value, self._model.inputs[name].numpy_dtype) for name, value in inputs.items()
        }
        found = self._model.run(given)
        return [found[name].copy() for name in outputs]


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        told = (_magika if options.program == "magika" else _rapidocr)(options, Path(folder))
    differing = [(what, own, ours) for what, own, ours in told if own != ours]
    for what, own, ours in differing:
        print(f"{what}: {own!r}, by llmc {ours!r}")
    print(f"{options.program}: {len(told) - len(differing)} of {len(told)} the same")
    return 1 if differing or not told else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", choices=["magika", "rapidocr"])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--words", type=int, default=120)
    return parser.parse_args()


Told = list[tuple[str, Any, Any]]  # of what, what the program says by itself, and with llmc


def _model(path: Path, folder: Path, **options: Any) -> llmc.Model:
    llmc.compile(path, folder / f"{path.stem}.llmc", **options)
    return llmc.load(folder / f"{path.stem}.llmc", threads=1)


# --- magika


def _magika(options: argparse.Namespace, folder: Path) -> Told:
    import magika as package
    from magika import Magika

    files = _files(options.files)
    program = Magika()
    own = [program.identify_path(file) for file in files]
    (path,) = Path(package.__file__).parent.glob("models/*/model.onnx")
    session = Session(program._onnx_session, _model(path, folder))
    program._onnx_session = session
    ours = [program.identify_path(file) for file in files]
    kinds = {result.dl.label for result in own}
    apart = max(abs(a.score - b.score) for a, b in zip(own, ours, strict=True))
    print(
        f"{session.runs} of {len(files)} files by the network, {len(kinds)} kinds; scores {apart:.1e} apart"
    )
    return [(str(f), a.output.label, b.output.label) for f, a, b in zip(files, own, ours, strict=True)]


def _files(count: int) -> list[Path]:
    """Some of Python's and the system's files, the same on one machine each time."""
    paths = sysconfig.get_paths()
    folders = [Path(paths[name]) for name in ("stdlib", "purelib", "include")] + [Path(s) for s in SYSTEM]
    each = -(-count // len(folders))
    found: list[Path] = []
    for folder in folders:
        inside = sorted(_readable(folder))
        random.Random(len(inside)).shuffle(inside)
        found += [file for file in inside if file not in found][:each]
    return found[:count]


def _readable(folder: Path) -> Iterator[Path]:
    for at, _, names in folder.walk() if hasattr(folder, "walk") else _walk(folder):
        for name in names:
            path = Path(at) / name
            if path.is_file() and not path.is_symlink() and 0 < path.stat().st_size <= LARGEST:
                yield path


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    import os

    yield from os.walk(folder)


# --- rapidocr


def _rapidocr(options: argparse.Namespace, folder: Path) -> Told:
    import rapidocr_onnxruntime as package
    from rapidocr_onnxruntime import RapidOCR

    images = list(_images(options.words))
    program = RapidOCR()
    own = [_read(program, image) for image, _ in images]
    models = Path(package.__file__).parent / "models"
    parts = {"det": program.text_det.infer, "cls": program.text_cls.infer, "rec": program.text_rec.session}
    for name, part in parts.items():
        (path,) = models.glob(f"*_{name}_infer.onnx")
        part.session = Session(part.session, _model(path, folder, dims=DIMS.get(name)))
    ours = [_read(program, image) for image, _ in images]
    runs = {name: part.session.runs for name, part in parts.items()}
    right = sum(
        set(words) <= set(" ".join(found).split()) for found, (_, words) in zip(own, images, strict=True)
    )
    print(f"runs of llmc's models: {runs}; {right} of {len(images)} images are read as drawn")
    told = [(f"image {i}", a, b) for i, (a, b) in enumerate(zip(own, ours, strict=True))]
    return told if all(runs.values()) else []


def _read(program: Any, image: Any) -> list[str]:
    """The texts that are found, in order."""
    found, _ = program(image)
    return [text for _, text, _ in found or ()]


def _images(words: int) -> Iterator[tuple[Any, list[str]]]:
    """Images `[height, width, 3]` u8 with some words drawn into each, and the words."""
    import keyword

    from PIL import Image, ImageDraw, ImageFont

    rng = random.Random(0)
    names = sorted({w for w in (*keyword.kwlist, *sys.stdlib_module_names) if w.isalpha() and len(w) > 3})
    for _ in range(-(-words // LINES)):
        chosen = rng.sample(names, LINES)
        image = Image.new("RGB", (rng.choice((320, 400, 500)), 320), "white")
        draw = ImageDraw.Draw(image)
        for line, word in enumerate(chosen):
            font = ImageFont.load_default(rng.choice(WORD_SIZES))
            draw.text((rng.randint(5, 60), 10 + 78 * line), word, fill=(rng.randint(0, 90),) * 3, font=font)
        yield np.asarray(image), chosen


if __name__ == "__main__":
    raise SystemExit(main())
