"""Every pass keeps what graphs compute: random graphs of all ops, and random encoders."""

from __future__ import annotations

import pytest

from llmc.compiler.given import Given, giving
from llmc.compiler.pipeline import Pipeline
from llmc.passes import LEVELS, PASSES

KEEPING = [name for name, kind in PASSES.items() if kind.keeps.kind != "lossy"]


@pytest.mark.parametrize("name", KEEPING)
def test_passes_keep_meaning(name, random_graph, same_output):
    for seed in range(200):
        graph, inputs = random_graph(seed)
        with giving(Given(lambda graph, inputs=inputs: iter([inputs]))):
            same_output(PASSES[name](), graph, inputs)


@pytest.mark.parametrize("block", range(5))
@pytest.mark.parametrize("name", ["simplify", "fuse", LEVELS[3]], ids=["simplify", "fuse", "O3"])
def test_encoders_keep_meaning(name, block, random_encoder, same_output):
    for seed in range(block * 10, block * 10 + 10):
        after = same_output(Pipeline.parse(name, PASSES), *random_encoder(seed))
        if name != "simplify":
            assert not {"matmul", "softmax", "attention"} & {n.op for n in after.nodes}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_second_run_changes_nothing(level, random_encoder):
    """A level reaches its fixed point at once."""
    pipeline = Pipeline.parse(LEVELS[level], PASSES)
    for seed in range(10):
        once, _ = pipeline.run(random_encoder(seed)[0])
        twice, _ = pipeline.run(once)
        assert len(twice.nodes) == len(once.nodes)


def test_sources_survive(random_encoder):
    """Every node a level leaves says where it came from."""
    for seed in range(10):
        after, _ = Pipeline.parse(LEVELS[3], PASSES).run(random_encoder(seed)[0])
        for node in after.nodes:
            assert node.source.path or node.op == "constant", node
            if node.op == "mha":
                assert node.source.path.startswith("layer.")
