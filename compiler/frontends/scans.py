"""Recurrences of state-space models and of linear attention over a sequence, as torch.export can follow them.

transformers writes them as Python loops over tokens or over chunks of them, which torch.export unrolls: the length is
fixed then. All are one recurrence, of a matrix that decays, takes in a token and is read by it. While a model is traced
each is one call of the op `llmc::recurrence`, which becomes a loop of the IR. It begins with any matrix, so it serves a
prompt, the next token and several tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional

Tensor = torch.Tensor

# What mamba's scan begins with: transformers does not hand it over. Set by the cache's layer, which is asked before.
beginning: ContextVar[list[Tensor] | None] = ContextVar("beginning", default=None)


@contextmanager
def from_zeros() -> Iterator[None]:
    """Within, and afterwards, a scan begins with zeros until a layer of a cache says something else."""
    beginning.set(None)
    try:
        yield
    finally:
        beginning.set(None)


@torch.library.custom_op("llmc::recurrence", mutates_args=())
def recurrence(
    decay: Tensor, value: Tensor, key: Tensor, query: Tensor, first: Tensor, rate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every read y and the last matrix of h = decay * h + value key^T, y = h query, for each head and token.

    With a rate it is the delta rule (Schlag et al., "Linear transformers are secretly fast weight programmers", 2021):
    what h has already said of the key is taken off the value, and the rate says how much of the rest goes in.

    Args:
        decay: f32 [batch, seq, heads, p or 1, n or 1].
        value: f32 [batch, seq, heads, p].
        key, query: f32 [batch, seq, heads, n].
        first: f32 [batch, heads, p, n].
        rate: f32 [batch, seq, heads].

    Returns:
        f32 [batch, seq, heads, p] and [batch, heads, p, n].
    """
    state, reads = first.clone(), []
    for token in range(value.shape[1]):
        state = decay[:, token] * state
        column, row = value[:, token, :, :, None], key[:, token, :, None]
        if rate is not None:
            column = (column - (state * row).sum(-1, keepdim=True)) * rate[:, token, :, None, None]
        state = state + column * row
        reads.append((state * query[:, token, :, None]).sum(-1))
    return torch.stack(reads, 1), state


