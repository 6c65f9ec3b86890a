"""Which versions of the libraries that models come from llmc was tested with."""

from __future__ import annotations

import re
import warnings
from functools import cache
from importlib import metadata

from llmc.errors import LlmcWarning

# The first version that was tested and the first that was not; the extra `compile` in pyproject.toml says the same.
TESTED = {"torch": ("2.13", "2.14"), "transformers": ("5.20", "5.25")}


def release(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def warn_if_untested(*packages: str) -> None:
    """A warning, once each, for packages whose installed version is not among those that were tested."""
    for package in packages:
        _warn(package)


@cache
def _warn(package: str) -> None:
    first, end = TESTED[package]
    version = metadata.version(package)
    if not release(first) <= release(version) < release(end):
        problem = f"llmc was tested with {package} from {first} on and before {end}; this is {version}"
        warnings.warn(problem, LlmcWarning, stacklevel=4)
