"""Programs that ship ONNX files, with an artifact of llmc in the place of ONNX Runtime: do they say the same?

    pip install magika rapidocr-onnxruntime silero-vad
    python bench/onnx_programs.py magika [--files 500]     labels of files of Python's and the system's folders
    python bench/onnx_programs.py rapidocr [--words 120]   words drawn into images, found and read
    python bench/onnx_programs.py silero [--frames 200]    voice activity of spoken words, states carried on

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
        told = PROGRAMS[options.program](options, Path(folder))
    differing = [(what, own, ours) for what, own, ours in told if own != ours]
    for what, own, ours in differing:
        print(f"{what}: {own!r}, by llmc {ours!r}")
    print(f"{options.program}: {len(told) - len(differing)} of {len(told)} the same")
    return 1 if differing or not told else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", choices=list(PROGRAMS))
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--words", type=int, default=120)
    parser.add_argument("--frames", type=int, default=200)
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


# --- silero-vad

_ONE = {"batch": 1, "seq": 576}
VOICES: dict[str, dict[str, Any]] = {  # file -> how it is compiled
    "silero_vad": {"dims": {**_ONE, "state_1": 1}, "fixed": {"sr": 16000}},
    "silero_vad_16k_op15": {"dims": _ONE},
    "silero_vad_half": {"dims": _ONE},
    "silero_vad_op18_ifless": {"dims": _ONE},
    "silero_vad_16k_sequence": {},
    "silero_vad_openvino_16k": {},
}
STATES = {"stateN": "state", "hn": "h", "cn": "c"}  # an output -> the input that it is next


def _silero(options: argparse.Namespace, folder: Path) -> Told:
    import onnxruntime
    import silero_vad

    frames, told = _speech(options.frames), []
    for name, how in VOICES.items():
        path = Path(silero_vad.__file__).parent / "data" / f"{name}.onnx"
        own = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        ours = Session(own, _model(path, folder, **how))
        one, other = (_listened(session, own, frames) for session in (own, ours))
        apart = {key: float(np.abs(one[key] - other[key]).max()) for key in one}
        voiced = int((next(iter(one.values())) > 0.5).sum())
        print(f"{name}: {voiced} of {len(frames)} frames are speech; apart by {apart}")
        told += [(f"{name} {key}", True, distance <= 1e-4) for key, distance in apart.items()]
    return told


def _listened(session: Any, own: Any, frames: Any) -> dict[str, Any]:
    """All outputs of all frames, side by side."""
    given = {i.name: i for i in own.get_inputs()}
    names = [o.name for o in own.get_outputs()]
    taken = set(session._model.inputs) if isinstance(session, Session) else set(given)
    states = {
        s: np.zeros((2 if s == "state" else 1, 1, 128), np.float32) for s in STATES.values() if s in given
    }
    found: dict[str, list[Any]] = {name: [] for name in names}
    for frame in frames:
        inputs = {"input": frame[None], **states, "sr": np.asarray(16000)}
        made = session.run(names, {n: v for n, v in inputs.items() if n in taken & set(given)})
        for name, value in zip(names, made, strict=True):
            found[name].append(value)
            if name in STATES:
                states[STATES[name]] = value
    return {name: np.stack(values) for name, values in found.items()}


def _speech(count: int) -> Any:
    """f32 [count, 576] of 16,000 samples a second: words by espeak-ng, and where it is not there tones and noise."""
    import shutil
    import subprocess
    import wave

    rng, size = np.random.default_rng(0), 512
    time = np.arange(count * size + 64) / 16000
    sound = np.sin(2 * np.pi * 140 * time) * np.sin(2 * np.pi * 3 * time) * 0.3
    if shutil.which("espeak-ng"):
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            words = (
                "A frame of speech is a tenth of a word, and two hundred of them are a sentence or two. " * 4
            )
            subprocess.run(["espeak-ng", "-w", file.name, words], check=True)
            with wave.open(file.name) as spoken:
                rate, samples = spoken.getframerate(), np.frombuffer(spoken.readframes(1 << 24), np.int16)
        sound = np.interp(time, np.arange(len(samples)) / rate, samples / 32768)
    sound = (sound + rng.normal(size=sound.shape) * 1e-3).astype(np.float32)
    return np.stack([sound[i * size : i * size + size + 64] for i in range(count)])


PROGRAMS = {"magika": _magika, "rapidocr": _rapidocr, "silero": _silero}


if __name__ == "__main__":
    raise SystemExit(main())
