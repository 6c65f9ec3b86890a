"""Fixtures the test files share."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import instruction_sets
import kept
import numpy as np
import pytest
import random_encoders
import random_graphs
from masked import feature_mask

from llmc.compiler import extensions, interpret
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pass, Pipeline

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite the expected texts in tests/golden")
    parser.addoption(
        "--mask-features", metavar="NAMES", default="", help="act as a processor without these: avx512,amx"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Kernels that several tests compile are made once, and the user's own cache is left alone."""
    # As a shell's background job, or under nohup, children inherit that these are ignored.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not hasattr(config, "workerinput"):  # the workers of xdist inherit it
        os.environ["LLMC_CACHE"] = str(_cache(config))
    kept.use(Path(os.environ["LLMC_CACHE"]) / "tests")
    libc = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zig"
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(libc))  # made once for all checkouts
    if config.getoption("--mask-features"):
        _mask(config, config.getoption("--mask-features").split(","))


def _cache(config: pytest.Config) -> Path:
    """A folder of pytest's cache, named by what compiles kernels; under -p no:cacheprovider one of this run."""
    cache = getattr(config, "cache", None)
    if cache is None:
        folder = Path(tempfile.mkdtemp(prefix="llmc-tests-"))
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        return folder
    own = cache.mkdir("llmc") / kept.sources("targets/cpu/build.py", "targets/store.py")[:16]
    for other in set(own.parent.iterdir()) - {own}:  # what an earlier compiler made is of no use
        shutil.rmtree(other, ignore_errors=True)
    own.mkdir(exist_ok=True)
    return Path(own)


def _mask(config: pytest.Config, names: list[str]) -> None:
    cache = getattr(config, "cache", None)
    if cache is None:
        raise pytest.UsageError(
            "--mask-features keeps a file in pytest's cache: leave out -p no:cacheprovider"
        )
    try:
        mask = feature_mask.mask(names, cache.mkdir("mask-" + "-".join(names)))
    except ValueError as error:
        raise pytest.UsageError(f"--mask-features: {error}") from None
    feature_mask.install(mask)
    if not instruction_sets.here():
        raise pytest.UsageError("--mask-features: nothing is left that llmc has code for")


# The generators of test modules, and how each was when it was imported.
_drawn: list[tuple[np.random.Generator, dict[str, Any]]] = []


def pytest_collection_finish() -> None:
    """Notes the state of each generator that a test module holds: what a test draws must not depend on the others."""
    found = {
        id(value): value
        for module in list(sys.modules.values())
        if TESTS in Path(getattr(module, "__file__", None) or "/").parents
        for value in vars(module).values()
        if isinstance(value, np.random.Generator)
    }
    _drawn[:] = [(value, value.bit_generator.state) for value in found.values()]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Generators begin anew. `variant("avx512amx")`: the test is skipped, by name, where the processor lacks that."""
    for generator, state in _drawn:
        generator.bit_generator.state = state
    for marker in item.iter_markers("variant"):
        (name,) = marker.args
        missing = instruction_sets.lacking(instruction_sets.X86[name])
        instruction_sets.note("skipped" if missing else "run by", name, item.nodeid)
        if missing:
            pytest.skip(f"variant {name}: this processor lacks {missing}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of xdist
        session.config.workeroutput["instruction_sets"] = instruction_sets.noted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of xdist has ended; one that crashed says nothing."""
    instruction_sets.join(getattr(node, "workeroutput", {}).get("instruction_sets", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(instruction_sets.noted().values()):
        terminalreporter.section("instruction sets")
        terminalreporter.write_line("\n".join(instruction_sets.summary()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long to build is built by one process: the artifacts of a folder, the kernels of a file."""
    for item in items:
        folder = item.path.parent.name
        if folder in ("arm", "docs", "embedding"):
            item.add_marker(pytest.mark.xdist_group(folder))
        elif folder == "targets":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`shared("small.llmc", make)`: what `make(path)` writes, once for all workers of a run; do not change it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    return lambda name, make: kept.folder_made(folder / name, make)


@pytest.fixture(scope="session")
def random_graph() -> Callable[..., Any]:
    """`random_graph(seed) -> (Graph, inputs)`: see random_graphs.py."""
    return random_graphs.random_graph


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which `python bench/models.py minilm` fetches."""
    folder = os.environ.get("LLMC_MINILM")
    if not folder:
        pytest.skip("LLMC_MINILM is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def random_encoder() -> Callable[..., Any]:
    """`random_encoder(seed) -> (Graph, inputs)`: see random_encoders.py."""
    return random_encoders.random_encoder


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """`golden(value)` compares `str(value)` with tests/golden/FILE/TEST.txt; `pytest --bless` writes it."""
    name = request.node.name.replace("/", "_").replace("[", "-").rstrip("]")
    file = TESTS / "golden" / Path(request.node.path).stem.removeprefix("test_") / f"{name}.txt"

    def check(value: object) -> None:
        text = str(value).rstrip("\n") + "\n"
        if request.config.getoption("--bless"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        assert file.exists(), f"{file} is missing: run pytest --bless and review it"
        assert text == file.read_text(), "not the expected text: review, then run pytest --bless"

    return check


@pytest.fixture
def same_output() -> Callable[..., Graph]:
    """`same_output(pass or pipeline, graph, inputs)`: the graph after it, held to what the pass promises."""
    return _same_output


def _same_output(change: Pass | Pipeline, graph: Graph, inputs: dict[str, Any] | None = None) -> Graph:
    pipeline = change if isinstance(change, Pipeline) else Pipeline.of(change)
    after, _ = pipeline.run(graph)
    if after is graph:
        return graph
    sizes = {name: min(3 + i, bounds.high) for i, (name, bounds) in enumerate(graph.dims.items())}
    given = random_graphs.random_inputs(graph, 0, sizes) if inputs is None else inputs
    expected, got = interpret.run(graph, given), interpret.run(after, given)
    tolerance = max((step.change.keeps.tolerance for step in pipeline.steps), default=0.0)
    if any(step.change.keeps.kind == "lossy" for step in pipeline.steps):
        tolerance = 0.5  # no promise: the answers are of the right shape and size, and finite
    for name, value in expected.items():
        limit = tolerance * float(np.abs(value).max(initial=0)) if value.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(got[name], value, rtol=0, atol=limit, err_msg=f"{pipeline}: {name}")
    return after


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A `kernel_lab.Lab` with every lowering: kernels are compiled once for the whole session."""
    from kernel_lab import Lab

    from llmc.targets.cpu.lower import LOWERINGS

    return Lab(tmp_path_factory.mktemp("kernels"), LOWERINGS)


@pytest.fixture(scope="session")
def run_kernels(kernels: Any) -> Callable[..., Any]:
    """`run_kernels(graph, inputs, sizes=None, cpu=None, cuts=...)` -> outputs by name; see kernel_lab.py."""
    run: Callable[..., Any] = kernels.run
    return run


@pytest.fixture
def extension() -> Iterator[Callable[..., None]]:
    """`extension("softsign")`: examples/extension/softsign.py is loaded until the test ends; so is a file's path."""
    before = {item.given.name for item in extensions.loaded()}

    def load(*names: str | Path) -> None:
        for name in names:
            extensions.load(
                TESTS.parent / "examples" / "extension" / f"{name}.py" if isinstance(name, str) else name
            )

    yield load
    for item in extensions.loaded():
        if item.given.name not in before:
            extensions.unload(item.given.name)
