"""Images beside prompts on the artifact of tests/seers.py: the interpreter's tokens, sessions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import llmc
from llmc.errors import LlmcError

pytest.importorskip("torch")  # the artifact is compiled


@pytest.fixture(scope="module")
def model(shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import seers

    return llmc.load(shared("seer.llmc", seers.artifact(tmp_path_factory.mktemp("seer"))), threads=1)


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)


A, B = picture(0), picture(1)
ONE, TWO = "the <image> old bird", "two <image> and <image> fish"


def told(model: Any, ids: list[int], images: list[Any], new: int) -> list[int]:
    """The likeliest tokens, by the interpreter."""
    import seers

    from llmc.compiler.interpret import step

    _, states = step(seers.see(), model.preprocess(images=images), {})
    made, given = list[int](), ids
    for _ in range(new):
        inputs = {"input_ids": np.array([given]), "logits_to_keep": np.array([len(given) - 1])}
        outputs, states = step(seers.step(), inputs, states)
        made.append(int(outputs["logits"][0, -1].argmax()))
        given = made[-1:]
    return made


def plain(model: Any, prompt: Any, **options: Any) -> list[int]:
    made = model.generate(prompt, do_sample=False, eos_token_id=[], **options).ids
    return list(made)


@pytest.mark.parametrize(("prompt", "images"), [(ONE, [A]), (TWO, [A, B]), (TWO, [B, A])])
def test_tokens_are_those_of_the_interpreter(model: Any, prompt: str, images: list[Any]) -> None:
    """Whatever the chunks of the prompt."""
    from llmc.runtime.prompts import encoder_of

    encoder = encoder_of(model)
    assert encoder is not None
    ids = encoder.ids(prompt.replace("<image>", "<image> <image>"), True)
    wanted = told(model, ids, images, 6)
    for chunk in (512, 1, 3):
        assert plain(model, prompt, images=images, max_new_tokens=6, prefill_chunk_size=chunk) == wanted
    assert plain(model, ids, images=images, max_new_tokens=6) == wanted


def test_a_session_keeps_a_text_while_its_images_stay(model: Any) -> None:
    fresh = {i: plain(model, ONE, images=[image], max_new_tokens=4) for i, image in enumerate((A, B))}
    with model.session() as session:
        first = model.generate(ONE, images=A, session=session, max_new_tokens=4)
        again = model.generate(ONE, images=[A], session=session, max_new_tokens=4)
        assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, first.usage.prompt_tokens - 1)
        other = model.generate(
            ONE, images=B, session=session, max_new_tokens=4, eos_token_id=[], do_sample=False
        )
        assert other.usage.cached_tokens == 0
        assert other.ids == fresh[1]
        session.reset()
        session.run(model.preprocess(images=[A]))  # and nobody may believe that it still holds B
        assert plain(model, ONE, images=B, session=session, max_new_tokens=4) == fresh[1]
        assert plain(model, "the old bird", session=session, max_new_tokens=4) == plain(
            model, "the old bird", max_new_tokens=4
        )


def test_several_prompts_are_each_as_alone(model: Any) -> None:
    """In one run: each session looks up rows of its own images."""
    assert model.functions["step"].batches
    made = model.generate(
        [ONE, "the old bird", TWO], images=[A, None, [A, B]], max_new_tokens=5, do_sample=False
    )
    alone = [
        model.generate(prompt, images=images, max_new_tokens=5, do_sample=False).ids
        for prompt, images in ((ONE, A), ("the old bird", None), (TWO, [A, B]))
    ]
    assert [one.ids for one in made] == alone


def test_conversations_name_their_images(model: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(A).save(tmp_path / "a.png")
    text = {"type": "text", "text": "the old bird"}
    options = {"max_new_tokens": 4, "do_sample": False}

    def said(image: dict[str, Any], **more: Any) -> list[int]:
        content = [{"type": "image", **image}, text]
        return list(model.chat([{"role": "user", "content": content}], **options, **more).ids)

    wanted = said({"image": A})
    assert said({"path": str(tmp_path / "a.png")}) == said({}, images=A) == wanted
    shown = model.generate(
        "user: <image> the old bird  assistant:", images=A, **options
    ).usage.prompt_tokens  # one for the mark makes two
    assert (
        shown
        == model.chat(
            [{"role": "user", "content": [{"type": "image", "image": A}, text]}], **options
        ).usage.prompt_tokens
    )


def test_beams_see_the_images(model: Any) -> None:
    found = model.search(ONE, images=A, num_beams=2, max_new_tokens=3)
    assert found[0].score >= model.search(ONE, images=A, num_beams=1, max_new_tokens=3)[0].score


PART = {"role": "user", "content": [{"type": "image"}]}


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.generate(ONE), "the prompt has 1 place for images, no image is given"),
        (lambda m: m.generate("a bird", images=A), "the prompt has no places for images, 1 image given"),
        (lambda m: m.generate(ONE, images=[A, B]), "the prompt has 1 place for images, 2 images given"),
        (
            lambda m: m.generate([1, 32, 5], images=A),
            "the prompt has 1 token of images, the images given make 2",
        ),
        (lambda m: m.generate([1, 32]), "the prompt has 1 token of images, the images given make 0"),
        (
            lambda m: m.generate("<image>" * 9, images=[A] * 9),
            "the images make 9 images, the model takes at most 8",
        ),
        (lambda m: m.generate(ONE, images=np.zeros((4, 4, 2), np.uint8)), "an image is a file"),
        (lambda m: m.generate(ONE, images="none.png"), "the image was not found"),
        (lambda m: m.generate([ONE, ONE], images=[A]), "images has no entry for each of 2 prompts"),
        (lambda m: m.chat([PART]), "a part of a message is an image, and no image is given"),
        (lambda m: m.chat([PART], images=[A, B]), "2 images are given, the messages have parts for 1"),
        (
            lambda m: m.chat([{"role": "user", "content": [{"type": "image", "url": "http://a"}]}]),
            "an image by its url is not taken",
        ),
        (  # OpenAI's, which most templates leave out
            lambda m: m.chat(
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]
            ),
            "an image by its url is not taken",
        ),
        (
            lambda m: m.chat([{"role": "user", "content": [{"type": "video", "path": "a.mp4"}]}]),
            "a part of a message is of the type 'video'",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(model: Any, ask: Any, said: str) -> None:
    with pytest.raises(LlmcError) as error:
        ask(model)
    assert said in str(error.value)


def test_a_damaged_image_is_a_sentence(model: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(A).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(LlmcError) as error:
        model.generate(ONE, images=tmp_path / "b.png")
    assert "the image cannot be read" in str(error.value)


def test_the_command_takes_images(model: Any, tmp_path: Path) -> None:
    from PIL import Image

    from llmc.cli.run import command

    Image.fromarray(A).save(tmp_path / "a.png")
    image = ["--image", str(tmp_path / "a.png"), "--max-new-tokens", "4", "--json"]
    made = CliRunner().invoke(command, [str(model.path), "--prompt", ONE, *image])
    assert made.exit_code == 0, made.output
    assert json.loads(made.output)[0]["tokens"] == model.generate(ONE, images=A, max_new_tokens=4).ids
    chat = CliRunner().invoke(command, [str(model.path), "--chat", "--prompt", "the old bird", *image])
    assert chat.exit_code == 0, chat.output
