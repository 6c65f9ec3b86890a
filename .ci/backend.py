"""The build backend: setuptools, and two things that it does not do.

An editable install is a folder of links, `.editable/llmc`, that type checkers and editors follow as Python does;
setuptools would write an import hook, which they do not run. And the links of README.md are made whole for the page
of a package index, which has no folder that they could be relative to.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import links
from setuptools import build_meta
from setuptools.build_meta import get_requires_for_build_sdist, get_requires_for_build_wheel

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGE = ROOT / PROJECT["tool"]["setuptools"]["dynamic"]["readme"]["file"][0]
get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(folder: str, settings: Any = None, metadata: str | None = None) -> str:
    """PEP 517."""
    write_page()
    shutil.rmtree(
        ROOT / "build" / "lib", ignore_errors=True
    )  # setuptools would pack what is gone from the sources
    return str(build_meta.build_wheel(folder, settings, metadata))


def build_sdist(folder: str, settings: Any = None) -> str:
    """PEP 517."""
    write_page()
    return str(build_meta.build_sdist(folder, settings))


def prepare_metadata_for_build_wheel(folder: str, settings: Any = None) -> str:
    """PEP 517."""
    write_page()
    return str(build_meta.prepare_metadata_for_build_wheel(folder, settings))


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel  # PEP 660


def build_editable(folder: str, settings: Any = None, metadata: str | None = None) -> str:
    """PEP 660: a wheel that names the folder of links, and keeps it as the sources are."""
    links.make(str(ROOT))
    with tempfile.TemporaryDirectory() as made:
        info = Path(metadata or Path(made, prepare_metadata_for_build_wheel(made)))
        files = {f"{info.name}/{f.name}": f.read_bytes() for f in info.iterdir() if f.is_file()}
        licences = info / "licenses"
        files |= {f"{info.name}/licenses/{f.name}": f.read_bytes() for f in licences.glob("*")}
    name, version = info.name.removesuffix(".dist-info").split("-")
    files[f"{info.name}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: llmc\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files["_llmc_links.py"] = Path(links.__file__).read_bytes()
    lines = (str(ROOT / links.FOLDER), f"import _llmc_links; _llmc_links.refresh({str(ROOT)!r})")
    files["__editable__.llmc.pth"] = "\n".join(lines).encode()
    wheel = f"{name}-{version}-0.editable-py3-none-any.whl"
    write_wheel(Path(folder, wheel), files, f"{info.name}/RECORD")
    return wheel


def write_wheel(path: Path, files: dict[str, bytes], record: str) -> None:
    """A wheel of these files, its RECORD among them."""
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def write_page() -> None:
    """README.md as a package index shows it."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page((ROOT / "README.md").read_text(), PROJECT["project"]["urls"]["Source"]))


def page(text: str, source: str) -> str:
    """Relative links as addresses below `source`; what lies in fences is code, and stays."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _absolute(part, source) for part in parts)


def _absolute(text: str, source: str) -> str:
    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({source}/{kind}/main/{found[3]})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", link, text)
