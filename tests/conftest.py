"""Fixtures the test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import random_graphs


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
