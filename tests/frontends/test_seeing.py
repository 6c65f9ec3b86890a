"""Models of images and text as `see` and `step`: call by call what transformers computes for both at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kept_graphs
import numpy as np
import pytest
import random_seers as seers
import torch
from random_any import made

from llmc import preprocessing
from llmc.compiler.frontends import eyes, grid_eyes, vision_processors, vision_prompts
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.interpret import step
from llmc.compiler.module import Module
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError
from llmc.runtime import images, looking, patches
from llmc.runtime.fields import Field
from llmc.runtime.images_entry import read_images

WITHOUT_PACKAGE = ("SmolVLM",)  # its processor needs num2words; it is Idefics3's
FAMILIES = [name for name in seers.CASES if name not in WITHOUT_PACKAGE]
GRIDS = ("Qwen2VL", "Qwen2_5_VL", "Glm4v", "GlmOcr", "Exaone4_5_")
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
PICTURES = [seers.picture(20, 33), seers.picture(40, 17, 1)]


def prompts(name: str) -> str:
    prompt = seers.PROMPTS.get(name, "<image> what is this")
    return f"{prompt} near {prompt} ?"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`folder(name)`: what a case's folder says of images and texts."""
    made: dict[str, Path] = {}

    def saved(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            seers.image_processor(name).save_pretrained(made[name])
            seers.tokenizer().save_pretrained(made[name])
        return made[name]

    return saved


def eyes_of(name: str) -> Any:
    """What the frontend knows of the model, without it."""
    kind = {"Idefics3": "tiles", **dict.fromkeys(GRIDS, "grid")}.get(name, "fixed")
    made = seers.configuration(name)
    shape = (4, 96) if kind == "grid" else (3, 16, 16)
    sizes = {"patch": 4, "merge": 2, "frames": 2}
    window = 2 if name in ("Qwen2_5_VL", "Exaone4_5_") else 0
    inputs = (SimpleNamespace(axes=("rows", *shape)),)
    return SimpleNamespace(
        **{"kind": kind, "shape": shape, "tokens": 1 if kind == "grid" else 4, "inputs": inputs},
        **{
            "token": made.image_token_id,
            "model": SimpleNamespace(config=made),
            "sizes": sizes,
            "window": window,
            "counted": 2 if name.startswith("Glm") else 1,
            "enlarged": name.startswith("Glm"),
        },
    )


def steps_of(name: str, folder: Any) -> images.ImageSteps:
    made = vision_processors.of(folder(name), eyes_of(name))
    assert made is not None
    return images.read_steps(Field(dict(made.steps), "", "preprocess"))


def asked(name: str) -> dict[str, Any]:
    """What transformers' processor makes of a prompt with two images."""
    if name in GRIDS:
        return grids(name)
    made = seers.processor(name)(images=PICTURES, text=prompts(name), return_tensors="np")
    return {key: torch.from_numpy(np.asarray(value)) for key, value in made.items() if key != "labels"}


def grids(name: str) -> dict[str, Any]:
    """The same by the parts of their processor, which as a whole needs torchvision."""
    made = seers.image_processor(name)(PICTURES, return_tensors="pt")
    mark, text = "<|image_pad|>", prompts(name)
    for grid in made["image_grid_thw"]:
        text = text.replace(mark, "<row>" * int(grid.prod() // 4), 1)
    ids = torch.tensor([seers.tokenizer()(text.replace("<row>", mark))["input_ids"]])
    kinds = (ids == seers.ID[mark]).int()
    return {**made, "input_ids": ids, "mm_token_type_ids": kinds}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.imports) for n in FAMILIES])
