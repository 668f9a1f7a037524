"""The 8-bit grid of slots: integers of 8 bits with one exponent for each key or value head.

Rounded values are exact in bfloat16, so a state on the grid is packed into bytes, and unpacked,
without loss. An exponent that all numbers of a head share is a power of two: the scale is rounded
up to one, which costs up to one of the 8 bits.
"""

import numpy as np
import torch
from torch import Tensor

BITS = 7  # besides the sign


def snap(slots: Tensor, head_dim: int) -> Tensor:
    """Round slots to the grid: [..., W], in the same precision.

    Args:
        slots: W is a multiple of `head_dim`.
    """
    heads = slots.float().unflatten(-1, (-1, head_dim))
    exponent = _exponent(heads)
    whole = torch.ldexp(heads, -exponent).round().clamp(-127, 127) + 0.0  # no -0: it has no byte
    return torch.ldexp(whole, exponent).flatten(-2).to(slots.dtype)


def _exponent(heads: Tensor) -> Tensor:
    """Of each head, the smallest power of two that brings its numbers below 128: [..., 1]."""
    return torch.frexp(heads.abs().amax(dim=-1, keepdim=True)).exponent - BITS


def pack(slots: Tensor, head_dim: int) -> np.ndarray:
    """Slots on the grid as bytes: [..., W] → [..., W + W / head_dim] int8, exponents last."""
    heads = slots.float().cpu().unflatten(-1, (-1, head_dim))
    exponent = _exponent(heads).clamp(-128, 127)
    whole = torch.ldexp(heads, -exponent).round().to(torch.int8)
    packed = torch.cat([whole.flatten(-2), exponent.squeeze(-1).to(torch.int8)], dim=-1)
    return packed.numpy()


def unpack(packed: np.ndarray, head_dim: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack`, in the given precision."""
    n_heads = packed.shape[-1] // (head_dim + 1)
    whole = torch.from_numpy(packed[..., : n_heads * head_dim].astype(np.float32))
    exponent = torch.from_numpy(packed[..., n_heads * head_dim :].astype(np.float32))
    heads = whole.unflatten(-1, (n_heads, head_dim))
    scale = torch.pow(2.0, exponent[..., None])  # exact; ldexp computes one for every number
    return (heads * scale).flatten(-2).to(dtype)