@recurrence.register_fake
def _shapes(
    decay: Tensor, value: Tensor, key: Tensor, query: Tensor, first: Tensor, rate: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(first)


def _stepped(dt: Tensor, bias: Tensor | None, positive: bool) -> Tensor:
    """The time that a token takes."""
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    return functional.softplus(dt) if positive else dt


def _begun(like: Tensor, width: int, states: int) -> Tensor:
    """What mamba's scan of one head begins with, f32 [batch, width, states]: zeros without a cache."""
    held = beginning.get()
    return held.pop(0) if held else like.new_zeros(like.shape[0], width, states)


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
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
    dt = _stepped(dt.transpose(1, 2), delta_bias, delta_softplus)
    x = hidden_states.transpose(1, 2).float()
    key, query = (t.transpose(1, 2)[:, :, None].float() for t in (B, C))
    decay = torch.exp(A * dt[..., None])[:, :, None]
    first = _begun(x, *A.shape)[:, None]
    output, last = recurrence(decay, (dt * x)[:, :, None], key, query, first, None)
    output = output[:, :, 0]
    output = output if D is None else output + x * D
    output = output.transpose(1, 2).to(hidden_states.dtype)
    output = output if z is None else output * functional.silu(z)
    return (output, last[:, 0]) if return_last_state else output


def chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> Any:
    """transformers' `mamba2_chunk_scan` (Dao and Gu, "Transformers are SSMs", 2024), its arguments and results.

    Args:
        hidden_states: [batch, seq, heads, width].
        dt: [batch, seq, heads].
        A, D, dt_bias: [heads].
        B, C: [batch, seq, groups, state], a group serves heads side by side.
    """
    heads, x = hidden_states.shape[2], hidden_states.float()
    dt = torch.clamp(_stepped(dt, dt_bias, dt_softplus), *dt_limit).float()
    key, query = (_for_heads(t.float(), heads) for t in (B, C))
    first = initial_states
    first = x.new_zeros(x.shape[0], heads, x.shape[3], B.shape[3]) if first is None else first.to(x.dtype)
    decay = torch.exp(A.float() * dt)[..., None, None]
    output, last = recurrence(decay, x * dt[..., None], key, query, first, None)
    output = output if D is None else output + D[:, None] * x
    return (output, last) if return_final_states else output


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' `torch_chunk_gated_delta_rule` and `chunk_kimi_delta_attention`, their arguments and results.

    Yang et al., "Gated delta networks", 2024; of Kimi's each feature of a key decays by itself.

    Args:
        query, key: [batch, seq, heads, n], a head serves heads of the values side by side.
        value: [batch, seq, heads, p].
        g: logarithm of the decay, [batch, seq, heads] or [batch, seq, heads, n].
        beta: [batch, seq, heads].
        initial_state: [batch, heads, n, p].
    """
    heads, kind = value.shape[2], query.dtype
    query, key = (_for_heads(_unit(t.float(), use_qk_l2norm_in_kernel), heads) for t in (query, key))
    decay = torch.exp(g.float())
    decay = decay[..., None, None] if g.dim() == 3 else decay[..., None, :]
    shape = (value.shape[0], heads, value.shape[3], key.shape[3])
    first = value.new_zeros(shape).float() if initial_state is None else initial_state.transpose(2, 3).float()
    output, last = recurrence(
        decay, value.float(), key, query * key.shape[3] ** -0.5, first.contiguous(), beta.float()
    )
    return output.to(kind), last.transpose(2, 3) if output_final_state else None


def _unit(x: Tensor, wanted: bool) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) if wanted else x


def _for_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, seq, groups, n] -> [batch, seq, heads, n]."""
    batch, seq, groups, size = x.shape
    if groups == heads:
        return x
    wide = x[:, :, :, None].expand(batch, seq, groups, heads // groups, size)
    return wide.reshape(batch, seq, heads, size)


@torch.library.custom_op("llmc::wkv", mutates_args=())
def wkv(
    decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, above: Tensor, below: Tensor, most: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RWKV's mean of all values so far, by the exponentials of their keys, that decay (Peng et al., "RWKV", 2023).

    Args:
        decay, bonus: f32 [width]; what an exponent loses with each token, and what the newest has more.
        key, value: f32 [batch, seq, width].
        above, below, most: f32 [batch, width], the mean's numerator and denominator over exp(most).

    Returns:
        The means, and above, below and most as they are then.
    """
    found = []
    for token in range(key.shape[1]):
        k, v = key[:, token], value[:, token]
        top = torch.maximum(most, k + bonus)
        old, new = torch.exp(most - top), torch.exp(k + bonus - top)
        found.append((old * above + new * v) / (old * below + new))
        top = torch.maximum(most + decay, k)
        old, new = torch.exp(most + decay - top), torch.exp(k - top)
        above, below, most = old * above + new * v, old * below + new, top
    return torch.stack(found, 1), above.clone(), below.clone(), most.clone()


@wkv.register_fake
def _wkv_shapes(
    decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, above: Tensor, below: Tensor, most: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x) for x in (value, above, below, most))  # type: ignore[return-value]


_NEVER = -1e38  # the exponent of a token that never was


def rwkv_linear_attention(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    state: Any = None,
    return_state: bool = False,
) -> tuple[Tensor, Any]:
    """transformers' function of this name, its arguments and results.

    A session begins with zeros. The denominator is 0 before the first token and at least 1 after it.
    """
    above, below, most = state or (torch.zeros_like(key[:, 0]).float(),) * 3
    most = torch.where(below == 0, _NEVER, most)
    found, *after = wkv(-torch.exp(time_decay), time_first, key.float(), value, above, below, most)
    return found.to(key.dtype), after if return_state or state is not None else None


# Functions of transformers' models by their names, and what stands there while a model is traced.
SCANS = {
    "mamba_selective_scan": selective_scan,
    "mamba2_chunk_scan": chunk_scan,
    "torch_chunk_gated_delta_rule": delta_rule,
    "chunk_kimi_delta_attention": delta_rule,
    "rwkv_linear_attention": rwkv_linear_attention,
}
