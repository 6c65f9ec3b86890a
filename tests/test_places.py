"""The places of a pipeline: where a level's, a target's and a user's passes run, and what passes may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_encoders import Encoder
from stateful_graphs import causal

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.given import Given, given, giving
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.places import PLACES, additions, placed
from llmc.errors import LlmcError
from llmc.optimise import optimise
from llmc.options import Options, Order
from llmc.passes import LEVEL_PARTS, LEVELS, PASSES
from llmc.report import Stages

WAYS = {"linear": "whole", "norm": "post", "sum": "ab", "attention": "explicit", "activation": "gelu"}
WAYS |= {"positions": "buffer", "scale": "div", "bias": "no", "mask": "fill"}
O3 = LEVELS[3]
PACKED = f'{O3},blank{{mask="mask"}},ragged'
CALIBRATION = '{"ids": [1, 2, 3], "mask": [1, 1, 1]}\n{"ids": [4, 5], "mask": [1, 1]}\n'
ASKING = """
from pathlib import Path
from llmc.compiler.given import given
from llmc.compiler.pipeline import Pass

class Count(Pass):
    wants_samples = True

    def run(self, graph):
        shapes = [tuple(s["ids"].shape) for s in given().samples(graph)]
        Path(__file__).with_suffix(".txt").write_text(f"{shapes} {given().tokenizer}")
        return graph
