"""Fixtures the test files share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import random_graphs


@pytest.fixture(scope="session")
def random_graph() -> Callable[..., Any]:
    """`random_graph(seed) -> (Graph, inputs)`: see random_graphs.py."""
    return random_graphs.random_graph


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A `kernel_lab.Lab` with every lowering: kernels are compiled once for the whole session."""
    from kernel_lab import Lab

    from llmc.targets.lower import LOWERINGS

    return Lab(tmp_path_factory.mktemp("kernels"), LOWERINGS)


@pytest.fixture(scope="session")
def run_kernels(kernels: Any) -> Callable[..., Any]:
    """`run_kernels(graph, inputs, sizes=None, cpu=None, cuts=...)` -> outputs by name; see kernel_lab.py."""
    run: Callable[..., Any] = kernels.run
    return run
