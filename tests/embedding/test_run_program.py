"""The `run` program: arrays in from files, arrays out to files. Here it is built with sanitizers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import llmc
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.runtime.sources import FOLDER
from llmc.targets import elf

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")
IDS = np.array([[5, 6, 7, 42], [1, 2, 3, 0]])
MASK = (IDS > 0).astype(np.int64)


@pytest.fixture(scope="module")
def program(static, link):
    sources = [FOLDER / "run_main.c", FOLDER / "npy.c"]
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", static / "libmodel.a"]
    return link("run", sources, *flags, "-lm", "-lpthread")


@pytest.fixture
def start(program, static, shell, tmp_path):
    """`start(arguments...)` runs the program in `tmp_path`, where ids.npy and mask.npy lie."""
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "mask.npy", MASK)
    return lambda *arguments: shell(program, "--model", static, *arguments, cwd=tmp_path)


def expected(static):
    with llmc.load(static) as model:
        return model(input_ids=IDS, attention_mask=MASK)["logits"]


def test_arrays_in_and_out(start, static, tmp_path):
    result = start("--threads", "1", "input_ids=ids.npy", "attention_mask=mask.npy")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    found = np.load(tmp_path / "logits.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(static))


def test_bare_elements_with_a_shape(start, static, tmp_path):
    IDS.tofile(tmp_path / "ids.bin")
    (tmp_path / "out").mkdir()
    assert start("input_ids:2x4=ids.bin", "attention_mask=mask.npy", "-o", "out").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "logits.npy"), expected(static))


def test_an_output_stays_in_its_folder(link, shell, tmp_path):
    """A file may call its output anything."""
    x = input_("x", "f32", (2,))
    outputs = {"../../x": make("neg", (x,)), "/a%": make("abs", (x,)), "..": make("relu", (x,))}
    (tmp_path / "a" / "b").mkdir(parents=True)
    compile_graph(Graph((x,), outputs), tmp_path / "m.llmc", target="x86-avx2", emit="static")
    sources = [FOLDER / "run_main.c", FOLDER / "npy.c", tmp_path / "m.llmc" / "libmodel.a"]
    program = link("run_names", sources, "-lm", "-lpthread")
    np.save(tmp_path / "x.npy", np.float32([1, -2]))
    result = shell(program, "--model", tmp_path / "m.llmc", "x=x.npy", "-o", "a/b", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m.llmc", "x.npy"]
    names = {p.name: np.load(p).tolist() for p in (tmp_path / "a" / "b").iterdir()}
    assert names == {"..%2F..%2Fx.npy": [-1, 2], "%2Fa%25.npy": [1, 2], "...npy": [1, 0]}


def test_doubles(link, shell, tmp_path):
    """In files, as bare elements, and what an absent input is filled with."""
    x, step = input_("x", "f64", (2,)), input_("step", "f64", (2,), default=0.1)
    compile_graph(
        Graph((x, step), {"y": make("sub", (x, step))}), tmp_path / "m.llmc", target="x86-avx2", emit="static"
    )
    sources = [FOLDER / "run_main.c", FOLDER / "npy.c", tmp_path / "m.llmc" / "libmodel.a"]
    program = link("run_doubles", sources, "-lm", "-lpthread")
    values = np.array([1e300, 0.3])
    np.save(tmp_path / "x.npy", values)
    values.tofile(tmp_path / "x.bin")
    for given in ("x=x.npy", "x:2=x.bin"):
        result = shell(program, "--model", tmp_path / "m.llmc", given, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        found = np.load(tmp_path / "y.npy")
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, values - 0.1)
        (tmp_path / "y.npy").unlink()


def test_programs_may_lie_anywhere_and_hold_no_dwarf(static):
    """`bench` is position-independent, and nothing in the library says how the kernels were written."""
    assert (static / "bench").read_bytes()[16] == 3  # ET_DYN
    objects = (static / "libmodel.a").read_bytes().split(b"\x7fELF")[1:]
    assert len(objects) > 20
    assert not any(elf.debug_sections(b"\x7fELF" + rest) for rest in objects)


def test_without_inputs_it_describes_the_model(program, static, shell, tmp_path):
    copy = shutil.copy(program, static.parent / "run_beside")
    (static.parent / "weights.bin").write_bytes((static / "weights.bin").read_bytes())
    text = shell(copy, cwd=tmp_path).stdout  # finds the weights beside itself
    assert "size seq within 1..64\n" in text
    assert "input attention_mask i64 [batch, seq] optional\n" in text
    assert "output logits f32 [batch, 3]\n" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ids.npy"], 2, "not INPUT=FILE"),
        (["ids=ids.npy"], 2, "the model has no such input"),
        (["input_ids=ids.npy", "input_ids=ids.npy"], 2, "the input is given twice"),
        (["--thread", "1"], 2, "no such option"),
        (["input_ids=ids.npy", "--threads"], 2, "its value is missing"),
        (["input_ids=ids.npy", "--threads", "0"], 2, "not a number of threads"),
        (["input_ids:2=ids.npy", "-o"], 2, "its value is missing"),
        (["input_ids:2,4=ids.npy"], 2, "not INPUT:2x16=FILE"),
        (["input_ids=nowhere.npy"], 1, "nowhere.npy: it cannot be opened"),
        (["input_ids:2x5=ids.npy"], 1, "its length does not fit its shape"),
        (["input_ids:4294967296x4294967296=ids.npy"], 1, "it is too large"),
        (["attention_mask=mask.npy"], 1, "input_ids"),
        (["input_ids=ids.npy", "-o", "nowhere"], 1, "nowhere/logits.npy: it cannot be written"),
    ],
)
def test_mistakes_get_a_sentence(start, arguments, code, message):
    result = start(*arguments)
    assert result.returncode == code
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.asfortranarray(IDS), "Fortran order"),
        (IDS.astype(">i8"), "element type"),
        (IDS.astype(np.int64)[:0], "batch is 0"),
        (IDS.astype(np.float32), "f32"),
        (IDS[0], "has 1 axes"),
        (np.full((1, 65), 1), "65"),
        (np.zeros((1,) * 9, np.int64), "too many axes"),
    ],
)
def test_arrays_that_do_not_fit(start, tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    result = start("input_ids=bad.npy")
    assert result.returncode == 1
    assert message in result.stderr


def test_damaged_files_are_refused(start, tmp_path):
    whole = (tmp_path / "ids.npy").read_bytes()
    damaged = [whole[:n] for n in (0, 5, 9, 40, len(whole) - 1)] + [whole + b"x"]
    damaged += [whole.replace(b"(2, 4)", b"(2, -4"), whole.replace(b"shape", b"shade"), b"PK" + whole[2:]]
    damaged.append(whole[:6] + b"\x02\x00\xff\xff\xff\xff" + whole[12:])
    for data in damaged:
        (tmp_path / "bad.npy").write_bytes(data)
        result = start("input_ids=bad.npy")
        assert (result.returncode, result.stderr[:6]) == (1, "error:"), result.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"emit": "archive"}, "there is no form 'archive'"),
        ({"prefix": "a_"}, "a prefix is for static libraries only"),
        ({"emit": "static", "prefix": "1a"}, "not the beginning of a C name"),
    ],
)
def test_forms_that_make_no_sense(tmp_path, options, problem):
    with pytest.raises(LlmcError, match=problem):
        llmc.compile(tmp_path, tmp_path / "m.llmc", **options)
    assert list(tmp_path.iterdir()) == []
