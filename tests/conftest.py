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
