"""Which package imports which: read from the sources, ordered by floors, drawn for docs/structure.md."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PLACES = SETTINGS["package-dir"]

# From the ground up: an import goes down. A room is a package, its subpackages apart, unless its modules are on two
# floors; then the upper one is what gathers the subpackages, and the lower one, of these modules, what they use.
FLOORS: tuple[Mapping[str, tuple[str, ...]], ...] = (
    {"llmc.errors": ("llmc.errors",), "llmc.html": ("llmc.html",)},
    {
        "llmc.compiler: the graph": tuple(
            f"llmc.compiler.{name}" for name in ("dims", "tensors", "graph", "equality", "text")
        ),
        "llmc.runtime": (),
    },
    {"llmc.compiler.ops": ()},
    {"llmc.compiler": ()},
    {
        "llmc.compiler.frontends": (),
        "llmc.passes: patterns": ("llmc.passes.match", "llmc.passes.columns"),
        "llmc.targets: what a backend is": tuple(
            f"llmc.targets.{name}" for name in ("target", "lowering", "store", "elf", "toolchain", "backend")
        ),
    },
    {
        "llmc.passes.simplify": (),
        "llmc.passes.compress": (),
        "llmc.passes.quantise": (),
        "llmc.passes.rows": (),
        "llmc.targets.tir": (),
        "llmc.compiler.to_onnx": (),
    },
    {
        "llmc.passes.fuse": (),
        "llmc.targets.cpu: instruction sets": tuple(
            f"llmc.targets.cpu.{name}" for name in ("variants", "peak", "known", "build")
        ),
        "llmc.targets.cpu.elementwise": (),
        "llmc.passes.layout": (),
        "llmc.targets.cuda": (),
    },
    {"llmc.passes": (), "llmc.targets.cpu.rows": (), "llmc.targets": ()},
    {"llmc.targets.cpu.storage": ()},
    {"llmc.targets.cpu.products": ()},
    {"llmc.targets.cpu.attention": (), "llmc.targets.cpu.conv": (), "llmc.targets.tuning": ()},
    {"llmc.targets.cpu": ()},
    {"llmc": ()},
    {"llmc.demo": ()},
    {"llmc.cli": ("llmc.__main__",)},
)


def folder_of(package: str) -> Path:
    """Where setuptools takes a package from: the longest prefix that has a folder."""
    name, rest = package, []
    while name not in PLACES:
        name, _, last = name.rpartition(".")
        rest.insert(0, last)
    return ROOT.joinpath(PLACES[name], *rest)


def modules() -> Iterator[tuple[str, Path]]:
    """Name and file of every module of llmc."""
    for package in SETTINGS["packages"]:
        for file in sorted(folder_of(package).glob("*.py")):
            yield (package if file.stem == "__init__" else f"{package}.{file.stem}"), file


@cache
def imports(file: Path) -> frozenset[str]:
    """What a file imports anywhere, but for type checkers only; `from a import b` is "a.b"."""
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
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        trees.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def rooms() -> dict[str, str]:
    """Module -> room: the one that names it, else that of its package."""
    listed = {module: room for floor in FLOORS for room, names in floor.items() for module in names}
    packages = set(SETTINGS["packages"])
    found = {}
    for module, _ in modules():
        package = module if module in packages else module.rpartition(".")[0]
        found[module] = listed.get(module, package)
    return found


@cache
def picture() -> nx.DiGraph:
    """Room -> the rooms it imports; each has its `floor`, each arrow the `modules` that import."""
    room_of = rooms()
    graph = nx.DiGraph()
    for level, floor in enumerate(FLOORS):
        graph.add_nodes_from(floor, floor=level)
    for module, file in modules():
        for name in sorted(imports(file)):
            while name not in room_of and "." in name:
                name = name.rpartition(".")[0]
            if name not in room_of or name == "llmc" or room_of[name] == room_of[module]:
                continue  # `from llmc import __version__` needs no room
            graph.add_edge(room_of[module], room_of[name])
            graph.edges[room_of[module], room_of[name]].setdefault("modules", []).append(
                f"{module} -> {name}"
            )
    return graph


def drawn() -> str:
    """The picture as Mermaid, without arrows that others imply, and as a table with all of them."""
    graph = picture()
    lines = ["```mermaid", "flowchart TB"]
    names = {room: f"r{i}" for i, room in enumerate(room for floor in FLOORS[::-1] for room in floor)}
    lines += [f'  {name}["{room}"]' for room, name in names.items()]
    arrows = sorted(nx.transitive_reduction(graph).edges, key=lambda edge: list(map(list(names).index, edge)))
    lines += [f"  {names[a]} --> {names[b]}" for a, b in arrows]
    lines += ["```", "", "| floor | room | imports |", "|---|---|---|"]
    for level, floor in reversed(list(enumerate(FLOORS))):
        for room in floor:
            below = sorted(graph.successors(room), key=list(names).index)
            lines.append(f"| {level} | {room} | {', '.join(below)} |")
    return "\n".join(lines)
