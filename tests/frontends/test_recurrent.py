"""torch.nn.LSTM, GRU and RNN: what torch.export makes of them, PyTorch's answers to 1e-5."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import llmc
from llmc.compiler import interpret
from llmc.compiler.frontends import pt2
from llmc.compiler.frontends.module import graph
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES

torch.set_num_threads(1)
STEPS, WIDTH, UNITS = 7, 10, 12
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm_projected": (torch.nn.LSTM, {"proj_size": 5}),
}
FORMS: dict[str, dict[str, Any]] = {
    "one": {"batch_first": True},
    "both": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "plain": {"num_layers": 3, "bias": False},
}


class Whole(torch.nn.Module):
    """[batch, seq, width] -> output and states, whatever the network takes first."""

    def __init__(self, kind: str, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        network, options = KINDS[kind]
        self.network = network(WIDTH, UNITS, **options, **FORMS[form])

    def around(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.network.batch_first else x.transpose(0, 1)

    def forward(self, x: torch.Tensor) -> Any:
        output, states = self.network(self.around(x))
        return (self.around(output), *self.listed(states))

    def listed(self, states: Any) -> tuple[torch.Tensor, ...]:
        """States batch first, as all outputs of compile_module are."""
        return tuple(s.transpose(0, 1) for s in (states if isinstance(states, tuple) else (states,)))


class Lengths(Whole):
    """The same for rows of different lengths."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:  # type: ignore[override]
        first = self.network.batch_first
        packed = pack_padded_sequence(self.around(x), lengths.cpu(), first, enforce_sorted=False)
        output, states = self.network(packed)
        output, _ = pad_packed_sequence(output, first, total_length=x.shape[1])
        return (self.around(output), *self.listed(states))


