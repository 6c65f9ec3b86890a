"""The C compiler's surroundings, and object files without DWARF."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llmc.errors import LlmcError
from llmc.targets import elf, toolchain


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other test's folder."""
    monkeypatch.setattr(toolchain, "_cache", toolchain._cache.__wrapped__)
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)


def test_the_compilers_cache_is_part_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "kept"))
    found = toolchain._environment()
    assert found["ZIG_GLOBAL_CACHE_DIR"] == found["ZIG_LOCAL_CACHE_DIR"] == str(tmp_path / "kept" / "zig")


@pytest.mark.parametrize("home", ["/proc/nobody", ""])
def test_a_home_that_cannot_be_written(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLMC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(toolchain.store, "home", lambda: Path("/proc/nobody/llmc"))
    place = Path(toolchain._environment()["ZIG_GLOBAL_CACHE_DIR"])
    assert place.is_dir()
    assert place.name.startswith("llmc-zig-")


def test_a_cache_that_the_user_names_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", "/elsewhere")
    assert toolchain._environment()["ZIG_GLOBAL_CACHE_DIR"] == "/elsewhere"


@pytest.mark.parametrize("cc", ["nosuchcc", "/nowhere/cc -O2", "", "'"])
def test_a_compiler_that_there_is_not(cc: str) -> None:
    with pytest.raises(LlmcError, match=r"there is no C compiler|is not a command"):
        toolchain.want_compiler(cc)


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")
def test_an_object_without_its_dwarf_links(tmp_path: Path) -> None:
    source = "static int n = 3; int twice(int x) { return 2 * x + n; }"
    main = "int twice(int); int main(void) { return twice(4); }"
    for name, text in (("a", source), ("main", main)):
        (tmp_path / f"{name}.c").write_text(text)
    subprocess.run(["cc", "-g", "-c", "a.c", "-o", "a.o"], cwd=tmp_path, check=True)
    before = (tmp_path / "a.o").read_bytes()
    after = elf.without_debug(before)
    assert len(after) < len(before)
    assert b"GNU C" in before
    assert b"GNU C" not in after.replace(b"GCC: (GNU) C", b"")
    assert elf.defined_symbols(after) == elf.defined_symbols(before) == {b"twice"}
    (tmp_path / "a.o").write_bytes(elf.add_prefix([after], "p_")[0])
    subprocess.run(["cc", "-Dtwice=p_twice", "main.c", "a.o", "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"]).returncode == 11
