"""State-space models' recurrence over a sequence, as torch.export can follow it.

transformers writes Mamba's selective scan as a Python loop over the tokens, which torch.export unrolls: the length is
fixed then. While a model is traced, its scan is one call of the op `llmc::linear_scan`, which becomes a loop of the IR.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.library.custom_op("llmc::linear_scan", mutates_args=())
def linear_scan(factor: torch.Tensor, addend: torch.Tensor) -> torch.Tensor:
    """h[t] = factor[t] * h[t - 1] + addend[t], h[-1] = 0: every h.

    Args:
        factor, addend: f32 [batch, width, seq, state]; so is the result.
    """
    state = torch.zeros_like(addend[:, :, 0])
    states = []
    for step in range(addend.shape[2]):
        state = factor[:, :, step] * state + addend[:, :, step]
        states.append(state)
    return torch.stack(states, 2)


@linear_scan.register_fake
def _states(factor: torch.Tensor, addend: torch.Tensor) -> Any:
    return torch.empty_like(addend)


def selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """transformers' `mamba_selective_scan` (Gu and Dao, "Mamba", 2023, algorithm 2), its arguments and results.

    Args:
        hidden_states, dt, z: [batch, width, seq].
        A: [width, state].
        B, C: [batch, state, seq].
        D, delta_bias: [width].
    """
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = torch.nn.functional.softplus(dt)
    factor = torch.exp(A[None, :, None, :] * dt[:, :, :, None])
    addend = dt[:, :, :, None] * B.transpose(1, 2)[:, None].float() * hidden_states[:, :, :, None].float()
    states = linear_scan(factor, addend)
    weights = C.transpose(1, 2)[..., None]
    output = torch.matmul(states.transpose(1, 2).to(hidden_states.dtype), weights).squeeze(-1).transpose(1, 2)
    if D is not None:
        output = output + hidden_states * D[None, :, None]
    if z is not None:
        output = output * torch.nn.functional.silu(z)
    return (output, states[:, :, -1]) if return_last_state else output
