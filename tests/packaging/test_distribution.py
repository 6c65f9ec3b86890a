"""What is built of the checkout: links of an editable install, an index page, the sdist; extras and ranges."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import warnings
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import llmc
from llmc.compiler.frontends import versions
from llmc.errors import EXTRAS, LlmcWarning, lacks

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of .ci/, as a module."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one file in `llmc` and one in `llmc.passes`."""
    for folder in ("compiler/llmc/cli", "passes", "targets", "runtime"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "compiler/llmc/__init__.py").touch()
    (tmp_path / "passes/fuse.py").touch()
    return tmp_path


def linked(root: Path) -> set[str]:
    """What the links lead to, and nothing that leads nowhere."""
    links = list((root / ".editable" / "llmc").iterdir())
    assert all(link.is_symlink() and link.exists() for link in links)
    return {str(link.resolve().relative_to(root)) for link in links}


def test_links_are_what_the_sources_are(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = module("links", monkeypatch)
    links.make(str(checkout))
    beside = {"compiler", "passes", "targets", "runtime", "compiler/llmc/cli"}
    assert linked(checkout) == beside | {"compiler/llmc/__init__.py"}

    (checkout / "compiler/llmc/new.py").touch()
    (checkout / "compiler/llmc/__init__.py").unlink()
    links.refresh(str(checkout))
    assert linked(checkout) == beside | {"compiler/llmc/new.py"}

    (checkout / "passes/simplify").mkdir()  # below a folder that is linked whole nothing need be done
    assert (checkout / ".editable/llmc/passes/simplify").is_dir()


def test_a_checkout_that_is_gone_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module("links", monkeypatch).refresh(str(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()


def test_an_editable_wheel_names_the_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = module("backend", monkeypatch)
    info = tmp_path / "llmc-0.1.0.dist-info"
    (info / "licenses").mkdir(parents=True)
    (info / "METADATA").write_text("Name: llmc\n")
    wheel = tmp_path / backend.build_editable(str(tmp_path), None, str(info))
    with zipfile.ZipFile(wheel) as archive:
        first, second = archive.read("__editable__.llmc.pth").decode().splitlines()
        record = archive.read("llmc-0.1.0.dist-info/RECORD").decode()
        held = set(archive.namelist())
    assert (Path(first) / "llmc" / "__init__.py").samefile(ROOT / "compiler" / "llmc" / "__init__.py")
    assert second.startswith("import _llmc_links; ")
    assert {line.split(",")[0] for line in record.splitlines()} == held


def test_links_of_the_page_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PROJECT["urls"]["Source"]
    page = module("backend", monkeypatch).page((ROOT / "README.md").read_text(), source)
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S))
    assert any("/raw/main/docs/peers.png" in target for target in targets)
    for target in targets:
        assert target.startswith(("https://", "#")), target
        if target.startswith(source):
            path = target.removeprefix(source).split("/", 3)[3].split("#")[0]
            assert (ROOT / path).exists(), target


def test_code_of_the_page_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[a](b.md) ![c](d.png) [e](https://f)\n```sh\n[g](h)\n```\n"
    page = module("backend", monkeypatch).page(text, "S")
    assert page == "[a](S/blob/main/b.md) ![c](S/raw/main/d.png) [e](https://f)\n```sh\n[g](h)\n```\n"


@pytest.mark.slow
def test_the_sdist_is_the_checkout(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    source = tmp_path / "src"
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys; sys.path.insert(0, '.ci'); import backend; backend.build_sdist('..')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert not set(files) - held


def required(extra: str) -> dict[str, str]:
    """Package -> range of an extra in pyproject.toml."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found = (re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def test_every_module_is_in_its_extra() -> None:
    names = {"PIL": "pillow", "tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "google": "onnx"}
    for extra, modules in EXTRAS.items():
        known = {**required(extra), **(required("text") if extra == "compile" else {})}
        for name in modules:
            assert names.get(name, name).replace("_", "-") in known, (extra, name)
    assert set(required("compile")) - {"llmc"} <= {
        names.get(name, name).replace("_", "-") for name in EXTRAS["compile"]
    }


def test_ranges_are_those_of_the_warning() -> None:
    for package, (first, end) in versions.TESTED.items():
        assert required("compile")[package] == f">={first},<{end}"


def test_a_version_that_was_not_tested_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: "5.19.9")
    versions._warn.cache_clear()
    try:
        with pytest.warns(LlmcWarning, match=r"transformers from 5\.20 on and before .*; this is 5\.19\.9"):
            versions.warn_if_untested("transformers")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            versions.warn_if_untested("transformers")
    finally:
        versions._warn.cache_clear()


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("numpy", "pip install llmc"),
        ("tokenizers", "pip install 'llmc[text]'"),
        ("tvm.ir", "pip install 'llmc[compile]'"),
    ],
)
def test_a_missing_module_names_its_extra(module: str, hint: str) -> None:
    told = lacks(module)
    assert told is not None
    assert told.hint == hint
    assert lacks("somebodys_own") is None


def test_dir_is_the_public_interface() -> None:
    assert dir(llmc) == sorted(llmc.__all__)
