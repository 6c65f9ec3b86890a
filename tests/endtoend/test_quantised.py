"""Quantised artifacts of the demo model: near the float answers, the same bits everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import instruction_sets
import numpy as np
import pytest
from random_families import random_model

import llmc
from llmc import demo
from llmc.compiler import interpret
from llmc.compiler.frontends import huggingface
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import PASSES

SHAPES = [(1, 1), (3, 17), (2, 64)]
# quantisation -> (options, largest difference of a logit, share of the float artifact's weights)
ASKED: dict[str, tuple[dict[str, Any], float, float]] = {
    "int8": ({"quant": "int8"}, 0.5, 0.28),
    "fp16": ({"quant": "fp16"}, 0.0, 0.52),  # the demo's weights have half precision from the start
    "bf16a16": ({"quant": "bf16a16"}, 0.1, 0.52),
    "int8-static": ({"quant": "int8-static", "calib": "auto", "calib_method": "minmax"}, 2.0, 0.28),
}


@pytest.fixture(scope="module")
def made(shared: Callable[..., Path]) -> Callable[[str], Path]:
    """`made(quant)`: the demo model's artifact with every variant that this processor has, compiled once.

    "none" is compared with, so it has the best only.
    """

    def of(quant: str) -> Path:
        options = {"target": "x86", **ASKED[quant][0]} if quant in ASKED else {}
        with instruction_sets.code_of_this_processor():
            return shared(f"demo-{quant}.llmc", partial(llmc.compile, demo.model_folder(), **options))

    return of


def inputs_of(batch: int, seq: int) -> dict[str, Any]:
    inputs = demo.sample(3000, batch, seq)
    inputs["attention_mask"][1:, seq // 2 :] = 0
    return inputs


@pytest.mark.parametrize("quant", ASKED)
def test_near_the_float_answers(quant: str, made: Any) -> None:
    _, limit, share = ASKED[quant]
    with llmc.load(made("none")) as plain, llmc.load(made(quant)) as model:
        assert model.manifest.quantisation == quant
        steps = {"int8": "quantize", "bf16a16": "bf16-products"}
        assert steps.get(quant, f'mode="{quant}"') in model.manifest.pipeline
        assert model.selftest().passed
        for shape in SHAPES:
            given = inputs_of(*shape)
            difference = np.abs(model(**given)["logits"] - plain(**given)["logits"]).max()
            assert difference <= limit, shape
            assert (difference == 0) == (quant == "fp16"), shape
        sizes = [m.manifest.sizes["weights_bytes"] for m in (model, plain)]
    assert sizes[0] <= share * sizes[1]


@pytest.mark.parametrize("quant", ASKED)
def test_same_bits_at_every_thread_count_and_variant(
    quant: str, made: Any, bits_agree: Any, variants: Any
) -> None:
    path = made(quant)
    names = variants(path)
    has = {v.name for v in llmc.runtime.read_manifest(path).variants}
    assert ("avx512vnni" in has, "avx512amx" in has) == ("int8" in quant, quant != "fp16")
    for shape in SHAPES:
        runs = []
        for name in names:
            for threads in (1, 2, 3):
                with llmc.load(path, threads=threads, variant=name) as model:
                    runs.append(model(**inputs_of(*shape)))
        assert bits_agree(runs), shape


@pytest.mark.parametrize("quant", ASKED)
def test_a_row_is_the_same_alone_and_in_a_padded_batch(quant: str, made: Any) -> None:
    inputs = inputs_of(3, 20)
    with llmc.load(made(quant)) as model:
        together = model(**inputs)["logits"]
        for row in range(3):
            length = int(inputs["attention_mask"][row].sum())
            alone = model(**{name: a[row : row + 1, :length] for name, a in inputs.items()})["logits"]
            np.testing.assert_array_equal(alone[0], together[row])


def test_the_recorded_pipeline_builds_it_again(made: Any) -> None:
    """Calibrated scales are in the pipeline's text: the interpreter on that graph gives the artifact's answers."""
    graph = huggingface.load(demo.model_folder()).graph
    given = inputs_of(2, 9)
    with llmc.load(made("int8-static")) as model:
        after, _ = Pipeline.parse(model.manifest.pipeline, PASSES).run(graph)
        expected = interpret.run(after, {k: given[k] for k in ("input_ids", "attention_mask")})
        assert np.abs(model(**given)["logits"] - expected["logits"]).max() <= 0.05


def test_attention_may_stay_float(tmp_path: Path, small_model: Path) -> None:
    pipelines, answers = [], []
    for attention in ("int8", "float"):
        place = tmp_path / f"{attention}.llmc"
        llmc.compile(small_model, place, quant="int8", attention=attention, keep=tmp_path / attention)
        pipelines.append(json.loads((place / "manifest.json").read_text())["pipeline"])
        kept = "".join(file.read_text() for file in (tmp_path / attention).glob("*.txt"))
        assert ("int8=True" in kept) == (attention == "int8")
        with llmc.load(place) as model:
            answers.append(next(iter(model(input_ids=[[3, 4, 5, 6, 7]]).values())))
    assert pipelines[0] == f"{pipelines[1]},qattention"
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.2 * np.abs(answers[1]).max()


def mistakes(tmp_path: Path) -> list[tuple[dict[str, Any], str]]:
    empty, fields, weird = (tmp_path / name for name in ("empty.txt", "fields.jsonl", "weird.xml"))
    empty.write_text("\n\n")
    fields.write_text('{"review": "good"}\n')
    weird.write_text("<a/>")
    static = {"quant": "int8-static"}
    return [
        ({"quant": "int9"}, "unknown quantisation 'int9'"),
        ({"quant": "int8", "attention": "int4"}, "no attention on 'int4'"),
        (static, "needs calibration data"),
        ({"quant": "int8", "calib": "auto"}, "of use to int8-static, w8, w4, w4a8 and --prune only"),
        ({"quant": "w4", "add_passes": "quantize"}, "qfuse` makes kernels of them"),
        ({"quant": "w4", "group": 40}, "no products with such groups"),
        ({"quant": "int8", "group": 64}, "groups are of weights in 8 and 4 bits"),
        ({"quant": "int8", "zero_points": True}, "zero points are of weights in 8 and 4 bits"),
        ({"quant": "w8", "zero_points": True, "group": 0}, "whole rows of 8 bits have no zero points"),
        ({"quant": "w4", "calib": empty}, "no samples"),
        ({**static, "calib": "auto", "calib_method": "best"}, "unknown calibration method"),
        ({"quant": "w4", "calib": "auto", "calib_method": "minmax"}, "chosen for int8-static only"),
        ({**static, "calib": tmp_path / "none.txt"}, "no such calibration file"),
        ({**static, "calib": empty}, "no samples"),
        ({**static, "calib": fields}, 'no field "text"'),
        ({**static, "calib": weird}, "what kind"),
    ]


def test_mistakes_leave_nothing(tmp_path: Path, small_model: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for options, words in mistakes(tmp_path):
        with pytest.raises(LlmcError) as caught:
            llmc.compile(small_model, place / "m.llmc", **options)
        assert words in f"{caught.value} {caught.value.hint}"
        assert os.listdir(place) == []


def test_nan_activations_name_the_layer(tmp_path: Path, cli: Any) -> None:
    """A model whose second layer gives NaN: calibration says where, and nothing is written."""
    model = random_model("bert", "ForSequenceClassification")
    model.bert.encoder.layer[0].output.LayerNorm.bias.data[:] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    np.savez(tmp_path / "a.npz", input_ids=np.full((2, 5), 3))
    options = ("--quant", "int8-static", "--calib", tmp_path / "a.npz")
    result: SimpleNamespace = cli("compile", tmp_path / "nan", "-o", tmp_path / "m.llmc", *options)
    assert result.code == 1
    assert "an activation is not finite" in result.err
    assert "layer.1" in result.err
    assert not (tmp_path / "m.llmc").exists()
