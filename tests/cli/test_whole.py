"""The command line over the real compiler and runtime, on the model that ships with llmc."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from llmc import demo
from llmc.demo import sample

pytestmark = pytest.mark.xdist_group("cli")  # one process compiles the demo model for all

RUN = [sys.executable, "-c", "import sys; from llmc.cli import main; sys.exit(main())"]


def llmc(*arguments, **options):
    """Run `llmc ARGUMENTS` in a process of its own, without a network to fall back on."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [*RUN, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False, **options
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The demo model, compiled once."""
    path = tmp_path_factory.mktemp("cli") / "demo.llmc"
    done = llmc("compile", demo.model_folder(), "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["path"] == str(path)
    assert all(line.startswith("compile: ") for line in done.stderr.splitlines()), done.stderr
    return path


def test_labels_with_probabilities(artifact):
    done = llmc("run", artifact, "--text", demo.SENTENCES[0], "--text", demo.SENTENCES[1], "--json")
    assert done.returncode == 0, done.stderr
    good, bad = json.loads(done.stdout)
    assert (good["label"], bad["label"]) == ("positive", "negative")
    assert sum(good["probabilities"].values()) == pytest.approx(1)


def test_lines_of_standard_input(artifact):
    done = llmc("run", artifact, "--text", "-", input="\n".join(demo.SENTENCES))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[::2] == list(demo.SENTENCES)


def test_arrays_agree_with_pytorch(artifact, tmp_path):
    arrays = sample(3000, 2, 9)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    given = [f"--input={name}={tmp_path / name}.npy" for name in arrays]
    done = llmc("run", artifact, *given, "--output", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    expected = demo.torch_call(demo.load_torch(demo.model_folder()), arrays)()
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["logits"], expected, atol=1e-4)


def test_selftest(artifact):
    done = llmc("run", artifact, "--selftest")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("self-test passed")


def test_bench_prints_and_reports(artifact):
    done = llmc("bench", artifact, "--seq", 16, "--threads", 1, "--duration", "200ms", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sizes"] == {"batch": 1, "seq": 16}
    done = llmc("bench", artifact, "--seq", 16, "--duration", "200ms", "--vs", artifact)
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout


def test_inspect_names_inputs_and_files(artifact):
    done = llmc("inspect", artifact)
    assert done.returncode == 0, done.stderr
    for word in ("input_ids", "logits", "weights.bin", "text-classification"):
        assert word in done.stdout
    assert json.loads(llmc("inspect", artifact, "--json").stdout)["task"] == "text-classification"


def test_opt_verifies_each_pass_and_prints_the_graph(tmp_path):
    graph = tmp_path / "graph.txt"
    done = llmc(
        "opt", demo.model_folder(), "--verify-each", "--time-passes", "--print-after", "cse", "-o", graph
    )
    assert done.returncode == 0, done.stderr
    assert graph.read_text().startswith("dims batch=1..")
    assert "# after cse" in done.stderr
    assert "promised" in done.stderr


def test_opt_reads_a_graph_file_again(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text('dims n=1..4\n%0 = input {name="x", dtype="f32", shape=(n,)}\n')
    done = llmc("opt", first, "-O0", "-o", second)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not second.exists()


def test_a_wrong_pass_name_is_a_sentence():
    done = llmc("opt", demo.model_folder(), "--passes", "fuze")
    assert done.returncode == 1
    assert "fuse" in done.stderr


def test_passes_and_targets_list(tmp_path):
    assert "fuse" in [p["name"] for p in json.loads(llmc("passes", "--json").stdout)["passes"]]
    names = [t["name"] for t in json.loads(llmc("targets", "--json").stdout)["targets"]]
    assert {"native", "x86"} <= set(names)


def test_a_failed_compile_keeps_the_old_artifact(artifact, tmp_path):
    before = (artifact / "manifest.json").read_bytes()
    empty = tmp_path / "empty"
    empty.mkdir()
    done = llmc("compile", empty, "-o", artifact)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].strip() != ""
    assert "Traceback" not in done.stderr
    assert (artifact / "manifest.json").read_bytes() == before


def test_the_demo_runs_to_its_end(tmp_path):
    done = llmc("demo", "--duration", "0.2", "--json", "--keep", tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["difference"] < 1e-4
    assert [a["label"] for a in result["answers"]] == ["positive", "negative", "positive"]
    assert all(row["interval"][0] <= row["speedup"] <= row["interval"][1] for row in result["race"])
    assert (tmp_path / "kept" / "demo.llmc" / "manifest.json").exists()


def test_the_demo_leaves_nothing_and_says_what_is_next(tmp_path):
    done = llmc("demo", "--duration", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "What to type next:" in done.stdout
    assert list(tmp_path.iterdir()) == []
