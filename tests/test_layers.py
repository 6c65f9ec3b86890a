"""Imports point one way, and the packages of pyproject.toml are those on disk."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PLACES = SETTINGS["package-dir"]
# What each package may import of llmc; `llmc` itself and the command line see all.
MAY = {
    "llmc.compiler": {"llmc.errors", "llmc.compiler"},
    "llmc.passes": {"llmc.errors", "llmc.compiler", "llmc.passes"},
    "llmc.targets": {"llmc.errors", "llmc.compiler", "llmc.targets"},
    "llmc.runtime": {"llmc.errors", "llmc.runtime"},
}
SEES_ALL = ("llmc.cli", "llmc.demo")
LIGHT = {"numpy", "tokenizers", *sys.stdlib_module_names}


def folder_of(package: str) -> Path:
    """Where setuptools takes a package from: the longest prefix that has a folder."""
    name, rest = package, []
    while name not in PLACES:
        name, _, last = name.rpartition(".")
        rest.insert(0, last)
    return ROOT.joinpath(PLACES[name], *rest)


def modules() -> Iterator[tuple[str, Path]]:
    for package in SETTINGS["packages"]:
        for file in sorted(folder_of(package).glob("*.py")):
            yield (package if file.stem == "__init__" else f"{package}.{file.stem}"), file


def imports(file: Path) -> set[str]:
    """Modules imported anywhere in a file, but for type checkers only."""
    found: set[str] = set()
    trees: list[Any] = [ast.parse(file.read_text())]
    while trees:
        node = trees.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "llmc"
                else {node.module or ""}
            )
        trees.extend(ast.iter_child_nodes(node))
    return found


def within(name: str, packages: Any) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


@pytest.mark.parametrize("package", MAY)
def test_imports_point_one_way(package: str) -> None:
    own = [(n, f) for n, f in modules() if within(n, [package]) and not within(n, SEES_ALL)]
    assert own
    wrong = [
        f"{name} imports {other}"
        for name, file in own
        for other in imports(file)
        if within(other, ["llmc"]) and not within(other, MAY[package]) and other != "llmc.__version__"
    ]
    assert not wrong, wrong


def test_the_runtime_needs_numpy_only() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, file in modules()
        if within(name, ["llmc.runtime", "llmc.errors"])
        for other in imports(file)
        if other.split(".")[0] not in LIGHT and not within(other, ["llmc.runtime", "llmc.errors"])
    ]
    assert not wrong, wrong


def test_one_file_is_one_module() -> None:
    files = [file for _, file in modules()]
    assert len(files) == len(set(files))
    names = [name for name, _ in modules()]
    assert len(names) == len(set(names))


def test_every_folder_with_code_is_a_package() -> None:
    tops = [p for p in (ROOT / "compiler", ROOT / "passes", ROOT / "targets", ROOT / "runtime")]
    on_disk = {file.parent for top in tops for file in top.rglob("*.py")}
    assert on_disk == {folder_of(package) for package in SETTINGS["packages"]}


def test_zig_cc_is_started_in_one_place() -> None:
    """It names the target: without, zig looks for the host's libc, and gives up where it cannot read all of it."""
    files = [
        file
        for top in ("compiler", "passes", "targets", "bench", "tests")
        for file in (ROOT / top).rglob("*.py")
    ]
    starting = [file for file in files if re.search(r'"ziglang",\s+"cc"', file.read_text())]
    assert starting == [ROOT / "targets" / "toolchain.py"]


@pytest.mark.slow
def test_the_wheel_holds_everything(tmp_path: Path) -> None:
    """Built from the files that git knows, so that nothing left over in the folder helps."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / name).write_bytes((ROOT / name).read_bytes())
    code = "from setuptools import build_meta; build_meta.build_wheel('..')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {
        name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")
    }
    expected = {f"{name.replace('.', '/')}.py" for name, file in modules() if file.stem != "__init__"}
    expected |= {f"{package.replace('.', '/')}/__init__.py" for package in SETTINGS["packages"]}
    sources = [f for f in (ROOT / "runtime" / "c").iterdir() if f.suffix in (".c", ".h", ".map")]
    expected |= {f"llmc/runtime/c/{f.name}" for f in sources}
    expected |= {f"llmc/demo/model/{f.name}" for f in (ROOT / "compiler/llmc/demo/model").iterdir()}
    expected |= {"llmc/compiler/module.c.jinja", "llmc/py.typed"}
    assert held == expected
