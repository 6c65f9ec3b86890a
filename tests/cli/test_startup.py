"""The command line answers at once: nothing heavy is imported for help, inspect or bench."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "tvm", "tvm_ffi", "sympy", "onnx", "networkx", "PIL", "soundfile", "soxr"}
PROBE = """
import json, sys
from llmc.cli import main
code = main({arguments!r})
print("\\n" + json.dumps([code, sorted(m for m in sys.modules if "." not in m)]))
"""


def run(*arguments):
    """Exit code and top-level modules after `llmc ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=list(arguments))],
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, set(modules), done


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["bench", "--help"],
        ["inspect", "--help"],
        ["demo", "--help"],
        ["compare", "--help"],
        ["recover", "--help"],
        ["eval", "--help"],
        ["completion", "zsh"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments):
    code, modules, _ = run(*arguments)
    assert code == 0
    assert not modules & HEAVY
    assert "numpy" not in modules


def test_inspect_of_the_demo_model_imports_nothing_heavy(demo_folder):
    code, modules, done = run("inspect", str(demo_folder))
    assert code == 0, done.stderr
    assert not modules & HEAVY
    assert "BertForSequenceClassification" in done.stdout


def test_bench_of_nothing_imports_nothing_heavy(tmp_path):
    code, modules, done = run("bench", str(tmp_path / "missing.llmc"))
    assert code == 1
    assert not modules & HEAVY
    assert done.stderr.startswith("error: an artifact was not found")


def test_the_runtime_imports_no_pillow_before_an_image():
    modules = "print(sorted(m for m in sys.modules if chr(46) not in m))"
    probe = f"import sys, llmc, llmc.runtime.media, llmc.runtime.model; {modules}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout
    assert not {name for name in HEAVY if f"'{name}'" in done.stdout}
