"""`llmc run` on images and sounds: answers against transformers' own, and files that are none."""

import json
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image

import llmc
from llmc.cli import media, media_answers
from llmc.cli.media_answers import Asked, class_map, describe, spelled
from llmc.runtime.encoder import TokenizerEntry
from llmc.runtime.media import text_arrays
from llmc.runtime.signature import TensorInfo

LABELS = ("cat", "dog", "bird", "fish", "cow", "hen")
IMAGE = Image.new("RGB", (50, 40))
PIXELS = {"size": {"height": 8, "width": 8}, "rescale_factor": 1 / 255}


def model(task, labels=LABELS, scores=None, **postprocess):
    manifest = SimpleNamespace(postprocess=postprocess)
    return SimpleNamespace(task=task, labels=labels, scores=scores, manifest=manifest)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("kind", "classes"), [("Detr", 7), ("RTDetr", 6)])
def test_objects_as_transformers_finds_them(kind, classes):
    """With a class for "no object" and without one."""
    logits, boxes = 3 * noise(2, 9, classes), 1 / (1 + np.exp(-noise(2, 9, 4, seed=1)))
    tensors = SimpleNamespace(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(boxes))
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")().post_process_object_detection(
        tensors, threshold=0.6, target_sizes=[(40, 50)] * 2
    )
    for row in range(2):
        answer = describe(
            model("object-detection"), {"logits": logits, "pred_boxes": boxes}, row, IMAGE, Asked((), 0.6)
        )
        expected = sorted(
            zip(
                theirs[row]["scores"].tolist(),
                theirs[row]["labels"].tolist(),
                theirs[row]["boxes"].tolist(),
                strict=True,
            ),
            reverse=True,
        )
        assert len(expected) > 2
        assert [o["label"] for o in answer["objects"]] == [LABELS[label] for _, label, _ in expected]
        for found, (score, _, box) in zip(answer["objects"], expected, strict=True):
            assert found["score"] == pytest.approx(score, abs=1e-6)
            assert found["box"] == pytest.approx(box, abs=1e-4)


def test_areas_as_transformers_finds_them():
    logits = noise(1, 6, 7, 9)
    theirs = transformers.SegformerImageProcessorPil().post_process_semantic_segmentation(
        SimpleNamespace(logits=torch.from_numpy(logits)), target_sizes=[(40, 50)]
    )
    expected = theirs[0].numpy()
    assert (class_map({"logits": logits}, 0, IMAGE) == expected).mean() > 0.999  # ties of rounding
    areas = describe(model("image-segmentation"), {"logits": logits}, 0, IMAGE, Asked())["areas"]
    assert sum(areas.values()) == pytest.approx(1)
    assert list(areas) == [LABELS[i] for i in np.argsort(-np.bincount(expected.ravel(), minlength=6))]


def test_words_as_transformers_spells_them(tmp_path):
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "O", "N"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True)
    facts = {"blank": 0, "delimiter": "|", "space": " ", "lower": True}
    for seed in range(5):
        best = np.random.default_rng(seed).integers(0, 10, 40).repeat(2).tolist()
        assert spelled(best, tokens, facts) == theirs.decode(best)
    logits = np.eye(10, dtype=np.float32)[None, [4, 5, 5, 0, 5, 4, 6, 6]]
    heard = model("automatic-speech-recognition", tuple(tokens), **facts)
    assert describe(heard, {"logits": logits}, 0, None, Asked()) == {"text": "ee t"}


def test_candidates_take_a_share_each_or_stand_alone():
    outputs = {"logits_per_image": np.float32([[1, 3, 99], [0, 0, 99]])}
    answer = describe(model("feature-extraction"), outputs, 0, IMAGE, Asked(("a", "b")))
    assert answer["label"] == "b"
    assert answer["probabilities"] == pytest.approx({"b": 0.8808, "a": 0.1192}, abs=1e-4)
    alone = describe(model("feature-extraction", scores="sigmoid"), outputs, 0, IMAGE, Asked(("a", "b")))
    assert alone["probabilities"] == pytest.approx({"b": 0.9526, "a": 0.7311}, abs=1e-4)