class Started(torch.nn.Module):
    """From given states."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.LSTM(WIDTH, UNITS, 2, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        return self.network(x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))[0]


def names_of(kind: str) -> tuple[str, ...]:
    return ("y", "h", "c") if kind.startswith("lstm") else ("y", "h")


def assert_close(found: dict[str, Any], expected: Any, names: tuple[str, ...]) -> None:
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_networks(kind: str, form: str) -> None:
    model, names = Whole(kind, form).eval(), names_of(kind)
    made = graph(model, {"x": torch.zeros(2, STEPS, WIDTH)}, names, 16)
    after, _ = Pipeline.parse(LEVELS[3], PASSES).run(made)
    for batch in (1, 8):
        x = torch.randn(batch, STEPS, WIDTH)
        for each in (made, after):
            assert_close(interpret.run(each, {"x": x.numpy()}), model(x), names)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_rows_of_different_lengths(kind: str, form: str) -> None:
    model, names = Lengths(kind, form).eval(), names_of(kind)
    sample = {"x": torch.zeros(2, STEPS, WIDTH), "lengths": torch.tensor([STEPS, STEPS])}
    made = graph(model, sample, names, 16)
    assert (made.inputs[1].attributes["low"], made.inputs[1].attributes["high"]) == (0, STEPS)
    for lengths in ([1], [STEPS], [3, 7, 1, 5, 7, 2, 6, 4]):
        x, given = torch.randn(len(lengths), STEPS, WIDTH), torch.tensor(lengths)
        found = interpret.run(made, {"x": x.numpy(), "lengths": given.numpy()})
        assert_close(found, model(x, given), names)


def test_a_row_without_steps_keeps_its_state() -> None:
    model = Lengths("gru", "both").eval()
    sample = {"x": torch.zeros(2, STEPS, WIDTH), "lengths": torch.tensor([STEPS, STEPS])}
    made = graph(model, sample, ("y", "h"), 16)
    x = np.ones((2, STEPS, WIDTH), np.float32)
    found = interpret.run(made, {"x": x, "lengths": np.array([0, 3])})
    assert not found["y"][0].any()
    assert not found["h"][0].any()
    assert found["h"][1].all()


def test_given_states() -> None:
    model = Started().eval()
    tensors = [torch.randn(3, *shape) for shape in ((STEPS, WIDTH), (2, UNITS), (2, UNITS))]
    made = graph(model, dict(zip("xhc", tensors, strict=True)), ("y",), 16)
    given = {name: t.numpy() for name, t in zip("xhc", tensors, strict=True)}
    assert_close(interpret.run(made, given), (model(*tensors),), ("y",))


def test_the_products_with_the_input_are_outside_of_the_loop() -> None:
    made = graph(Whole("lstm", "both").eval(), {"x": torch.zeros(2, STEPS, WIDTH)}, ("y", "h", "c"), 16)
    assert sum(n.op == "linear" for n in made.nodes) == 4
    loops = [n for n in made.nodes if n.op == "loop"]
    assert [n.attributes["reverse"] for n in loops] == [False, True] * 2
    for loop in loops:
        ops = [n.op for n in loop.attributes["body"].nodes]
        assert [op for op in ops if op not in ("input", "constant", "result")] == ["lstm_cell"]


def test_weights_keep_their_names() -> None:
    for model, given in (
        (Whole("gru", "one"), {"x": torch.zeros(2, STEPS, WIDTH)}),
        (Lengths("gru", "one"), {"x": torch.zeros(2, STEPS, WIDTH), "lengths": torch.tensor([7, 7])}),
    ):
        made = graph(model.eval(), given, ("y", "h"), 16)
        found = {n.attributes["value"].name for n in made.everywhere() if n.op == "constant"}
        assert {"network.weight_ih_l0", "network.weight_hh_l0", "network.bias_ih_l0"} <= found


def test_torch_is_as_before_after_an_export() -> None:
    before = torch.nn.LSTM.forward, torch.nn.utils.rnn.pack_padded_sequence, Lengths.forward.__globals__
    with contextlib.suppress(RuntimeError), llmc.exportable(Lengths("gru", "one")):
        assert torch.nn.LSTM.forward is not before[0]
        raise RuntimeError
    after = torch.nn.LSTM.forward, torch.nn.utils.rnn.pack_padded_sequence, Lengths.forward.__globals__
    assert after == before
    assert before[2]["pack_padded_sequence"] is pack_padded_sequence


def exported(model: torch.nn.Module, path: Path, steps: Any, lengths: bool) -> Path:
    batch = torch.export.Dim("batch", min=1, max=8)
    given = (torch.randn(2, 5, WIDTH), torch.tensor([5, 3]))[: 1 + lengths]
    axes = ({0: batch, 1: steps} if steps is not None else {0: batch}, {0: batch})[: 1 + lengths]
    torch.export.save(torch.export.export(model, given, dynamic_shapes=axes), path)
    return path


@pytest.mark.filterwarnings("ignore:The tensor attribute")
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_pt2_files_as_torch_writes_them(kind: str, tmp_path: Path) -> None:
    """The number of steps is fixed: torch.export knows no other."""
    model = Whole(kind, "both").eval()
    made = pt2.load(exported(model, tmp_path / "m.pt2", None, False)).graph
    x = torch.randn(3, 5, WIDTH)
    assert_close(interpret.run(made, {"x": x.numpy()}), model(x), tuple(made.outputs))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_pt2_files_of_dynamic_steps_and_lengths(kind: str, tmp_path: Path) -> None:
    model = Lengths(kind, "both").eval()
    with llmc.exportable(model):
        path = exported(model, tmp_path / "m.pt2", torch.export.Dim("seq", min=1, max=64), True)
    made = pt2.load(path).graph
    x, lengths = torch.randn(3, 33, WIDTH), torch.tensor([33, 1, 20])
    found = interpret.run(made, {"x": x.numpy(), "lengths": lengths.numpy()})
    assert_close(found, model(x, lengths), tuple(made.outputs))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_exported_op_computes_what_the_network_does(kind: str) -> None:
    model = Lengths(kind, "both").eval()
    x, lengths = torch.randn(3, 6, WIDTH), torch.tensor([2, 6, 3])
    with llmc.exportable(model):
        program = torch.export.export(model, (x, lengths))
    for a, b in zip(program.module()(x, lengths), model(x, lengths), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_artifacts(tmp_path: Path) -> None:
    model = Lengths("lstm", "both").eval()
    sample = {"x": torch.zeros(2, STEPS, WIDTH), "lengths": torch.tensor([STEPS, STEPS])}
    llmc.compile_module(model, sample, tmp_path / "m.llmc", outputs=names_of("lstm"), max_batch=8)
    with llmc.load(tmp_path / "m.llmc", threads=2) as compiled:
        for lengths in ([4], [3, 7, 1, 5, 7, 2, 6, 4]):
            x, given = torch.randn(len(lengths), STEPS, WIDTH), torch.tensor(lengths)
            found = compiled(x=x.numpy(), lengths=given.numpy())
            assert_close(found, model(x, given), names_of("lstm"))
        with pytest.raises(LlmcError, match="lengths"):
            compiled(x=np.zeros((1, STEPS, WIDTH), np.float32), lengths=np.array([STEPS + 1]))


class Computed(torch.nn.Module):
    """A network whose weights are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.GRU(WIDTH, UNITS, batch_first=True)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        weights = [w * p for p in self.network._flat_weights]
        result: torch.Tensor = torch._VF.gru(  # type: ignore[attr-defined]
            x, torch.zeros(1, x.shape[0], UNITS), weights, True, 1, 0.0, False, False, True
        )[0]
        return result


def test_computed_weights_are_refused_with_a_sentence() -> None:
    sample = {"x": torch.zeros(2, STEPS, WIDTH), "w": torch.ones(2, 1)}
    with pytest.raises(LlmcError, match="gru with computed weights"):
        graph(Computed().eval(), {**sample, "w": torch.ones(2, 1)}, ("y",), 1)