"""


def run(**options: Any) -> Any:
    """What the passes of a compile make of an encoder."""
    imported = Imported(Encoder(5, **WAYS).graph(), "e", "graph", "", "", (), None, None)
    order = Order("m.llmc", None, Options(**{"target": "x86-avx2", "padding": "zero", **options}))
    return optimise(imported, order, Stages(None), lambda *a, **b: pytest.fail("no native code is needed"))


def text(**options: Any) -> str:
    return str(run(**options).pipeline)


# --- texts


def test_levels_are_their_places_in_order() -> None:
    for parts, whole in zip(LEVEL_PARTS, LEVELS, strict=True):
        assert str(placed(parts, PASSES).pipeline) == whole


def test_an_addition_names_its_place() -> None:
    found = additions(["cse", "fold,tie@final", "prune{skip=[a@b]}", "cse@final"], PASSES)
    assert {p: str(found.at(p)) for p in PLACES if found.at(p).steps} == {
        "user": 'cse,prune{skip=["a@b"]}',
        "final": "fold,tie,cse",
    }
    assert str(found.pipeline) == 'cse,prune{skip=["a@b"]},fold,tie,cse'


def test_a_file_with_an_at_in_its_name(tmp_path: Path) -> None:
    file = tmp_path / "my@pass.py"
    file.write_text(ASKING)
    assert str(additions([f"{file}:Count"], PASSES).at("user")) == f"{file}:Count"
    assert str(additions([f"{file}:Count@target"], PASSES).at("target")) == f"{file}:Count"


@pytest.mark.parametrize(
    ("added", "message", "hint"),
    [
        ("cse@compres", "no place 'compres'", "did you mean compress?"),
        ("cse@xyz", "no place 'xyz'", "there is: compress, final, fuse"),
        ("@fuse", "no pass is named", "SPEC@PLACE"),
        ("", "no pass is named", "SPEC@PLACE"),
        ("cze@fuse", "no pass 'cze'", "cse"),
        ("cse@", "no place ''", "there is"),
    ],
)
def test_mistakes_in_additions(added: str, message: str, hint: str) -> None:
    with pytest.raises(LlmcError, match=message) as caught:
        additions([added], PASSES)
    assert hint in str(caught.value.hint)


# --- what runs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PACKED),
        ({"level": 2}, LEVELS[2]),
        ({"padding": "computed"}, O3),
        ({"padding": None, "quant": None, "level": None, "prune": None, "add_passes": None}, O3),
        ({"passes": "simplify"}, "simplify"),  # without fused attention there is nothing to pack
        ({"passes": O3}, f"{O3},blank{{mask=\"mask\"}},ragged"),
        ({"only_passes": O3}, O3),
        ({"only_passes": ""}, ""),
        ({"target": "cuda"}, f"{LEVELS[1]},expand-cells,{LEVEL_PARTS[3]['fuse']},unpack"),
        ({"target": "cuda", "passes": "fold"}, "fold,expand-cells,unpack"),
        ({"target": "cuda", "only_passes": "fold"}, "fold"),
        ({"add_passes": "cse", "level": 2}, LEVELS[1] + ",cse," + LEVEL_PARTS[2]["fuse"]),
        ({"add_passes": ["tie@import", "cse@final"], "level": 1}, f"tie,{LEVELS[1]},cse"),
        ({"add_passes": "share@compress", "prune": "least=1", "level": 1}, f"{LEVELS[1]},prune{{least=1}},share"),
        ({"add_passes": "share@compress", "target": "cuda", "level": 0}, "expand-cells,share,unpack"),
        ({"add_passes": "cse@layout", "quant": "fp16"}, f'{PACKED},quantize{{mode="fp16"}},qfuse,cse,cse'),
        ({"add_passes": "tie@quantise", "quant": "int8", "attention": "float"}, f"{PACKED},tie,quantize,qfuse,cse"),
    ],
)  # fmt: skip
def test_what_runs_where(options: dict[str, Any], expected: str) -> None:
    assert text(**options) == expected


@pytest.mark.parametrize("options", [{}, {"quant": "int8"}, {"prune": "sparsity=0.5,least=1"}])
def test_the_text_of_an_artifact_replays(options: dict[str, Any]) -> None:
    first = run(**options)
    for again in (run(only_passes=str(first.pipeline)), run(passes=str(first.pipeline))):
        assert str(again.module) == str(first.module)
        assert str(again.pipeline) == str(first.pipeline)


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"passes": "cse"}, "--passes"),
        ({"add_passes": ["cse"], "share": "16"}, "--add-pass, --share"),
        ({"quant": "int8"}, "--quant int8"),
    ],
)
def test_only_is_alone(options: dict[str, Any], at: str) -> None:
    with pytest.raises(LlmcError, match="--only-passes runs nothing else") as caught:
        text(only_passes="fold", **options)
    assert at in str(caught.value.at)


# --- samples and the tokenizer


@pytest.fixture
def asking(tmp_path: Path) -> str:
    (tmp_path / "asking.py").write_text(ASKING)
    (tmp_path / "data.jsonl").write_text(CALIBRATION)
    return f"{tmp_path / 'asking.py'}:Count"


def test_a_pass_gets_samples(asking: str, tmp_path: Path) -> None:
    assert text(add_passes=f"{asking}@final", level=0, calib=tmp_path / "data.jsonl") == asking
    assert (tmp_path / "asking.txt").read_text() == "[(1, 3), (1, 2)] None"


def test_samples_that_are_missing_or_of_no_use(asking: str, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="a pass of the pipeline needs calibration data") as caught:
        text(add_passes=asking)
    assert "--calib FILE" in str(caught.value.hint)
    with pytest.raises(
        LlmcError, match="calibration data is of use to int8-static, w8, w4, w4a8 and --prune only"
    ):
        text(calib=tmp_path / "data.jsonl")
    (tmp_path / "data.jsonl").write_text('{"mask": [1]}\n')
    with pytest.raises(LlmcError, match="Count: calibration") as caught:
        text(add_passes=asking, calib=tmp_path / "data.jsonl")
    assert "line 1" in str(caught.value.at)


def test_given_is_what_was_given_last() -> None:
    graph = Graph((), {}, {})
    with pytest.raises(LlmcError, match="works on samples"):
        given().samples(graph)
    sample = {"x": np.zeros(1, np.float32)}
    with giving(Given(lambda graph: iter([sample]), "tokenizer")):
        assert list(given().samples(graph)) == [sample]
        with giving(Given()):
            assert given().tokenizer is None
        assert given().tokenizer == "tokenizer"
    assert given().tokenizer is None
    assert Pipeline(()).run(graph)[0] is graph


def test_a_text_that_has_append_is_not_given_it_twice() -> None:
    """As the manifest's `pipeline` of a model whose states grow has it first."""
    imported = Imported(causal(), "c", "graph", "", "", (), None, None)

    def made(**options: Any) -> str:
        order = Order("m.llmc", None, Options(target="x86-avx2", **options))
        return str(
            optimise(imported, order, Stages(None), lambda *a, **b: pytest.fail("no native code")).pipeline
        )

    whole = made()
    assert whole.startswith("append,")
    assert made(passes=whole) == whole
    assert made(passes="simplify") == "append,simplify"