@pytest.mark.parametrize(
    ("task", "outputs", "lines"),
    [
        ("image-classification", {"logits": np.float32([[0, 0, 0, 0, 0, 9]])}, ["hen 0.9994  cat 0.0001"]),
        ("depth-estimation", {"predicted_depth": np.float32([[[1, 2]]])}, ["depth 1 to 2, 1 x 2"]),
        ("feature-extraction", {"pooler_output": np.float32([[3, 4]])}, ["2 numbers, norm 5.0000"]),
        ("image-to-image", {"reconstruction": np.zeros((1, 3, 2, 2))}, ["reconstruction (3, 2, 2)"]),
        ("object-detection", {"logits": np.zeros((1, 2, 7)), "pred_boxes": np.zeros((1, 2, 4))}, ["nothing"]),
    ],
)
def test_what_is_printed(task, outputs, lines, capsys):
    answer = describe(model(task), outputs, 0, IMAGE, Asked())
    media_answers.show([{"file": "a\x1b[2J.png", **answer}])
    out = capsys.readouterr().out
    assert out.startswith("a\\x1b[2J.png\n  ")
    for line in lines:
        assert line in out


class Seer:
    """A model that sees the mean of red, and hears the mean of a spectrogram or a wave."""

    labels, task, scores = ("dark", "bright"), "image-classification", None
    threads, variant, dims = 1, "avx2", {"batch": (1, 4), "samples": (10, 200), "seq": (1, 8)}
    cut_texts, generates = 0, False

    def __init__(self, path, preprocess, *inputs):
        self.path = Path(path)
        raw = {} if preprocess is None else {"preprocess": preprocess}
        self.manifest = SimpleNamespace(raw=raw, postprocess={}, tokenizer=None)
        self.inputs = {name: TensorInfo("f32", shape) for name, shape in inputs}

    def __call__(self, **given):
        (array,) = given.values()
        means = array.reshape(len(array), -1).mean(1)
        return {"logits": np.stack([-means, means], 1)}


@pytest.fixture
def sees(tmp_path, monkeypatch):
    """`sees(preprocess, (input, shape))`: a folder that looks like an artifact of such a model."""

    def make(preprocess, *inputs):
        folder = tmp_path / "m.llmc"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text("{}")
        monkeypatch.setattr(
            llmc, "load", lambda path, **options: Seer(path, preprocess, *inputs), raising=False
        )
        return folder

    return make


EYE = ("pixel_values", ("batch", 3, 8, 8))
EAR = ("input_values", ("batch", "samples"))
HEARS = {"kind": "waveform", "sampling_rate": 100}


@pytest.fixture
def album(tmp_path):
    """A folder of five images from dark to bright, and a file that is none."""
    folder = tmp_path / "album"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (9 + i, 9), (60 * i,) * 3).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_images(cli, sees, album, tmp_path):
    done = cli("run", sees(PIXELS, EYE), "--image", album, "--json", "--output", tmp_path / "o.npz")
    assert done.code == 0, done.err
    answers = json.loads(done.out)
    assert [Path(a["file"]).name for a in answers] == [f"{i}.png" for i in range(5)]
    assert answers[4]["label"] == "bright"
    assert answers[4]["probabilities"]["bright"] == pytest.approx(1 / (1 + np.exp(-2 * 240 / 255)), abs=1e-6)
    assert np.load(tmp_path / "o.npz")["logits"].shape == (5, 2)


