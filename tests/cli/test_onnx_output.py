"""`llmc opt -o FILE.onnx`: what the command line says, and what the file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from random_graphs import random_graph
from stateful_graphs import encoder_decoder
from written_onnx import want_same

from llmc.compiler import interpret
from llmc.compiler.frontends import dispatch
from llmc.compiler.graph_file import write_graph


def test_out_and_in_again(cli: Any, tmp_path: Path) -> None:
    graph, inputs = random_graph(4)
    write_graph(tmp_path / "g.txt", graph)
    done = cli("opt", tmp_path / "g.txt", "--passes", "cse", "-o", tmp_path / "G.ONNX")
    assert (done.code, done.out) == (0, "")
    facts = {p.key: p.value for p in onnx.load(str(tmp_path / "G.ONNX"), format="protobuf").metadata_props}
    assert (facts["llmc.source"], facts["llmc.pipeline"], facts["llmc.task"]) == ("g", "cse", "generic")
    assert cli("opt", tmp_path / "G.ONNX", "--external-data", "-o", tmp_path / "again.onnx").code == 0
    assert (tmp_path / "again.onnx.data").exists()
    back = dispatch.load(tmp_path / "again.onnx").graph
    want_same(interpret.run(back, inputs), interpret.run(graph, inputs))


def test_one_function_of_several(cli: Any, tmp_path: Path) -> None:
    write_graph(tmp_path / "m.txt", encoder_decoder())
    done = cli("opt", tmp_path / "m.txt", "-o", tmp_path / "m.onnx")
    assert done.code == 1
    assert "the model has 2 functions, an ONNX file holds one" in done.err
    assert "choose one: --function encode" in done.err
    assert (
        "no function 'stop'"
        in cli("opt", tmp_path / "m.txt", "--function", "stop", "-o", tmp_path / "m.onnx").err
    )
    assert not (tmp_path / "m.onnx").exists()
    assert cli("opt", tmp_path / "m.txt", "--function", "step", "-o", tmp_path / "m.onnx").code == 0
    assert [s.attributes["name"] for s in dispatch.load(tmp_path / "m.onnx").graph.states][:2] == [
        "keys",
        "values",
    ]


@pytest.mark.parametrize("option", [("--function", "step"), ("--external-data",)])
def test_options_of_onnx_files_only(cli: Any, tmp_path: Path, option: tuple[str, ...]) -> None:
    write_graph(tmp_path / "m.txt", encoder_decoder())
    done = cli("opt", tmp_path / "m.txt", *option, "-o", tmp_path / "n.txt")
    assert done.code == 1
    assert f"{option[0]} is for ONNX files" in done.err


def test_a_folder_is_no_place(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    done = cli("opt", tmp_path / "nothing.txt", "-o", tmp_path / "m.onnx")
    assert "the output is there, and is no file" in done.err
