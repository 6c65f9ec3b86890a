"""docs/extending.md: its program, its messages, and that it names what there is."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys

from llmc.compiler.extensions import Extension
from llmc.compiler.ops.declare import Op


def test_the_program(block, root, tmp_path):
    shutil.copy(root / "examples" / "extension" / "softsign.py", tmp_path)
    (tmp_path / "watch.py").write_text(block("extending", "watch.py"))
    done = subprocess.run([sys.executable, "watch.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == block("extending", "watch.out")


def test_a_text_whose_extension_is_not_loaded(shell, root, tmp_path):
    shutil.copy(root / "examples" / "extension" / "softsign.py", tmp_path)
    lines = (
        "# op softsign is of extension softsign (softsign.py)",
        "dims batch=1..8",
        '%0 = input() {name="x", dtype="f32", shape=(batch, 8)} : f32[batch, 8]  # x',
        "%1 = softsign(%0) : f32[batch, 8]  # x",
        'return {"y": %1}',
    )
    (tmp_path / "graph.txt").write_text("\n".join(lines) + "\n")
    result = shell("opt", "graph.txt", "-O0")
    assert result.returncode == 1
    assert result.stderr in (root / "docs" / "extending.md").read_text()


def test_it_names_what_there_is(root):
    text = (root / "docs" / "extending.md").read_text()
    for name in re.findall(r"\]\((\.\./[\w/.]+)\)", text):
        assert (root / "docs" / name).is_file(), name
    fields = {f.name for f in dataclasses.fields(Extension)} - {"name"}
    traits = {f.name for f in dataclasses.fields(Op)} - {
        "name",
        "rule",
        "reference",
        "defaults",
        "fusible",
        "origin",
    }
    missing = [name for name in fields | traits if f"`{name}" not in text]
    assert not missing
