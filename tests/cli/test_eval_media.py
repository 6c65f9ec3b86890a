"""`llmc eval` on images and sounds: accuracies counted by hand, and a folder in PyTorch as the baseline."""

import json
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import llmc
from llmc.errors import LlmcError
from llmc.evaluate import evaluate
from llmc.runtime.media import prepare
from llmc.runtime.signature import TensorInfo

LABELS = ("black", "dark", "grey", "light", "white", "none", "other")


class Eye:
    """The nearest of five brightnesses; `shift` moves them all."""

    task, labels, scores, dims, cut_texts = (
        "image-classification",
        LABELS,
        None,
        {"batch": (1, 3), "samples": (1, 99)},
        0,
    )

    def __init__(self, path, shift=0.0, kind="image"):
        self.path, self.shift, self.kind = Path(path), shift, kind
        steps = {"size": {"height": 4, "width": 4}, "rescale_factor": 1 / 255}
        if kind == "audio":
            self.task, steps = "audio-classification", {"kind": "waveform", "sampling_rate": 100}
        self.manifest = SimpleNamespace(raw={"preprocess": steps}, postprocess={}, generation=None)
        shape = (
            ("pixel_values", ("batch", 3, 4, 4))
            if kind == "image"
            else ("input_values", ("batch", "samples"))
        )
        self.inputs = {shape[0]: TensorInfo("f32", shape[1])}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def preprocess(self, images=None, audio=None):
        return prepare(self, images, audio, None, None, False)

    def run(self, given):
        (array,) = given.values()
        assert len(array) <= 3
        means = array.reshape(len(array), -1).mean(1) + self.shift
        return {"logits": -np.abs(means[:, None] - np.float32([0, 0.25, 0.5, 0.75, 1, 5, 6]))}


@pytest.fixture
def eyes(monkeypatch, tmp_path):
    """`eyes(kind)` makes what `llmc.load` gives for "m.llmc" and, seeing brighter, for the artifact "other.llmc"."""

    def make(kind="image"):
        def load(path, **options):
            return Eye(path, 0.2 if "other" in str(path) else 0.0, kind)

        (tmp_path / "other.llmc").mkdir()
        (tmp_path / "other.llmc" / "manifest.json").write_text("{}")
        monkeypatch.setattr(llmc, "load", load, raising=False)

    return make


@pytest.fixture
def album(tmp_path):
    """Five images each in the folder of its label, but the white one, which lies in "none"."""
    folder = tmp_path / "album"
    for i, label in enumerate((*LABELS[:4], "none")):
        (folder / label).mkdir(parents=True)
        Image.new("RGB", (5, 5), (64 * i if i < 4 else 255,) * 3).save(folder / label / "a.png")
    return folder


def test_a_folder_for_each_class(eyes, album, tmp_path):
    eyes()
    found = evaluate("m.llmc", album, tmp_path / "other.llmc")
    assert (found.rows, found.accuracy, found.top5) == (5, 0.8, 0.8)
    assert (found.baseline_accuracy, found.agreement) == (0.0, 0.2)  # all but white are one step brighter
    assert found.baseline_top5 == 0.8


def test_a_table_of_files(cli, eyes, album, tmp_path):
    eyes()
    rows = [{"image": f"album/{label}/a.png", "label": label} for label in LABELS[:3]]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = cli("eval", "m.llmc", "--data", tmp_path / "d.jsonl", "--json")
    assert done.code == 1  # there is no such artifact
    (tmp_path / "m.llmc").mkdir()
    (tmp_path / "m.llmc" / "manifest.json").write_text("{}")
    done = cli("eval", tmp_path / "m.llmc", "--data", tmp_path / "d.jsonl", "--min-accuracy", "0.9")
    assert done.code == 0, done.err
    assert "accuracy" in done.out
    assert "among the first five   100.00 %" in done.out


def test_sounds_one_at_a_time(eyes, tmp_path):
    """Padding would count in the mean."""
    eyes("audio")
    for i, label in enumerate(LABELS[:3]):
        (tmp_path / "d" / label).mkdir(parents=True)
        with wave.open(str(tmp_path / "d" / label / "a.wav"), "wb") as file:
            file.setparams((1, 2, 100, 0, "NONE", ""))
            file.writeframes((8192 * i).to_bytes(2, "little") * (10 + 30 * i))
    assert evaluate("m.llmc", tmp_path / "d").accuracy == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda album: (album / "dark" / "b.png").write_text("no"), "not an image that Pillow can read"),
        (lambda album: (album / "dark").rename(album / "dusk"), "unknown label 'dusk'"),
        (lambda album: [f.unlink() for f in album.rglob("*.png")], "the folder has no classes in it"),
    ],
)
def test_mistakes(change, message, eyes, album):
    eyes()
    change(album)
    with pytest.raises(LlmcError, match=message):
        evaluate("m.llmc", album)


def test_a_table_without_files(eyes, tmp_path):
    eyes()
    (tmp_path / "d.csv").write_text("text,label\na,dark\n")
    with pytest.raises(LlmcError, match="no column looks like the file"):
        evaluate("m.llmc", tmp_path / "d.csv")
