"""docs/cli.md: its commands and options exist, and what can be run at once prints what it says."""

from __future__ import annotations

import re
import shlex

import pytest

from llmc.cli import _COMMANDS, llmc

DOCUMENTS = (
    "docs/cli.md",
    "docs/passes.md",
    "docs/embedding.md",
    "docs/benchmarks.md",
    "docs/tuning.md",
    "docs/generation.md",
    "CONTRIBUTING.md",
)


def commands_in(text: str) -> list[str]:
    """What follows `llmc` on lines that start with a prompt, in the first cell of a `type` column, and in code."""
    shown = re.findall(r"^\$ (?:LLMC_DEBUG=\d )?llmc (.+)$", text, re.MULTILINE)
    return shown + re.findall(r"`llmc (\w+ [^`]+)`", text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_exist(root, document):
    for line in commands_in((root / document).read_text()):
        name, *arguments = shlex.split(line)
        if "|" in line or arguments == ["--help"]:
            continue
        command = llmc.get_command(None, name)
        assert command is not None, line
        command.make_context(name, arguments)  # click refuses what it does not know


def test_every_command_is_documented(root):
    text = (root / "docs" / "cli.md").read_text()
    assert [c for c in _COMMANDS if f"\n## {c}\n" not in text and f"`llmc {c}" not in text] == []


@pytest.mark.parametrize("name", ["passes", "targets"])
def test_listings_are_pasted_from_a_real_run(root, shell, name):
    text = (root / "docs" / "cli.md").read_text()
    shown = re.search(rf"^\$ llmc {name}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert shown is not None

    assert same_everywhere(shell(name).stdout) == same_everywhere(shown[1])


def same_everywhere(listing: str) -> list[str]:
    """The words of a listing but for the row `native`, of one or more lines, which is this machine's."""
    others = re.sub(r"^ native +this machine: .*\n(?:   +.*\n)*", "", listing, flags=re.MULTILINE)
    return others.split()


def test_the_row_native_may_have_any_number_of_lines():
    lines = "\n name  what\n ────\n{} x86  any\n       AVX2\n"
    rows = (" native  this machine: avx2  AVX2\n", " native  this machine: avx512  A; B\n          C\n", "")
    assert {tuple(same_everywhere(lines.format(row))) for row in rows} == {
        ("name", "what", "────", "x86", "any", "AVX2")
    }
