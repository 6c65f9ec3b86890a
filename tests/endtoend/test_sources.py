"""Texts of an image and of a sound: artifacts of encoder-decoders beside transformers' generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generating import changed
from random_any import made
from random_seq2seq import CASES

import llmc
from llmc.cli import main
from llmc.errors import LlmcError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SEER, HEARER = "VisionEncoderDecoderModel", "Speech2TextForConditionalGeneration"
BEAMS = {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True}


def compiled(name: str, folder: Path) -> Any:
    """The artifact, opened, and the model."""
    model = made(name, CASES[name])
    model.save_pretrained(folder / "model")
    if name == SEER:
        size = {"height": 16, "width": 16}
        transformers.ViTImageProcessor(size=size).save_pretrained(folder / "model")
    llmc.compile(folder / "model", folder / "m.llmc", target="x86-avx2")
    return llmc.load(folder / "m.llmc", threads=1), type(model).from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    opened, model = compiled(SEER, tmp_path_factory.mktemp("seer"))
    with opened:
        yield opened, model


@pytest.fixture(scope="module")
def hearer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    opened, model = compiled(HEARER, tmp_path_factory.mktemp("hearer"))
    with opened:
        yield opened, model


def theirs(model: Any, array: Any, **options: Any) -> list[int]:
    given = {model.main_input_name: torch.from_numpy(array)}
    found = model.generate(**given, do_sample=False, **{"max_new_tokens": 12, **options})[0, 1:]
    return [int(token) for token in found]


def same(found: list[int], wanted: list[int], pad: int = 1) -> bool:
    return found == wanted[: len(found)] and set(wanted[len(found) :]) <= {pad}


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)


@pytest.mark.parametrize("options", [{}, BEAMS], ids=["greedy", "beams"])
def test_a_text_of_an_image(seer: Any, options: dict[str, Any]) -> None:
    """Of a picture and of the array that is made of it; several at once are those of each alone."""
    opened, model = seer
    pixels = [opened.preprocess(images=[picture(seed)])["pixel_values"] for seed in range(3)]
    for seed, array in enumerate(pixels):
        made_of = opened.generate(images=picture(seed), max_new_tokens=12, **options)
        assert same(made_of.ids, theirs(model, array, **options))
        assert opened.generate(array, max_new_tokens=12, **options).ids == made_of.ids
    several = opened.generate(pixels, max_new_tokens=12, **options)
    assert [one.ids for one in several] == [
        opened.generate(array, max_new_tokens=12, **options).ids for array in pixels
    ]


def test_a_text_that_is_begun(seer: Any, tmp_path: Path) -> None:
    """The token that a text begins with comes before, once; a model with tokens for its tasks leaves it to them."""
    opened, model = seer
    array = opened.preprocess(images=[picture(0)])["pixel_values"]
    wanted = model.generate(
        pixel_values=torch.from_numpy(array),
        decoder_input_ids=torch.tensor([[7, 8]]),
        max_new_tokens=6,
        do_sample=False,
    )[0].tolist()
    assert wanted[:3] == [2, 7, 8]
    for begun in ([7, 8], [2, 7, 8]):
        assert opened.generate(begun, images=picture(0), max_new_tokens=6).ids == wanted[3:]
    encoder = {**opened.manifest.raw["generation"]["encoder"], "bare": 1}
    with (
        llmc.load(changed(opened.path, tmp_path, encoder=encoder), threads=1) as bare,
        bare.session() as session,
    ):
        session.run({"pixel_values": array})
        logits = session.call("step", input_ids=[[7, 8]], logits_to_keep=[1])["logits"]
        assert bare.generate([7, 8], images=picture(0), max_new_tokens=1).ids == [int(logits.argmax())]


def test_the_terminal_describes_an_image(seer: Any, tmp_path: Path, capsys: Any) -> None:
    from PIL import Image

    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    assert main(["run", str(seer[0].path), "--image", str(tmp_path / "a.png"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["tokens"] == seer[0].generate(images=picture(1)).ids


def test_what_is_no_source(seer: Any, hearer: Any) -> None:
    for model, told in (
        (seer[0], "reads pixel_values, not text"),
        (hearer[0], "reads input_features, not text"),
    ):
        with pytest.raises(LlmcError, match=told):
            model.generate([5, 6])
    with pytest.raises(LlmcError, match="made of one image"):
        seer[0].generate(images=[picture(0), picture(1)])
    with pytest.raises(LlmcError, match="no languages, tasks or timestamps"):
        hearer[0].transcribe(np.zeros(4000, np.float32), language="en")


@pytest.mark.parametrize("options", [{}, BEAMS], ids=["greedy", "beams"])
def test_a_text_of_a_sound(hearer: Any, options: dict[str, Any]) -> None:
    """Of the shortest, of one that no convolution's step divides, and of a long one."""
    opened, model = hearer
    for frames in (24, 67, 130):
        array = np.random.default_rng(frames).normal(size=(1, frames, 8)).astype(np.float32)
        found = opened.generate(array, max_new_tokens=12, **options).ids
        assert same(found, theirs(model, array, **options))


def test_sessions_with_sounds_of_several_lengths(hearer: Any) -> None:
    """In one run each has the bits that it has alone."""
    opened, _ = hearer
    sounds = [np.random.default_rng(n).normal(size=(1, n, 8)).astype(np.float32) for n in (24, 90, 240)]
    calls = [{"input_ids": [[2, 5, 6][: n + 1]], "logits_to_keep": [n]} for n in range(3)]
    with opened.session() as a, opened.session() as b, opened.session() as c:
        sessions = (a, b, c)
        for session, sound in zip(sessions, sounds, strict=True):
            session.run({"input_features": sound})
        together = opened.run_sessions(list(zip(sessions, calls, strict=True)), function="step")
    for sound, call, found in zip(sounds, calls, together, strict=True):
        with opened.session() as alone:
            alone.run({"input_features": sound})
            assert np.array_equal(alone.call("step", **call)["logits"], found["logits"])
