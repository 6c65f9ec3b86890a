"""What folders' processors do to images and sounds, by the runtime and by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from random_others import random_model

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import graph_text
from llmc.compiler.frontends.ctc import decoder_of
from llmc.compiler.frontends.images import image_shape
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.processors import for_inputs, images_of, sounds_of
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.errors import LlmcError, LlmcWarning
from llmc.preprocessing import want_same
from llmc.runtime import audio, images
from llmc.runtime.fields import Field

HALF = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
SQUARE = {"height": 24, "width": 24}

# processor, its settings, height and width of the model; filters are numbers of Pillow
FIXED = [
    ("ViT", {"size": {"height": 24, "width": 32}, "resample": 2}, (24, 32)),
    ("ViT", {"size": SQUARE, "do_normalize": False, "resample": 0}, (24, 24)),
    ("ViT", {"size": SQUARE, "do_rescale": False, "resample": 1}, (24, 24)),
    ("DeiT", {"size": {"height": 32, "width": 32}, "crop_size": SQUARE, "resample": 3}, (24, 24)),
    ("CLIP", {"size": {"shortest_edge": 24}, "crop_size": SQUARE}, (24, 24)),
    ("CLIP", {"size": {"shortest_edge": 20}, "crop_size": {"height": 25, "width": 31}}, (25, 31)),
    ("ConvNext", {"size": {"shortest_edge": 24}, "crop_pct": 0.8}, (24, 24)),
    ("ConvNext", {"size": {"shortest_edge": 384}}, (384, 384)),
    ("MobileNetV2", {"size": {"shortest_edge": 28}, "crop_size": SQUARE, "resample": 4}, (24, 24)),
    ("MobileViT", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}, (24, 24)),
    ("Segformer", {"size": SQUARE, "do_reduce_labels": True, **HALF}, (24, 24)),
    ("Beit", {"size": SQUARE, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}}, (16, 16)),
    ("EfficientNet", {"size": SQUARE, "rescale_offset": True, **HALF}, (24, 24)),
    ("EfficientNet", {"size": SQUARE, "include_top": False}, (24, 24)),
    ("Levit", {"size": {"shortest_edge": 24}, "crop_size": SQUARE}, (24, 24)),
    ("Siglip", {"size": SQUARE, "resample": 5}, (24, 24)),
    ("Bit", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}, (24, 24)),
    ("DPT", {"size": SQUARE}, (24, 24)),
    (
        "Yolos",
        {"size": {"max_height": 24, "max_width": 30}, "pad_size": {"height": 24, "width": 30}},
        (24, 30),
    ),
]
ANY_SIZE = [
    ("Detr", {"size": {"shortest_edge": 24, "longest_edge": 48}}, (24, 24)),
    ("Yolos", {"size": {"shortest_edge": 24, "longest_edge": 48}}, (16, 40)),
    ("GLPN", {"size_divisor": 8}, (24, 32)),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of each kind of pixel: smooth enough for filters to matter, of odd sizes, and one turned by EXIF."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[:61, :97]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((3, 9), (7, -4), (19, 2))]
    rgb = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    alpha = Image.merge("RGBA", (*rgb.split(), rgb.split()[0]))
    deep = Image.fromarray((np.stack(waves, -1)[..., 0] * 200).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "high.png": (rgb.transpose(Image.Transpose.ROTATE_90), {}),
        "grey.png": (rgb.convert("L"), {}),
        "alpha.png": (alpha, {}),
        "palette.gif": (rgb.convert("P"), {}),
        "hole.png": (rgb.quantize(8), {"transparency": 3}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "deep.png": (deep, {}),
        "bits.png": (rgb.convert("1"), {}),
        "turned.jpg": (rgb, {"exif": turned}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return [folder / name for name in kinds]


def saved(name: str, settings: dict[str, Any], folder: Path) -> Any:
    made = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    made.save_pretrained(folder)
    return made


def loaded(file: Path) -> Any:
    """As transformers' pipelines load it."""
    with Image.open(file) as image:
        return transformers.image_utils.load_image(image)


