"""docs/generation.md: its programs run, and print what it says."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import translators
import writers

import llmc

STRICT = ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
PROGRAMS = (
    "generate",
    "stream",
    "chat",
    "beams",
    "many",
    "held",
    "assistant",
    "company",
    "session",
    "translate",
)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """The model of tests/writers.py, compiled; for AVX2 alone, as valgrind knows no AVX-512."""
    folder = tmp_path_factory.mktemp("writer")
    llmc.compile(writers.write_model(folder / "model"), folder / "m.llmc", target="x86-avx2")
    return folder / "m.llmc"


@pytest.fixture(scope="module")
def translator(shared, tmp_path_factory):
    return shared("translator.llmc", translators.artifact(tmp_path_factory.mktemp("translator")))


def printed(program, names):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(program, names)
    return out.getvalue()


@pytest.fixture(scope="module")
def found(writer, translator, block):
    """What each block prints, one after the other in one program."""
    (writer.parent / "t.llmc").symlink_to(translator)
    (writer.parent / "small.llmc").symlink_to(writer)  # a model that guesses for itself is always right
    names: dict[str, object] = {}
    with contextlib.chdir(writer.parent):
        return {name: printed(block("generation", f"{name}.py"), names) for name in PROGRAMS}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_print_what_the_page_says(found, block, name):
    assert found[name].rstrip() == block("generation", f"{name}.out").rstrip()


def test_the_command_says_what_the_page_says(writer, root, shell):
    text = (root / "docs" / "generation.md").read_text()
    ((line, shown),) = re.findall(r"^\$ llmc (.*)\n((?:.*\n)+?)^```$", text, re.MULTILINE)
    shutil.copytree(writer, "m.llmc")
    arguments = re.findall(r'"([^"]*)"|(\S+)', line)
    assert shell(*(quoted or plain for quoted, plain in arguments)).stderr == shown


def test_a_language_comes_before_a_text_that_is_held_to_an_expression(translator):
    pytest.importorskip("llguidance")
    with llmc.load(translator, threads=1) as model:
        for options in ({}, {"do_sample": True, "seed": 1}):
            asked = {"regex": "(red|sees) (old|two) (fish|bird)", **options}
            made = model.generate("the old bird", tgt_lang="de_DE", **asked)
            assert re.fullmatch(asked["regex"], made.text)
            assert made.ids[0] == model.generate("the old bird", tgt_lang="de_DE").ids[0]
            assert re.fullmatch(asked["regex"], model.generate("the old bird", **asked).text)


def test_an_encoder_decoder_has_an_assistant_that_reads_the_source(translator, writer):
    with llmc.load(translator, threads=1) as model, llmc.load(translator, threads=1) as twin:
        for options in ({"num_beams": 1}, {"do_sample": True, "seed": 2, "tgt_lang": "de_DE"}):
            plain = model.generate("the old bird", **options)
            found = model.generate("the old bird", assistant_model=twin, **options)
            assert found.ids == plain.ids
            assert found.usage.accepted == found.usage.guessed > 0
        assert (
            model.generate(["two fish"], assistant_model=twin)[0].ids
            == model.generate("two fish", num_beams=1).ids
        )
        with llmc.load(writer, threads=1) as other, pytest.raises(llmc.LlmcError, match="has an encoder"):
            model.generate("two fish", assistant_model=other)


@pytest.fixture(scope="module")
def generate(writer, root, tmp_path_factory):
    """examples/c/generate.c, compiled as its first comment says."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    output = tmp_path_factory.mktemp("example") / "generate"
    linked = [f"-L{writer}", "-l:module.so", f"-Wl,-rpath,{writer}", "-lm"]
    source = root / "examples" / "c" / "generate.c"
    assert len(source.read_text().splitlines()) < 80
    subprocess.run([*STRICT, f"-I{writer}", source, *linked, "-o", output], check=True)
    return output


def run(*command):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)


def test_c_says_what_python_says(generate, writer, block):
    result = run(generate, writer, 8, 0, 0, 1, 8, 13, 18)
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip() == block("generation", "c.out").rstrip()
    with llmc.load(writer, threads=1) as model:
        prompt = [1, 8, 13, 18]
        assert list(map(int, result.stdout.split())) == model.generate(prompt, max_new_tokens=8).ids
        drawn = model.generate(prompt, max_new_tokens=20, do_sample=True, seed=1, temperature=0.8, top_k=50)
    assert list(map(int, run(generate, writer, 20, 0.8, 0, *prompt).stdout.split())) == drawn.ids


@pytest.mark.parametrize("tokens", [8, 36, 0, 1000])
def test_c_keeps_within_the_memory_that_it_prints(generate, writer, tokens):
    """The session is opened with it; texts of 0 and of 1000 tokens go on to the model's bound, of 40."""
    prompt, new = [1, 8, 13, 18], tokens if 0 < tokens < 36 else 36
    result = run(generate, writer, tokens, 0, -1, *prompt)
    assert (result.returncode, len(result.stdout.split())) == (0, new)
    told = int(re.match(r"at most (\d+) bytes\n", result.stderr)[1])
    with llmc.load(writer) as model:
        needed = model.memory_needed("step", past=0, seq=4 + new, kept=1)
        assert told == needed.arena + needed.states
        less = model.session(max_memory=told // 4)
        with pytest.raises(llmc.LlmcError, match="max_memory"):
            model.generate(prompt, max_new_tokens=new, session=less, eos_token_id=[])


def test_c_is_clean_under_valgrind(generate, writer):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    valgrind = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all"]
    assert run(*valgrind, generate, writer, 20, 0.8, -1, 1, 8, 13).returncode == 0
    result = run(*valgrind, generate, writer, 20, -1, -1, 1, 8, 13)
    said = "error: temperature is -1, must be above 0; do_sample = 0 takes the likeliest token\n"
    assert (result.returncode, re.sub(r"^at most \d+ bytes\n", "", result.stderr)) == (1, said)
    assert run(*valgrind, generate, Path("nowhere"), 1, 0, 0, 1).returncode == 1


def test_compiled_states_are_the_same_in_chunks_and_one_by_one(writer):
    """A prompt at once, in pieces and by look-up: the same tokens, and the logits of whole passes."""
    prompt = [1, *range(2, 20), 1, 2, 3, 4]
    with llmc.load(writer, threads=2) as model:
        plain = model.generate(prompt, eos_token_id=[], max_new_tokens=12, logprobs=True)
        for options in (
            {"prefill_chunk_size": 5},
            {"prompt_lookup_num_tokens": 4},
            {"prefill_chunk_size": 1},
        ):
            found = model.generate(
                prompt, eos_token_id=[], max_new_tokens=12, logprobs=True, session=model.session(), **options
            )
            assert found.ids == plain.ids
            assert found.tokens == plain.tokens
