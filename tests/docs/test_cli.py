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

    def plain(lines: str) -> list[str]:
        kept = (line.split() for line in lines.splitlines())
        return [
            word for words in kept if words[:1] != ["native"] for word in words
        ]  # `native` is this machine's

    assert plain(shell(name).stdout) == plain(shown[1])