def ours(steps: Any, file: Path) -> Any:
    read = images.read_steps(Field(dict(steps), "manifest.json", "preprocess"))
    return images.pixels(images.open_image(file, read.channels, read.white), read)


@pytest.mark.parametrize(
    ("name", "settings", "size"), FIXED, ids=[f"{n}{i}" for i, (n, *_) in enumerate(FIXED)]
)
def test_images_as_transformers_makes_them(
    name: str, settings: dict[str, Any], size: tuple[int, int], photos: list[Path], tmp_path: Path
) -> None:
    theirs = saved(name, settings, tmp_path)
    assert image_shape(transformers.ViTConfig(), tmp_path) == (3, *size)
    found = images_of(tmp_path, (3, *size))
    assert found is not None
    want_same(found)
    for file in photos:
        expected = theirs(loaded(file), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(found.steps, file), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "settings", "size"), ANY_SIZE, ids=[n for n, *_ in ANY_SIZE])
def test_images_of_any_size_are_stretched(
    name: str, settings: dict[str, Any], size: tuple[int, int], photos: list[Path], tmp_path: Path
) -> None:
    theirs = saved(name, settings, tmp_path)
    found = images_of(tmp_path, (3, *size))
    assert found is not None
    with pytest.warns(LlmcWarning, match=f"images are stretched to {size[0]}x{size[1]}"):
        want_same(found)
    if name == "GLPN":  # knows no size
        return
    fixed = {"size": {"height": size[0], "width": size[1]}, "do_pad": False}
    expected = theirs(loaded(photos[0]), **fixed, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(found.steps, photos[0]), expected, rtol=0, atol=1e-5)


def test_grey_models(photos: list[Path], tmp_path: Path) -> None:
    theirs = saved("ViT", {"size": SQUARE, "image_mean": [0.1], "image_std": [0.3]}, tmp_path)
    found = images_of(tmp_path, (1, 24, 24))
    assert found is not None
    want_same(found)
    expected = theirs(loaded(photos[0]).convert("L"), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(found.steps, photos[0]), expected, rtol=0, atol=1e-5)


def test_defaults_are_those_of_the_class(tmp_path: Path) -> None:
    """What the file leaves out is not left out of the manifest."""
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    found = images_of(tmp_path, (3, 224, 224))
    assert found is not None
    assert found.steps["size"] == {"shortest_edge": 224}
    assert found.steps["resample"] == 3
    assert found.steps["mean"][0] == pytest.approx(0.48145466)


