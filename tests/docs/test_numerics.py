"""docs/numerics.md: its table of errors against the kernels, on every 65,537th float32."""

from __future__ import annotations

import re

import pytest
from function_errors import FUNCTIONS, errors
from kernel_lab import cpus

STEP = 65537


@pytest.fixture(scope="module")
def stated(root):
    """Function -> (ulp, error over all x), as the document states them."""
    rows = re.findall(
        r"^\| ([\w, ]+) \| .* \| ([\d.]+) \| ([\d.e-]+) \|$",
        (root / "docs" / "numerics.md").read_text(),
        re.MULTILINE,
    )
    return {name: (float(ulp), float(share)) for name, ulp, share in rows}


def test_every_function_is_stated(stated):
    assert stated.keys() == FUNCTIONS.keys()


@pytest.mark.skipif(not cpus(), reason="this machine runs no variant")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_as_stated(kernels, stated, name):
    ulp, share = errors(kernels, FUNCTIONS[name], STEP)
    assert ulp <= stated[name][0]
    assert share <= stated[name][1]
