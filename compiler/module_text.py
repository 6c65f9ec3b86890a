"""The text form of a module: that of each function (text.py) under a line `function NAME`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llmc.compiler.graph import Weight
from llmc.compiler.module import FORWARD, Module
from llmc.compiler.parse import Parser, read_lines
from llmc.compiler.text import print_graph
from llmc.errors import LlmcError

_FUNCTION = re.compile(r"function (?P<name>\w+)")


def print_module(module: Module) -> str:
    """All functions of `module` as text."""
    return "\n".join(f"function {name}\n{print_graph(graph)}" for name, graph in module.functions.items())


def text_of(module: Module) -> str:
    """As `print_module`; a function alone that has the usual name needs none."""
    return str(module.functions[FORWARD]) if list(module.functions) == [FORWARD] else print_module(module)


def parse_module(text: str, weights: Mapping[str, Weight] | None = None) -> Module:
    """The module written by `print_module`. A text without a line `function NAME` is one function, `forward`.

    Raises:
        LlmcError: as `parse_graph`; or two functions have one name.
    """
    parsers: dict[str, Parser] = {}

    def take(line: str) -> None:
        if match := _FUNCTION.fullmatch(line):
            if match["name"] in parsers:
                raise LlmcError(f"function {match['name']} is defined twice")
            parsers[match["name"]] = Parser.of(weights)
            return
        if not parsers:
            parsers[FORWARD] = Parser.of(weights)
        list(parsers.values())[-1].line(line)

    read_lines(text, take)
    if not parsers:
        raise LlmcError("the text has no function")
    return Module({name: parser.graph(name) for name, parser in parsers.items()})
