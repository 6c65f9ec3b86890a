"""Recurrent networks on rows of different lengths, as torch.export can follow them.

PyTorch packs such rows into one tensor whose size depends on the lengths' values; torch.export refuses that, and
unrolls a network whose number of steps is dynamic. Inside `exportable`, packing keeps the padded tensor and its
lengths beside each other, and a network is one call of the op `llmc::recurrent`, which takes them both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils import rnn

_ORIGINAL = {name: getattr(rnn, name) for name in ("pack_padded_sequence", "pad_packed_sequence")}
_FORWARD = {kind: kind.forward for kind in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)}


@torch.library.custom_op("llmc::recurrent", mutates_args=())
def recurrent(
    kind: str,
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    hx: list[torch.Tensor],
    params: list[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[torch.Tensor]:
    """What `torch.nn.LSTM`, `GRU` and `RNN` compute, in eval mode.

    Args:
        kind: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        x: [seq, batch, width], or [batch, seq, width] if `batch_first`.
        lengths: integer [batch], or None if all rows are as long as x.
        hx: [layers * directions, batch, units] each: h and, of an LSTM, c.

    Returns:
        The output, zeros at steps beyond a row's length, and the states after each row's last step.
    """
    call = getattr(torch._VF, kind)
    options = (has_biases, num_layers, 0.0, False, bidirectional)
    if lengths is None:
        return list(call(x, hx if kind == "lstm" else hx[0], params, *options, batch_first))
    packed = _ORIGINAL["pack_padded_sequence"](x, lengths.cpu(), batch_first, enforce_sorted=False)
    first = [state.index_select(1, packed.sorted_indices) for state in hx]
    made = call(packed.data, packed.batch_sizes, first if kind == "lstm" else first[0], params, *options)
    data = rnn.PackedSequence(made[0], packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    steps = x.shape[1 if batch_first else 0]
    output, _ = _ORIGINAL["pad_packed_sequence"](data, batch_first, 0.0, steps)
    return [output, *(state.index_select(1, packed.unsorted_indices) for state in made[1:])]


@recurrent.register_fake
def _results(
    kind: str,
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    hx: list[torch.Tensor],
    params: list[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[torch.Tensor]:
    width = hx[0].shape[2] * (1 + bidirectional)
    return [x.new_empty((x.shape[0], x.shape[1], width)), *(torch.empty_like(state) for state in hx)]


class Padded:
    """Stands for a `PackedSequence` while a module is traced: data [batch, seq, width] and lengths [batch]."""

    def __init__(self, data: torch.Tensor, lengths: torch.Tensor) -> None:
        self.data, self.lengths = data, lengths


def _pack(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Padded:
    data = input if batch_first else input.transpose(0, 1)
    return Padded(data, lengths if isinstance(lengths, torch.Tensor) else torch.tensor(lengths))


def _unpack(
    sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Any, Any]:
    """As long as what was packed, where PyTorch's is as long as the longest row; `total_length` makes both equal."""
    data, lengths = sequence.data, sequence.lengths
    if total_length is not None and total_length != data.shape[1]:
        data = torch.nn.functional.pad(data, (0, 0, 0, total_length - data.shape[1]))
    if padding_value:
        own = torch.arange(data.shape[1])[None, :, None] < lengths[:, None, None]
        data = torch.where(own, data, torch.tensor(padding_value, dtype=data.dtype))
    return (data if batch_first else data.transpose(0, 1)), lengths


def _forward(self: Any, input: Any, hx: Any = None) -> Any:
    """`forward` of a network, as one call."""
    padded = isinstance(input, Padded)
    if not padded and input.dim() != 3:
        return next(f for kind, f in _FORWARD.items() if isinstance(self, kind))(self, input, hx)
    x, first = (input.data, True) if padded else (input, self.batch_first)
    kind = self.mode.lower()
    if hx is None:
        batch, rows = x.shape[0 if first else 1], self.num_layers * (1 + self.bidirectional)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        hx = tuple(x.new_zeros((rows, batch, w)) for w in widths[: 2 if kind == "lstm" else 1])
    states = list(hx) if kind == "lstm" else [hx[0] if isinstance(hx, tuple) else hx]
    output, *last = recurrent(
        kind,
        x,
        input.lengths if padded else None,
        states,
        [getattr(self, name) for name in self._flat_weights_names],
        self.bias,
        self.num_layers,
        self.bidirectional,
        first,
    )
    return (Padded(output, input.lengths) if padded else output), (tuple(last) if kind == "lstm" else last[0])


@contextlib.contextmanager
def exportable(module: torch.nn.Module) -> Iterator[None]:
    """Inside, `torch.export.export(module, ...)` can follow packed sequences and networks of dynamic length.

    Nothing is changed for a module without `torch.nn.LSTM`, `GRU` or `RNN`.
    """
    layers = list(module.modules())
    if not any(isinstance(layer, torch.nn.RNNBase) for layer in layers):
        yield
        return
    stand_ins = {"pack_padded_sequence": _pack, "pad_packed_sequence": _unpack}
    scopes = [
        vars(rnn),
        *(type(layer).forward.__globals__ for layer in layers if hasattr(type(layer).forward, "__globals__")),
    ]
    found = [
        (s, n, v) for s in scopes for n, v in list(s.items()) for name in _ORIGINAL if v is _ORIGINAL[name]
    ]
    with contextlib.ExitStack() as undo:
        for scope, name, original in found:
            undo.callback(scope.__setitem__, name, original)
            scope[name] = stand_ins[original.__name__]
        for kind, forward in _FORWARD.items():
            undo.callback(setattr, kind, "forward", forward)
            kind.forward = _forward  # type: ignore[method-assign]
        yield
