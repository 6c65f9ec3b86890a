"""Text in: the tokenizer of the artifact `tiny` knows the words a to h."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from llmc import LlmcError
from llmc.cli import answers, main
from llmc.cli.run import command, joined
from llmc.errors import TextsCut
from llmc.runtime import load

LONG = "a " * 300


@pytest.fixture(scope="module")
def model(tiny):
    with load(tiny, threads=1) as model:
        yield model


@pytest.mark.parametrize(
    ("texts", "ids", "mask"),
    [
        ("a b", [[2, 3]], [[1, 1]]),
        (["a b", "h"], [[2, 3], [9, 0]], [[1, 1], [1, 0]]),
        (("a b", "c"), [[2, 3, 4]], [[1, 1, 1]]),
        ([("a", "b"), "c zzz d"], [[2, 3, 0], [4, 1, 5]], [[1, 1, 0], [1, 1, 1]]),
    ],
)
def test_run_text(model, expected, texts, ids, mask):
    found = model.run_text(texts)
    np.testing.assert_array_equal(found["hidden"], expected(ids, mask)["hidden"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there are no texts"),
        ("", "the texts have no tokens"),
        ([1], "not a text or a pair of texts: 1"),
        ([("a", "b", "c")], "not a text or a pair of texts"),
        (["a"] * 65, "batch is 65 in axis 0 of input input_ids, must be within 1..64"),
    ],
)
def test_refuses(model, texts, message):
    with pytest.raises(LlmcError) as caught:
        model.run_text(texts)
    assert message in str(caught.value)


def test_too_long_is_cut_and_told(model, expected):
    before = model.cut_texts
    with pytest.warns(TextsCut, match="^2 of 3 texts were cut to the 128 tokens that the model takes$"):
        found = model.run_text([LONG, "a b", LONG])
    assert model.cut_texts == before + 2
    ids = np.full((3, 128), 2)
    ids[1, 1:] = [3] + 126 * [0]
    mask = np.ones((3, 128), int)
    mask[1, 2:] = 0
    np.testing.assert_array_equal(found["hidden"], expected(ids, mask)["hidden"])
    with pytest.warns(TextsCut, match="^the text was cut"):
        model.run_text(LONG)
    with pytest.warns(TextsCut, match="^1 of 2 texts was cut"):
        model.run_text([("a", "b"), ("a", LONG)])
    model.run_text("a " * 128)  # as many as fit: no warning


def test_too_long_where_nothing_may_be_cut(model):
    with pytest.raises(LlmcError, match="the text has 300 tokens, the model takes 128"):
        model.run_text(LONG, truncate=False)
    with pytest.raises(LlmcError, match="text 2 has 300 tokens, the model takes 128, and 1 more"):
        model.run_text(["a", LONG, "b", "a " * 129], truncate=False)


@pytest.fixture
def raw(monkeypatch):
    """What `tiny` gives is no embedding, whatever its manifest says."""

    def sums(model, encoded, outputs, row):
        return {"sums": outputs["sums"][row]}

    monkeypatch.setattr(answers, "_embedding", sums)


def run(tiny, stdin, *options):
    return CliRunner().invoke(command, [str(tiny), "--text", "-", *map(str, options)], input=stdin)


def test_more_lines_than_a_batch_run_in_parts(tiny, tmp_path, model, raw):
    """Of 300 lines, more than four batches; the longest is not in the first."""
    texts = [" ".join("abcdefgh"[: 1 + i % 3]) for i in range(299)] + ["a b c d e"]
    shown = run(tiny, "\n".join(texts), "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert [answer["text"] for answer in found] == texts
    wanted = np.concatenate([model.run_text(texts[i : i + 50])["sums"] for i in range(0, 300, 50)])
    np.testing.assert_array_equal(np.float32([answer["sums"] for answer in found]), wanted)
    refused = run(tiny, "\n".join(texts), "--output", tmp_path / "out.npz").exception
    assert refused.problem == "the output 'ramp' has no row for each text, and a run takes 64"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("side", ["right", "left"])
def test_parts_of_different_lengths_are_joined(side):
    shapes = {"hidden": ("batch", "seq", 2), "sums": ("batch", 3)}
    fake = SimpleNamespace(
        inputs={"input_ids": SimpleNamespace(shape=("batch", "seq"))},
        outputs={name: SimpleNamespace(shape=shape) for name, shape in shapes.items()},
        dims={"batch": (1, 2)},
        manifest=SimpleNamespace(tokenizer=SimpleNamespace(padding_side=side)),
    )
    parts = [
        {"hidden": np.ones((2, 3, 2)), "sums": np.ones((2, 3))},
        {"hidden": np.full((1, 4, 2), 2), "sums": np.full((1, 3), 2)},
    ]
    found = joined(fake, parts)
    assert found["sums"][:, 0].tolist() == [1, 1, 2]
    assert found["hidden"][:, :, 0].tolist() == [
        *2 * [[1, 1, 1, 0] if side == "right" else [0, 1, 1, 1]],
        [2, 2, 2, 2],
    ]


def test_lines_that_are_cut_are_counted(tiny, raw):
    lines = "\n".join([LONG, "a"] * 70)
    with pytest.warns(
        TextsCut, match="^70 of 140 texts were cut to the 128 tokens .*; --strict makes it an error"
    ):
        assert run(tiny, lines).exit_code == 0
    shown = run(tiny, lines, "--strict", "--json")
    assert isinstance(shown.exception, LlmcError)
    assert shown.exception.problem == "70 of 140 texts could not be run"
    assert str(shown.exception.found).startswith("line 1 has 300 tokens, the model takes 128; line 3 has")
    told = json.loads(shown.stdout)
    assert "error" in told[0]
    assert "error" not in told[1]


def test_the_command_line_shows_warnings_as_sentences(tiny, capsys, raw):
    assert main(["run", str(tiny), "--text", LONG]) == 0
    said = capsys.readouterr().err
    assert (
        said
        == "warning: the text was cut to the 128 tokens that the model takes; --strict makes it an error\n"
    )


def test_no_tokenizer(copy_of_tiny, build):
    (copy_of_tiny / "tokenizer.json").unlink()
    build.write_manifest(copy_of_tiny)
    with load(copy_of_tiny) as model, pytest.raises(LlmcError, match="the artifact has no tokenizer"):
        model.run_text("a")


def test_bad_tokenizer(copy_of_tiny, build):
    (copy_of_tiny / "tokenizer.json").write_text("{}")
    build.write_manifest(copy_of_tiny)
    with load(copy_of_tiny) as model, pytest.raises(LlmcError, match=r"tokenizer\.json is no tokenizer"):
        model.run_text("a")