@pytest.mark.parametrize("name", ["Perceiver", "Owlv2"])
def test_other_steps_are_refused(name: str, tmp_path: Path) -> None:
    """These cut and pad otherwise; nothing but the comparison knows."""
    processor = saved(name, {}, tmp_path)
    size = getattr(processor, "crop_size", None) if name == "Perceiver" else processor.size
    found = images_of(tmp_path, (3, size["height"], size["width"]))
    assert found is not None
    with pytest.raises(LlmcError, match=f"llmc does not do to inputs what {name}ImageProcessorPil does"):
        want_same(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_processor_type": "NoSuchProcessor"}, "cannot make the folder's image processor"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"side": 3}}, "cannot make"),
        ([], "is not a JSON object"),
    ],
)
def test_processors_that_cannot_be_made(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(LlmcError, match=message):
        images_of(tmp_path, (3, 24, 24))


def test_a_folder_without_processors(tmp_path: Path) -> None:
    assert images_of(tmp_path, (3, 24, 24)) is None
    assert sounds_of(tmp_path) is None
    assert for_inputs(tmp_path, {"pixel_values": ("batch", 8, 3, 24, 24)}) is None  # a video


# --- sounds


def heard(steps: Any, sounds: list[Any]) -> Any:
    return audio.features(sounds, audio.read_steps(Field(dict(steps), "manifest.json", "preprocess")))


@pytest.fixture(scope="module")
def sounds() -> list[Any]:
    """Two sounds, the second of which is longer and begins with silence."""
    rng = np.random.default_rng(1)
    made = [rng.standard_normal(n).astype(np.float32) / 20 for n in (9_000, 16_123)]
    made[1][:3_000] = 0
    return made


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_waveforms(normalize: bool, mask: bool, sounds: list[Any], tmp_path: Path) -> None:
    theirs = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=normalize, return_attention_mask=mask, padding_value=0.25
    )
    theirs.save_pretrained(tmp_path)
    found = sounds_of(tmp_path)
    assert found is not None
    want_same(found)
    expected = theirs(sounds, sampling_rate=16_000, padding=True, return_tensors="np")
    made, kept = heard(found.steps, sounds)
    np.testing.assert_allclose(made, expected["input_values"], rtol=0, atol=1e-5)
    assert (kept is not None) == mask
    if mask:
        np.testing.assert_array_equal(kept, expected["attention_mask"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AST", {"max_length": 64, "num_mel_bins": 40}),
        ("AST", {"max_length": 128, "num_mel_bins": 128, "do_normalize": False}),
        ("Whisper", {"chunk_length": 2}),
        ("Whisper", {"chunk_length": 1, "feature_size": 128}),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filter")  # of the one with 128 bins
def test_spectrograms(name: str, settings: dict[str, Any], sounds: list[Any], tmp_path: Path) -> None:
    """Sounds that are cut and sounds that are filled up."""
    theirs = getattr(transformers, f"{name}FeatureExtractor")(**settings)
    theirs.save_pretrained(tmp_path)
    found = sounds_of(tmp_path)
    assert found is not None
    want_same(found)
    for sound in (*sounds, np.concatenate(sounds * 2)):
        made = theirs(sound, sampling_rate=16_000, return_tensors="np")
        expected = made["input_values" if "input_values" in made else "input_features"]
        np.testing.assert_allclose(heard(found.steps, [sound])[0], expected, rtol=0, atol=1e-4)


def test_other_extractors_are_refused(tmp_path: Path) -> None:
    transformers.ClapFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(LlmcError, match="llmc does not know what ClapFeatureExtractor does to sounds"):
        sounds_of(tmp_path)


# --- what a compile makes of them


def test_a_folder_whose_processor_does_otherwise_is_refused(tmp_path: Path) -> None:
    """Before anything is optimised, and no artifact is left."""
    random_model("vit").save_pretrained(tmp_path / "vit")
    saved(
        "Perceiver",
        {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}},
        tmp_path / "vit",
    )
    with pytest.raises(
        LlmcError, match="llmc does not do to inputs what PerceiverImageProcessorPil does"
    ) as caught:
        llmc.compile(tmp_path / "vit", tmp_path / "m.llmc", max_batch=2)
    assert "without preprocessor_config.json" in str(caught.value)
    assert not (tmp_path / "m.llmc").exists()


def test_letters_of_a_speech_model(tmp_path: Path) -> None:
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    assert decoder_of(tmp_path, "Wav2Vec2ForSequenceClassification") is None
    transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    found = decoder_of(tmp_path, "Wav2Vec2ForCTC")
    assert found is not None
    assert found.tokens == tuple(tokens)
    assert found.facts == {"blank": 0, "delimiter": "|", "space": " ", "lower": False}
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(LlmcError, match="cannot make the folder's tokenizer"):
        decoder_of(tmp_path, "Wav2Vec2ForCTC")


def test_decoders_and_processors_go_with_a_graph_in_files(tmp_path: Path) -> None:
    pixels = input_("pixel_values", "f32", (symbol("batch"), 3, 4, 4))
    graph = Graph((pixels,), {"logits": make("relu", (pixels,))}, {"batch": (1, 2)})
    facts = {"blank": 0, "delimiter": "|", "space": " ", "lower": False}
    steps = {"size": {"height": 4, "width": 4}, "mean": [0.5], "std": [0.5]}
    made = Imported(graph, "m", "module", "", "", ("a",), None, None, preprocess=steps, decoder=facts)
    graph_text.write(tmp_path / "m.txt", made)
    found = graph_text.load(tmp_path / "m.txt")
    assert (found.decoder, found.preprocess, found.processor) == (facts, steps, None)