def test_files_that_are_none_do_not_stop_the_others(cli, sees, album):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(album / "cut.png")
    whole = (album / "cut.png").read_bytes()
    (album / "cut.png").write_bytes(whole[: len(whole) // 2])
    done = cli(
        "run",
        sees(PIXELS, EYE),
        "--image",
        album / "notes.txt",
        "--image",
        album,
        "--image",
        album / "gone.png",
    )
    assert done.code == 1
    assert done.out.count("bright") == 5
    assert "3 of 8 files could not be run" in done.err
    assert "notes.txt not an image that Pillow can read" in done.err
    assert "cut.png the image cannot be read: " in done.err
    assert "gone.png the image was not found" in done.err


def test_an_image_that_would_become_too_long(cli, sees, album):
    """Resizing it would take gigabytes."""
    Image.new("RGB", (9000, 1)).save(album / "line.png")
    steps = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "rescale_factor": 1 / 255}
    done = cli("run", sees(steps, EYE), "--image", album)
    assert done.code == 1
    assert done.out.count("bright") == 5
    assert "line.png the image is too long and narrow (9000x1 pixels would become 72000x8)" in done.err


def test_class_maps_are_written(cli, sees, album, tmp_path, monkeypatch):
    monkeypatch.setattr(Seer, "task", "image-segmentation")
    monkeypatch.setattr(Seer, "__call__", lambda self, pixel_values: {"logits": pixel_values})
    done = cli(
        "run",
        sees(PIXELS, EYE),
        "--image",
        album / "1.png",
        "--image",
        album / "2.png",
        "--output",
        tmp_path / "o.npz",
    )
    assert done.code == 0, done.err
    maps = np.load(tmp_path / "o.npz")
    assert {k: v.shape for k, v in maps.items()} == {"class_map_1": (9, 10), "class_map_2": (9, 11)}


@pytest.mark.parametrize(
    ("preprocess", "inputs", "arguments", "message"),
    [
        (PIXELS, [EAR], ["--image", "0.png"], "the model takes no images"),
        (None, [EYE], ["--image", "0.png"], "the artifact does not say how images become its inputs"),
        (PIXELS, [EYE], ["--audio", "a.wav"], "the model takes no audio"),
        (PIXELS, [EYE], ["--image", "0.png", "--text", "a"], "the model takes no texts"),
        (PIXELS, [EYE, ("input_ids", ("batch", "seq"))], ["--image", "0.png"], "compares images with texts"),
        (PIXELS, [EYE], ["--image", "."], "the folder has no images in it"),
        ({**PIXELS, "blur": 1}, [EYE], ["--image", "0.png"], "does not know the step 'blur'"),
        (
            {"size": {"side": 8}},
            [EYE],
            ["--image", "0.png"],
            "field preprocess.size must be height and width",
        ),
        ({**PIXELS, "mean": [0.5]}, [EYE], ["--image", "0.png"], "both of mean and std"),
        ({**PIXELS, "mean": [1, 2], "std": [1, 2]}, [EYE], ["--image", "0.png"], "2 numbers for 3 channels"),
        (
            {"size": {"shortest_edge": 8}},
            [EYE],
            ["--image", "3.png"],
            "an image becomes 3x8x10, the model takes",
        ),
    ],
)
def test_mistakes(preprocess, inputs, arguments, message, cli, sees, album, monkeypatch, tmp_path):
    monkeypatch.chdir(album if arguments[1] != "." else tmp_path)
    done = cli("run", sees(preprocess, *inputs), *arguments)
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--image", "a", "--input", "x=y"],
            "Give one of --text, --prompt, --image, --audio, --input or --selftest.",
        ),
        (["--audio", "a", "--threshold", "0.5"], "--threshold goes with --image."),
        (["--image", "a", "--resample"], "--resample, --language, --task and --timestamps go with --audio."),
        (["--image", "a", "--text", "b", "--prompt", "c"], "--prompt, --pair and --strict go with --text."),
    ],
)
def test_usage(arguments, message, cli, sees):
    done = cli("run", sees(PIXELS, EYE), *arguments)
    assert done.code == 2
    assert message in done.err


