"""What `--prune 0.3`, `--share 16` and `--factorize 64` mean as passes."""

from __future__ import annotations

import pytest

from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.compress.shortcuts import compression


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, ""),
        ({"prune": ["0.3"]}, "prune{sparsity=0.3}"),
        ({"prune": ["2:4"]}, 'prune{pattern="2:4"}'),
        ({"prune": ["1:4"]}, 'prune{pattern="1:4"}'),
        ({"prune": ["4x1:0.8"]}, 'prune{pattern="4x1",sparsity=0.8,scope="layer"}'),
        ({"prune": ["16x1"]}, 'prune{pattern="16x1",scope="layer"}'),
        ({"prune": ["scope=layer,sparsity=0.2"]}, "prune{scope=layer,sparsity=0.2}"),
        ({"prune": ['2:4,skip=["a","b"]']}, 'prune{pattern="2:4",skip=["a","b"]}'),
        ({"prune": ['0.3,scope="layer"']}, 'prune{sparsity=0.3,scope="layer"}'),
        ({"prune": ["4x1:0.8,scope=global"]}, 'prune{pattern="4x1",sparsity=0.8,scope=global}'),
        ({"prune": ['16x1:0.8,skip=["a"]']}, 'prune{pattern="16x1",sparsity=0.8,scope="layer",skip=["a"]}'),
        ({"prune": ["heads:0.25,scope=global"]}, "prune-heads{fraction=0.25,scope=global}"),
        ({"prune": ["16x4:0.8"]}, 'prune{pattern="16x4",sparsity=0.8,scope="layer"}'),
        (
            {"prune": ["16x4:0.8", "2:4", "0.3"], "int8": True},
            'prune{pattern="16x4",sparsity=0.8,scope="layer",whole=true},prune{pattern="2:4",whole=true},prune{sparsity=0.3}',
        ),
        ({"prune": ["2:4,whole=false"], "int8": True}, 'prune{pattern="2:4",whole=false}'),
        ({"prune": ["0.3", "channels:0.25"]}, "prune-channels{fraction=0.25},prune{sparsity=0.3}"),
        ({"prune": ["channels:0.25"], "samples": True}, 'prune-channels{by="activations",fraction=0.25}'),
        (
            {"prune": ['channels:0.3,by="magnitude"'], "samples": True},
            'prune-channels{fraction=0.3,by="magnitude"}',
        ),
        ({"share": "16"}, "share{clusters=16}"),
        ({"factorize": "energy=0.9"}, "factorize{energy=0.9}"),
        (
            {"prune": ["0.3", "heads:0.25", "neurons:.5"], "share": "256", "factorize": "64"},
            "prune-heads{fraction=0.25},prune-neurons{fraction=.5},factorize{rank=64},prune{sparsity=0.3},share{clusters=256}",
        ),
    ],
)
def test_shortcuts(options, text):
    assert compression(**options) == text
    parsed = Pipeline.parse(text, PASSES)
    assert str(Pipeline.parse(str(parsed), PASSES)) == str(parsed)


@pytest.mark.parametrize(
    "options",
    [{"prune": [text]} for text in ("a lot", "2:4,", "2:4,0.3")] + [{"share": "many"}, {"factorize": "-1"}],
)
def test_shortcuts_refused(options):
    with pytest.raises(LlmcError, match="is not understood"):
        compression(**options)
