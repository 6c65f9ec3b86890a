"""Imports point one way, and the packages of pyproject.toml are those on disk."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from structure import FLOORS, ROOT, SETTINGS, drawn, folder_of, imports, modules, picture, rooms

# What each package may import of llmc; `llmc` itself and the command line see all.
MAY = {
    "llmc.compiler": {"llmc.errors", "llmc.html", "llmc.compiler"},
    "llmc.passes": {"llmc.errors", "llmc.compiler", "llmc.passes"},
    "llmc.targets": {"llmc.errors", "llmc.compiler", "llmc.targets"},
    "llmc.runtime": {"llmc.errors", "llmc.html", "llmc.runtime"},
}
SEES_ALL = ("llmc.cli", "llmc.demo")
LIGHT = {
    "numpy",
    "tokenizers",
    "jinja2",
    "llguidance",
    "PIL",
    "soundfile",
    "soxr",
    *sys.stdlib_module_names,
}  # NumPy, and extras where used


def within(name: str, packages: Any) -> bool:
    return any(name == p or name.startswith((p + ".", p + ":")) for p in packages)


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
        if other.split(".")[0] not in LIGHT and not within(other, MAY["llmc.runtime"])
    ]
    assert not wrong, wrong


def test_no_arrow_runs_up() -> None:
    """An import goes to a lower floor of the picture."""
    graph = picture()
    floor = graph.nodes(data="floor")
    up = {(a, b): data["modules"] for a, b, data in graph.edges(data=True) if floor[a] <= floor[b]}
    assert not up, up


def test_backends_do_not_know_each_other() -> None:
    """Neither does what they share know them."""
    graph = picture()
    kinds = {
        kind: [r for r in graph if within(r, [f"llmc.targets.{kind}"])] for kind in ("cpu", "cuda", "tir")
    }
    assert all(kinds.values())
    apart = [("cpu", "cuda"), ("cuda", "cpu"), ("tir", "cpu"), ("tir", "cuda")]
    wrong = [e for a, b in apart for e in graph.edges if e[0] in kinds[a] and e[1] in kinds[b]]
    assert not wrong, {edge: graph.edges[edge]["modules"] for edge in wrong}


def test_every_module_has_a_room() -> None:
    named = [room for floor in FLOORS for room in floor]
    assert len(named) == len(set(named))
    assert set(rooms().values()) == set(named)
    listed = [module for floor in FLOORS for names in floor.values() for module in names]
    assert len(listed) == len(set(listed))
    assert set(listed) <= {name for name, _ in modules()}


def test_the_picture_is_drawn(pytestconfig: pytest.Config) -> None:
    """docs/structure.md shows the imports as they are; `pytest --bless` draws them again."""
    file = ROOT / "docs" / "structure.md"
    before, mark, _ = file.read_text().partition("<!-- drawn by tests/structure.py -->\n")
    assert mark
    text = f"{before}{mark}\n{drawn()}\n"
    if pytestconfig.getoption("--bless"):
        file.write_text(text)
    assert file.read_text() == text, "not the imports of today: review, then run pytest --bless"


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
    code = "import sys; sys.path.insert(0, '.ci'); import backend; backend.build_wheel('..')"
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
    expected |= {
        "llmc/compiler/module.c.jinja",
        "llmc/compiler/calibration.txt",
        "llmc/py.typed",
        "llmc/costs.json",
    }
    assert held == expected