def write(path, samples, rate=100, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(samples)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sounds_of_each_width(width, cli, sees, tmp_path):
    """Two channels, of which the mean is 0.25."""
    half = 2 ** (8 * width - 1)
    left = 128 + 64 if width == 1 else half // 2
    right = 128 if width == 1 else 0
    frame = left.to_bytes(width, "little") + right.to_bytes(width, "little")
    write(tmp_path / "a.wav", frame * 50, width=width, channels=2)
    done = cli("run", sees(HEARS, EAR), "--audio", tmp_path / "a.wav", "--json")
    assert done.code == 0, done.err
    chance = json.loads(done.out)[0]["probabilities"]["bright"]
    assert chance == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)


def test_mistakes_with_sounds(cli, sees, tmp_path):
    write(tmp_path / "fast.wav", bytes(200), rate=441)
    write(tmp_path / "long.wav", bytes(1000))
    write(tmp_path / "none.wav", b"")
    write(tmp_path / "cut.wav", bytes(200))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:-50])
    (tmp_path / "text.wav").write_text("hello")
    names = ("fast", "long", "none", "cut", "text", "gone")
    files = [x for name in names for x in ("--audio", tmp_path / f"{name}.wav")]
    done = cli("run", sees(HEARS, EAR), *files)
    assert done.code == 1
    assert "6 of 6 files could not be run" in done.err
    assert "fast.wav the audio has 441 samples a second, the model takes 100 (convert it: ffmpeg" in done.err
    assert "long.wav the audio is 5 s long (the model takes 0.1 to 2 s, cut it into parts)" in done.err
    assert "none.wav the sound has no samples" in done.err
    assert "cut.wav the sound is cut short (75 of 100 samples" in done.err
    assert "text.wav not a WAV file of whole numbers: " in done.err
    assert "gone.wav the sound was not found" in done.err


def test_the_end_of_a_long_sound_is_not_heard(cli, sees, tmp_path):
    steps = {"kind": "kaldi", "sampling_rate": 16000, "bins": 8, "frames": 4}
    write(tmp_path / "a.wav", bytes(2 * 1600), rate=16000)
    done = cli("run", sees(steps, ("input_values", ("batch", 4, 8))), "--audio", tmp_path / "a.wav")
    assert done.code == 0, done.err
    assert "the model hears the first 0.055 s of 0.1: " in done.err


@pytest.mark.parametrize(("makes", "length"), [(("input_ids",), 8), (("input_ids", "attention_mask"), 3)])
def test_candidates_without_a_mask_are_as_long_as_in_training(makes, length, tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1, "cat": 2}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    seer = Seer(
        tmp_path, PIXELS, EYE, *((name, ("batch", "seq")) for name in ("input_ids", "attention_mask"))
    )
    seer.manifest.tokenizer = TokenizerEntry("tokenizer.json", 100, 0, "<pad>", inputs=makes)
    made = text_arrays(seer, ["a cat", "a cat a"])
    assert {name: array.shape for name, array in made.items()} == dict.fromkeys(makes, (2, length))
    assert made["input_ids"][1].tolist() == [1, 2, 1, *[0] * (length - 3)]


def test_images_and_candidates_make_one_batch():
    """The fewer are filled up: what comes of that is in no answer."""
    asked = []

    class Pairs:
        inputs: ClassVar = {}

        def __call__(self, **given):
            asked.append({name: len(array) for name, array in given.items()})
            return given

    words = {"input_ids": np.array([[1], [2], [3]])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "text_arrays", lambda model, texts: words)
        run = media.pairs_of(Pairs(), ["a", "b", "c"])
    made = run(np.float32([[[[1]]], [[[2]]]]))
    assert asked == [{"input_ids": 3, "pixel_values": 3}]
    assert made["pixel_values"].ravel().tolist() == [1, 2, 2]
    assert run(np.zeros((5, 1, 1, 1)))["input_ids"].ravel().tolist() == [1, 2, 3, 3, 3]
