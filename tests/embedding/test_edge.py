"""examples/edge-c, linked both ways, and two models in one program."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import llmc

TEXTS = [[5, 6, 7, 42], [1, 2, 3], [99] * 64]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")


@pytest.fixture(scope="module")
def edge(root, static, link):
    """`edge(form, flags...)`: the example as a program, linked "shared" or "static"."""
    source = root / "examples" / "edge-c" / "edge.c"
    forms = {
        "shared": [f"-L{static}", "-l:module.so", f"-Wl,-rpath,{static}", "-lm"],
        "static": [static / "libmodel.a", "-lm", "-lpthread"],
    }
    return lambda form, *flags: link(f"edge_{form}", [source], *flags, f"-I{static}", *forms[form])


@pytest.fixture
def ids(tmp_path):
    """The texts, with an empty line, tabs, and no newline at the end."""
    path = tmp_path / "ids.txt"
    lines = [" ".join(map(str, text)) for text in TEXTS]
    path.write_text(f"{lines[0]}\n\n \t{lines[1]}\r\n{lines[2]}")
    return path


def answers(artifact):
    """What the program should print for TEXTS, from Python."""
    lines = []
    with llmc.load(artifact, threads=1) as model:
        for number, text in zip((1, 3, 4), TEXTS, strict=True):
            logits = model(input_ids=np.array([text]))["logits"][0].astype(np.float64)
            p = np.exp(logits - logits.max())
            lines.append((number, int(logits.argmax()), float(p.max() / p.sum())))
    return lines


@pytest.mark.parametrize("form", ["shared", "static"])
@pytest.mark.parametrize("flags", [[], SANITIZERS], ids=["plain", "sanitized"])
def test_edge_answers_as_python_does(edge, static, ids, shell, form, flags):
    result = shell(edge(form, *flags), static, ids)
    assert (result.returncode, result.stderr) == (0, "")
    found = [line.split() for line in result.stdout.splitlines()]
    expected = answers(static)
    assert [(int(line), int(label)) for line, label, _ in found] == [e[:2] for e in expected]
    np.testing.assert_allclose([float(f[2]) for f in found], [e[2] for e in expected], atol=1e-6)


@pytest.mark.parametrize("form", ["shared", "static"])
def test_edge_is_clean_under_valgrind(edge, static, ids, shell, form):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    valgrind = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all"]
    result = shell(*valgrind, edge(form), static, ids)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == len(TEXTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5 six\n", "line 1: 'six' is not a token id"),
        ("5 6\n7 100\n", "line 2: input_ids[0,1] is 100, must be within 0..99"),
        ("1 " * 65, "line 1 has more than 64 ids"),
        ("123456789012345678901234567890\n", "is not a token id"),
    ],
)
def test_edge_refuses_with_a_sentence(edge, static, tmp_path, shell, text, message):
    (tmp_path / "bad.txt").write_text(text)
    result = shell(edge("static", *SANITIZERS), static, tmp_path / "bad.txt")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_the_static_library_belongs_to_its_weights(edge, prefixed, ids, shell):
    result = shell(edge("static"), prefixed[1], ids)
    assert result.returncode == 1
    assert "belongs to another build" in result.stderr or "bytes, expected" in result.stderr


TWO = """
#include <stdio.h>
#include "a_.h"
#include "b_.h"

static float last(const llmc_api *api, const char *folder) {
    llmc_model *model;
    llmc_error error;
    float x[] = {1, 0, 0, 1}, y[8];
    llmc_tensor in[1] = {{0}}, out[1] = {{0}};
    in[0].data = x, in[0].dtype = LLMC_F32, in[0].rank = 2, in[0].shape[0] = 1, in[0].shape[1] = 4;
    if (api->open(folder, NULL, &model, &error) != LLMC_OK) return -1;
    if (api->output_shapes(model, in, out, &error) != LLMC_OK) return -2;
    out[0].data = y;
    if (api->run(model, in, out, &error) != LLMC_OK) return -3;
    api->close(model);
    return y[out[0].shape[1] - 1];
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    printf("%g %g\\n", (double)last(a_llmc_get_api(), argv[1]), (double)last(b_llmc_get_api(), argv[2]));
    return 0;
}
"""


def test_two_models_in_one_program(prefixed, link, tmp_path, shell):
    (tmp_path / "two.c").write_text(TWO)
    parts = [flag for folder in prefixed for flag in (f"-I{folder}", folder / "libmodel.a")]
    program = link("two", [tmp_path / "two.c"], *SANITIZERS, *parts, "-lm", "-lpthread")
    result = shell(program, *prefixed)
    assert (result.returncode, result.stdout, result.stderr) == (0, "19 35\n", "")


def test_a_prefixed_library_has_no_other_names(prefixed, shell):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    for folder, prefix in zip(prefixed, ("a_", "b_"), strict=True):
        lines = shell("nm", "-g", "--defined-only", folder / "libmodel.a").stdout.splitlines()
        names = [line.split()[-1] for line in lines if len(line.split()) == 3]
        assert f"{prefix}llmc_open" in names
        assert [name for name in names if not name.startswith(prefix)] == []
