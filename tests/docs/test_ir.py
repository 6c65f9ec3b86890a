"""docs/ir.md: its table names every op, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llmc.compiler.ops import OPS
from llmc.compiler.text import print_graph


def test_the_table_names_every_op(root: Path):
    rows = re.findall(r"^\| (`.*?)\|", (root / "docs" / "ir.md").read_text(), re.MULTILINE)
    words = set(re.findall(r"\w+", " ".join(rows)))
    assert set(OPS) - words == set()


def test_functions_and_states(root: Path):
    text = (root / "docs" / "ir.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(block, names)
    (printed,) = re.findall(r"^```\n(dims.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert printed == print_graph(names["graph"])
    assert len(blocks) == 2