def test_every_step_is_that_of_images_and_text_at_once(name: str, folder: Any) -> None:
    """Whatever the calls; where tokens of an image see each other, of those that do not cut it."""
    model = seers.model(name)
    found = kept_graphs.imported(model)
    assert found.task == "image-text-to-text"
    assert list(found.functions) == ["see", "step"]
    verify_module(Module(found.functions))
    given = asked(name)
    with torch.no_grad():
        wanted = model(**given, use_cache=False).logits.numpy()
    arrays, _ = looking.made(PICTURES, steps_of(name, folder))
    ids = given["input_ids"].numpy()
    whole = found.generation["images"]["together"]
    for calls in ([ids.shape[1]],) if whole == "prompt" else ([ids.shape[1]], cut(name, ids)):
        away = np.abs(played(found.functions, arrays, ids, calls) - wanted).max() / np.abs(wanted).max()
        assert away < 1e-5, calls


@pytest.mark.parametrize("window", [0, 2, 3])
def test_the_runtime_places_rows_as_the_model_was_checked_with(window: int) -> None:
    grids = [(2, 3), (5, 4), (1, 1), (3, 7)]
    assert np.array_equal(patches.beside(grids, window), grid_eyes.beside(grids, window).numpy())


def cut(name: str, ids: Any) -> list[int]:
    """Calls of a few tokens; of Gemma 3 each image is in one."""
    if name != "Gemma3":
        return [1, 2, 1, 3, ids.shape[1] - 7]
    first = int(np.argmax(ids[0] == seers.ID["<image>"]))
    return [first - 1, 5, 1, ids.shape[1] - first - 5]


def played(functions: Any, arrays: Any, ids: Any, calls: list[int]) -> Any:
    """All logits of a text [1, n]."""
    _, states = step(functions["see"], arrays, {})
    found, at = [], 0
    for tokens in calls:
        given = {"input_ids": ids[:, at : at + tokens], "logits_to_keep": np.arange(tokens)}
        outputs, states = step(functions["step"], given, states)
        found.append(outputs["logits"])
        at += tokens
    return np.concatenate(found, 1)


def test_an_image_that_is_cut_gives_no_numbers_where_its_tokens_see_each_other(folder: Any) -> None:
    found = kept_graphs.imported(seers.model("Gemma3"))
    ids = asked("Gemma3")["input_ids"].numpy()
    arrays, _ = looking.made(PICTURES, steps_of("Gemma3", folder))
    first = int(np.argmax(ids[0] == seers.ID["<image>"]))
    logits = played(found.functions, arrays, ids, [first + 2, ids.shape[1] - first - 2])
    assert np.isnan(logits[0, -1]).all()


def test_a_type_that_nothing_names_is_seen_by_its_numbers() -> None:
    """Of a fixed number of rows for each image, by the parts that most have: InternVL."""
    sees = {**SIZES, "image_size": [16, 16], "patch_size": [4, 4]}
    reads = {"model_type": "qwen2", **SIZES, "vocab_size": 50, "num_key_value_heads": 2, "pad_token_id": 1}
    settings = {"vision_config": sees, "text_config": reads, "image_token_id": 40, "downsample_ratio": 0.5}
    model = made("InternVLForConditionalGeneration", settings)
    functions = kept_graphs.imported(model).functions
    ids = np.array([[2, *[40] * 4, 3, *[40] * 4, 20]])
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        given = {"input_ids": torch.from_numpy(ids), "pixel_values": torch.from_numpy(pixels)}
        wanted = model(**given, use_cache=False).logits.numpy()
    logits = played(functions, {"pixel_values": pixels}, ids, [3, 8])
    assert np.abs(logits - wanted).max() < 1e-4


def test_a_tower_that_cannot_run_is_a_sentence() -> None:
    """More tokens than patches: transformers' pool has a stride of 0."""
    settings = {**seers.CASES["Gemma3"], "mm_tokens_per_image": 400}
    model = made("Gemma3ForConditionalGeneration", settings)
    with pytest.raises(LlmcError, match="transformers cannot run the model: stride should not be zero"):
        eyes.of(model, Path("nowhere"), 64)


