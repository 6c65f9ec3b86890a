"""Recurrences that go on from any state: what transformers' own functions compute, in one call and in several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.rwkv import modeling_rwkv

from llmc.compiler import interpret
from llmc.compiler.frontends import scans
from llmc.compiler.frontends.module import graph

SEQ, CUT, HEADS = 11, 7, 4
Values = dict[str, torch.Tensor]


def drawn(**shapes: tuple[int, ...]) -> Values:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def part(values: Values, first: int, last: int | None, fixed: tuple[str, ...] = (), axis: int = 1) -> Values:
    """The tokens `first` to `last` of what has tokens."""
    count = (SEQ if last is None else last) - first
    return {k: x if k in fixed else x.narrow(axis, first, count) for k, x in values.items()}


def close(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


def test_selective_scan() -> None:
    fixed = ("A", "D", "delta_bias")
    width, state = (2, 6, SEQ), (2, 5, SEQ)
    values = drawn(
        hidden_states=width, dt=width, z=width, B=state, C=state, A=(6, 5), D=(6,), delta_bias=(6,)
    )
    values["A"] = -values["A"].abs()
    options: Any = {"delta_softplus": True, "return_last_state": True}
    wanted = modeling_mamba.mamba_selective_scan(**values, **options)
    close(scans.selective_scan(**values, **options), wanted)
    output, last = scans.selective_scan(**part(values, 0, CUT, fixed, -1), **options)
    scans.beginning.set([last])
    more, last = scans.selective_scan(**part(values, CUT, None, fixed, -1), **options)
    close((torch.cat((output, more), -1), last), wanted)


def test_chunk_scan() -> None:
    fixed = ("A", "D", "dt_bias")
    width, state, heads = (2, SEQ, HEADS, 3), (2, SEQ, 2, 5), (HEADS,)
    values = drawn(hidden_states=width, dt=width[:3], B=state, C=state, A=heads, D=heads, dt_bias=heads)
    values["A"] = -values["A"].abs()
    options: Any = {"chunk_size": 4, "dt_softplus": True, "dt_limit": (0.1, 2.0), "return_final_states": True}
    wanted = modeling_mamba2.mamba2_chunk_scan(**values, **options)
    close(scans.chunk_scan(**values, **options), wanted)
    output, last = scans.chunk_scan(**part(values, 0, CUT, fixed), **options)
    more, last = scans.chunk_scan(**part(values, CUT, None, fixed), initial_states=last, **options)
    close((torch.cat((output, more), 1), last), wanted)


@pytest.mark.parametrize(
    ("theirs", "decays", "groups"),
    [
        pytest.param(modeling_qwen3_next.torch_chunk_gated_delta_rule, (), 2, id="qwen3_next"),
        pytest.param(modeling_kimi_linear.chunk_kimi_delta_attention, (5,), HEADS, id="kimi_linear"),
    ],
)
def test_delta_rule(theirs: Callable[..., Any], decays: tuple[int, ...], groups: int) -> None:
    shared, width = (2, SEQ, groups, 5), (2, SEQ, HEADS)
    values = drawn(query=shared, key=shared, value=(*width, 3), g=(*width, *decays), beta=width)
    values |= {"g": -values["g"].abs(), "beta": values["beta"].sigmoid()}
    options: Any = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    whole = {k: values[k].repeat_interleave(HEADS // groups, 2) for k in ("query", "key")}
    wanted = theirs(**{**values, **whole}, chunk_size=4, **options)
    close(scans.delta_rule(**values, **options), wanted)
    output, last = scans.delta_rule(**part(values, 0, CUT), **options)
    more, last = scans.delta_rule(**part(values, CUT, None), initial_state=last, **options)
    close((torch.cat((output, more), 1), last), wanted)


def test_rwkv_begins_with_zeros() -> None:
    """transformers begins with -1e38 for the exponent of no token; a session's states begin with zeros."""
    values = drawn(time_decay=(6,), time_first=(6,), key=(2, SEQ, 6), value=(2, SEQ, 6))
    values["key"] = values["key"] * 60 - 90  # exponentials of which there is nothing left beside exp(0)
    wanted, states = modeling_rwkv.rwkv_linear_attention_cpu(**values, return_state=True)
    zeros: Any = (torch.zeros(2, 6),) * 3
    fixed = ("time_decay", "time_first")
    first, held = scans.rwkv_linear_attention(**part(values, 0, CUT, fixed), state=zeros)
    more, held = scans.rwkv_linear_attention(**part(values, CUT, None, fixed), state=held)
    close((torch.cat((first, more), 1), *held), (wanted, *states))


class Recurrence(torch.nn.Module):
    def forward(self, decay: Any, value: Any, key: Any, query: Any, first: Any, rate: Any) -> Any:
        plain = scans.recurrence(decay, value, key, query, first, None)
        return (*plain, *scans.recurrence(decay, value, key, query, first, rate))


class Wkv(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decay, self.bonus = -torch.rand(6), torch.rand(6)

    def forward(self, key: Any, value: Any, above: Any, below: Any, most: Any) -> Any:
        return scans.wkv(self.decay, self.bonus, key, value, above, below, most)


MODULES: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    "recurrence": (
        Recurrence,
        {
            "decay": (2, SEQ, HEADS, 1, 5),
            "value": (2, SEQ, HEADS, 3),
            "key": (2, SEQ, HEADS, 5),
            "query": (2, SEQ, HEADS, 5),
            "first": (2, HEADS, 3, 5),
            "rate": (2, SEQ, HEADS),
        },
    ),
    "wkv": (
        Wkv,
        {"key": (2, SEQ, 6), "value": (2, SEQ, 6), "above": (2, 6), "below": (2, 6), "most": (2, 6)},
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_each_op_becomes_a_loop(name: str) -> None:
    kind, shapes = MODULES[name]
    module, values = kind().eval(), {k: x.abs() for k, x in drawn(**shapes).items()}
    wanted = module(**values)
    found = graph(module, values, [f"y{i}" for i in range(len(wanted))], 2)
    assert {n.op for n in found.nodes} >= {"loop"}
    outputs = interpret.run(found, {k: x.numpy() for k, x in values.items()})
    close(outputs.values(), wanted)
