"""Type rules: symbolic shapes that are accepted, and refusals with a clear message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from op_type_cases import ACCEPTED, B, S, t
from op_type_faults import REFUSED

from llmc.compiler.dims import dim_text
from llmc.compiler.graph import Node, Source, TensorType
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.ops.faults import Fault
from llmc.errors import LlmcError


@pytest.mark.parametrize(("op", "inputs", "attributes", "expected"), ACCEPTED)
def test_inferred_type(op: str, inputs: tuple[Node, ...], attributes: dict[str, Any], expected: str):
    assert str(make(op, inputs, **attributes).type) == expected


@pytest.mark.parametrize(("op", "inputs", "attributes", "message"), REFUSED)
def test_refusal(op: str, inputs: tuple[Node, ...], attributes: dict[str, Any], message: str):
    with pytest.raises(LlmcError) as caught:
        make(op, inputs, Source("encoder.0", "model.py:7"), **attributes)
    assert message in str(caught.value)
    assert caught.value.problem.startswith(f"{op}: ")
    assert caught.value.at == "encoder.0 (model.py:7)"


ODD: tuple[Any, ...] = (None, "a", (), (None,), (None, "a"), ((1,),), 1.5, -1, 99, True, float("nan"), object)


@pytest.mark.parametrize("number", range(len(ACCEPTED)))
def test_attributes_of_the_wrong_kind_are_refused_by_the_rule(number: int):
    """Or taken; what a rule of llmc's own never does is to fail."""
    op, inputs, attributes, *_ = ACCEPTED[number]
    refusals: list[LlmcError] = []
    for name in OPS[op].defaults:
        for odd in ODD:
            try:
                make(op, inputs, **{**attributes, name: odd})
            except LlmcError as error:
                refusals.append(error)
    assert not [str(error) for error in refusals if isinstance(error, Fault)]


def test_refusal_names_the_types():
    with pytest.raises(LlmcError) as caught:
        make("add", (t(B, S), t(B, 3)))
    assert caught.value.found == "f32[batch, seq], f32[batch, 3]"


def test_unknown_names():
    with pytest.raises(LlmcError, match="no op 'conv'"):
        make("conv", ())
    with pytest.raises(LlmcError, match="no attribute 'dim'"):
        make("softmax", (t(2),), dim=0)
    with pytest.raises(LlmcError, match="'axis' is missing"):
        make("softmax", (t(2),))


def test_states():
    fixed = make("state", (), name="sum", dtype="f32", shape=(B, 8))
    assert (str(fixed.type), fixed.attributes["grows"]) == ("f32[batch, 8]", None)


def test_every_op_has_an_accepted_or_binary_case():
    unary_or_leaf = {n for n, o in OPS.items() if o.elementwise} | {"input", "constant"}
    like_others = {"max", "min", "any", "all", "cumsum", "softmax", "log_softmax", "layer_norm", "rms_norm"}
    assert {a[0] for a in ACCEPTED} | unary_or_leaf | like_others == set(OPS)


def test_with_inputs_infers_again_and_keeps_the_source():
    node = make("linear", (t(B, 8), constant(np.ones((3, 8)))), Source("head"))
    wider = node.with_inputs((t(B, S, 8), node.inputs[1]))
    assert str(wider.type) == "f32[batch, seq, 3]"
    assert wider.source == Source("head")


def test_types_normalise_dims():
    assert TensorType("f32", (S * 2 - S, "seq + 1", np.int64(3))).shape == (S, S + 1, 3)
    assert dim_text(TensorType("f32", ((B + 1) * S,)).shape[0]) == "batch*seq + seq"


def test_constants_of_python_numbers():
    assert constant(1.5).type == TensorType("f32", ())
    assert constant(3).type == TensorType("i64", ())
    assert constant(True).type == TensorType("bool", ())
