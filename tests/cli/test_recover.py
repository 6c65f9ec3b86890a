"""`llmc recover` at the command line."""

import json
import signal
import subprocess
import sys

import pytest
import recovering

RUN = [sys.executable, "-c", "import sys; from llmc.cli import main; sys.exit(main())"]


@pytest.fixture
def model(tmp_path):
    return recovering.bert(tmp_path / "bert")


@pytest.fixture
def data(tmp_path):
    return recovering.labelled(tmp_path / "train.jsonl")


def test_a_table_and_what_to_type_next(cli, model, data, tmp_path):
    done = cli("recover", model, "--prune", "2:4", "--data", data, "--steps", 3, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    for word in (
        "6 rows held back",
        "before",
        "pruned",
        "recovered",
        "accuracy",
        "100.00 %",
        "54 rows",
        "(50.0%)",
    ):
        assert word in done.out
    assert f"llmc compile {tmp_path / 'out'} --prune 2:4 -o out.llmc" in done.out
    assert "step 3, loss" in done.err


def test_json(cli, model, data, tmp_path):
    done = cli(
        "recover", model, "--prune", "0.5", "--data", data, "--steps", 2, "-o", tmp_path / "out", "--json"
    )
    found = json.loads(done.out)
    assert (found["held_rows"], found["trained_rows"], found["steps"]) == (6, 54, 2)
    assert found["before"]["agreement"] == 1
    assert 2 * found["zeros"] == found["weights"]
    assert found["recovered"]["perplexity"] is None


@pytest.mark.slow
def test_compile_changes_nothing_but_the_zeros(cli, model, data, tmp_path):
    """The artifact of what was recovered answers as the folder does in PyTorch."""
    done = cli("recover", model, "--prune", "0.5", "--data", data, "--steps", 3, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    done = cli(
        "compile", tmp_path / "out", "--prune", "0.5", "--target", "x86-avx2", "-o", tmp_path / "m.llmc"
    )
    assert done.code == 0, done.err
    done = cli("eval", tmp_path / "m.llmc", "--data", data, "--baseline", tmp_path / "out", "--json")
    assert json.loads(done.out)["agreement"] == 1


def test_a_mistake_is_a_sentence(cli, model, tmp_path):
    done = cli("recover", model, "--prune", "0.5", "--data", tmp_path / "no.tsv", "-o", tmp_path / "out")
    assert done.code == 1
    assert "error: cannot read the data" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_one_thing_at_a_time(cli, model, data, tmp_path):
    for asked in ([], ["--prune", "0.5", "--quant", "w4"]):
        done = cli("recover", model, *asked, "--data", data, "-o", tmp_path / "out")
        assert done.code == 2
        assert "one of --prune, --quant, --share, --layers, --neurons, --bag, --boost" in " ".join(
            done.err.split()
        )


def test_rounding_is_told_as_such(cli, model, data, tmp_path):
    done = cli("recover", model, "--quant", "w4", "--data", data, "--steps", 2, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "rounded" in done.out
    assert "are zero" not in done.out
    assert f"llmc compile {tmp_path / 'out'} --quant w4 -o out.llmc" in done.out


def test_heads_and_neurons(cli, model, data, tmp_path):
    asked = ["--prune", "heads:0.5", "--prune", "neurons:0.4"]
    done = cli("recover", model, *asked, "--data", data, "--steps", 2, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert f"llmc compile {tmp_path / 'out'} --prune heads:0.5 --prune neurons:0.4 -o out.llmc" in done.out


def test_members_and_how_to_join_them(cli, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    model, data = (
        recovering.bert(tmp_path / "bert", **sizes),
        recovering.labelled(tmp_path / "rows.jsonl", 1000),
    )
    done = cli("recover", model, "--bag", 2, "--data", data, "--steps", 1, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    for word in (
        "50 rows held back",
        "before",
        "member-1",
        "member-2",
        "--ensemble mean",
        "stack.json",
        "2 steps",
    ):
        assert word in done.out
    assert (
        f"llmc compile {tmp_path / 'out' / 'member-1'} --member {tmp_path / 'out' / 'member-2'} " in done.out
    )
    done = cli("recover", model, "--bag", 2, "--data", data, "--resume", "-o", tmp_path / "other")
    assert done.code == 1
    assert "there is no checkpoint to go on from" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint(model, data, tmp_path, number):
    out = tmp_path / "out"
    command = ["recover", model, "--prune", "0.5", "--data", data, "--epochs", "5000", "-o", out]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*RUN, *map(str, command)], **pipes) as process:
        said = ""
        for line in process.stderr:
            said += line
            if "step " in line:
                break
        process.send_signal(number)
        said += process.stderr.read()
        assert process.wait(60) == 128 + number, said
    assert "--resume goes on" in said
    assert "Traceback" not in said
    assert (tmp_path / "out.checkpoint" / "state.pt").is_file()
    assert not out.exists()
