"""`llmc compile --max-drop ...` at the command line."""

import json

import numpy as np
import pytest
import recovering

from llmc.compiler.graph import Graph, Source
from llmc.compiler.graph_file import write_graph
from llmc.compiler.ops import constant, input_, make


@pytest.fixture
def model(tmp_path):
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    x = input_("x", "f32", ("n", 64))
    y = make("linear", (x, constant(w, "w")), Source("layer"))
    write_graph(tmp_path / "m.txt", Graph((x,), {"y": y}, {"n": (1, 8)}))
    return tmp_path / "m.txt"


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32))
    return tmp_path / "rows.npz"


def test_tables_and_a_page(cli, model, data, tmp_path):
    asked = ["--max-drop", "1%", "--data", data, "--front", tmp_path / "front.html", "--target", "x86-avx2"]
    done = cli("compile", model, *asked, "-o", tmp_path / "out.llmc")
    assert done.code == 0, done.err
    for word in ("of the front", "chosen", "why it is float", "rows held back, run natively", "@quantise'"):
        assert word in done.out
    assert "measure layers" in done.err
    assert "<svg" in (tmp_path / "front.html").read_text()
    assert (tmp_path / "out.llmc" / "manifest.json").exists()


def test_what_stays_float_is_no_pipeline(cli, model, data, tmp_path):
    """An empty text is none that `--add-pass` takes."""
    asked = ["--max-drop", "0%", "--data", data, "--target", "x86-avx2"]
    done = cli("compile", model, *asked, "-o", tmp_path / "out.llmc")
    assert done.code == 0, done.err
    assert "the same again:  without a bound" in done.out
    assert "@quantise" not in done.out


@pytest.mark.slow
def test_labels_and_json(cli, tmp_path):
    """What is bounded is accuracy, where there are labels."""
    folder = recovering.bert(tmp_path / "bert")
    data = recovering.labelled(tmp_path / "rows.jsonl", 60)
    asked = ["--max-drop", "10%", "--data", data, "--target", "x86-avx2", "--json"]
    done = cli("compile", folder, *asked, "-o", tmp_path / "out.llmc")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["measure"].startswith("accuracy lost")
    assert found["rows"] == {"measured": 16, "chosen by": 22, "held back": 22}
    assert found["size"] < 0.5 * found["float_size"]
    assert found["held"]["mean"] <= 0.1


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (["--max-drop", "0.5%"], 1, "a budget is measured and checked on data"),
        (["--data", "rows.tsv"], 2, "--data: for --max-drop, --max-size or --max-latency"),
        (["--max-drop", "half", "--data", "x"], 2, "is not a share"),
        (["--max-size", "30 apples", "--data", "x"], 2, "is not a size; write 30MB"),
        (["--max-latency", "5", "--latency-at", "1", "--data", "x"], 2, "write 1x128"),
        (["--max-drop", "1%", "--data", "no.tsv"], 1, "there is no such data"),
        (
            ["--max-drop", "1%", "--data", "no.tsv", "--quant", "int8"],
            1,
            "a budget chooses what is compressed",
        ),
        (
            ["--max-drop", "1%", "--data", "x", "--front", "nowhere/x.html"],
            1,
            "there is no folder for the page",
        ),
    ],
)
def test_mistakes(cli, model, tmp_path, asked, code, message):
    done = cli("compile", model, *asked, "-o", tmp_path / "out.llmc")
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out.llmc").exists()