def test_image_tokens_without_a_row_are_tokens_like_others() -> None:
    """As transformers takes a token of images that it made itself."""
    model = seers.model("Llava")
    functions = kept_graphs.imported(model).functions
    ids = np.array([[2, 3, 14, 3, 20]])
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
    zeros = {"images": np.zeros((1, 4, 32), np.float32), "images.rows": np.zeros(1, np.float32)}
    given = {"input_ids": ids, "logits_to_keep": np.arange(5)}
    outputs, _ = step(functions["step"], given, zeros)
    assert np.abs(outputs["logits"] - wanted).max() < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_pixels_are_those_of_transformers_processor(name: str, folder: Any) -> None:
    given, eyes = asked(name), eyes_of(name)
    tool = seers.tokenizer()
    said = vision_prompts.texts(folder(name), eyes, tokenizer_of(tool))
    rows = {} if eyes.kind == "grid" else {"rows": eyes.tokens}
    entry = {"function": "see", "dim": "images", "token": eyes.token, **rows, **said}
    known = read_images(Field(entry, "", "images"), {"see": None}, {"images": (1, 9)}, 99)
    arrays, sizes = looking.made(PICTURES, steps_of(name, folder))
    text = looking.expanded(known, prompts(name), looking.Looked(arrays, sizes), "")
    assert tool(text, add_special_tokens=name != "PaliGemma")["input_ids"] == given["input_ids"][0].tolist()
    pixels = given["pixel_values"].numpy()
    assert np.abs(pixels.reshape(arrays["pixel_values"].shape) - arrays["pixel_values"]).max() < 1e-5
    preprocessing.want_same(vision_processors.of(folder(name), eyes))  # type: ignore[arg-type]  # there is one


def tokenizer_of(tool: Any) -> Tokenizer:
    return Tokenizer(Path("tokenizer.json"), 99, 1, made=tool.backend_tokenizer.to_str())


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("Gemma3", {"do_pan_and_scan": True}, "do_pan_and_scan is true"),
        ("Llava", {"do_center_crop": False}, "its images are of any size"),
        ("Idefics3", {"max_image_size": {"longest_edge": 32}}, "is not of tiles of 16"),
        ("Qwen2VL", {"merge_size": 4}, "its patches are"),
        ("Glm4v", {"size": {"shortest_edge": 257, "longest_edge": 1280}}, "whole pixels in 2 frames"),
        ("Idefics3", {"do_resize": False}, "images are not resized"),
    ],
)
def test_a_processor_that_does_something_else_is_refused(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    made = seers.image_processor(name)
    for key, value in changes.items():
        setattr(made, key, value)
    made.save_pretrained(tmp_path)
    with pytest.raises(LlmcError) as error:
        vision_processors.of(tmp_path, eyes_of(name))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('{"image_seq_length": 5}', "'image_seq_length' is not known"),
        ('{"vision_feature_select_strategy": "full"}', "the model's images need 'default'"),
        ('{"num_additional_image_tokens": 3}', "num_additional_image_tokens is 3"),
        ('{"image_token": "<img>"}', "image_token is not the token"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(settings)
    with pytest.raises(LlmcError) as error:
        vision_prompts.texts(tmp_path, eyes_of("Llava"), tokenizer_of(seers.tokenizer()))
    assert said in str(error.value)


def test_images_of_any_size_become_grids_as_in_transformers() -> None:
    """GLM-4V enlarges what is less than a row, and counts pixels in frames."""
    from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

    steps = patches.GridSteps(patch=4, merge=2, frames=2, least=128, most=640, window=0, enlarged=True)
    for height, width in [(1, 1), (3, 30), (7, 9), (30, 5), (8, 8), (21, 34), (100, 17), (333, 250)]:
        wanted = smart_resize(2, height, width, 2, 8, 256, 1280)
        assert patches.grid_size(height, width, steps) == wanted, (height, width)
