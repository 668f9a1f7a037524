"""Keys and values of slots of which only the last get gradients.

Past slots are constants in training, but the projection learns through them. One product over all
slots would compute gradients for each of them, most of which nobody wants: in the backward pass, a
third of the products with a long memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def project_slots(
    past: Tensor, new: Tensor, weight: Tensor, bias: Tensor | None, *, n_heads: int
) -> tuple[Tensor, Tensor]:
    """Keys and values of [past | new] in one product: two [B, H, n + t, E].

    Args:
        past: [B, n, W], may be constant; new: [B, t, W].
        weight: [2·H·E, W], rows of keys, then of values; bias: [2·H·E] or None.
    """
    key, value = _ProjectSlots.apply(past, new, weight, bias, n_heads)
    return key, value


class _ProjectSlots(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, past: Tensor, new: Tensor, weight: Tensor, bias: Tensor | None, n_heads: int
    ) -> tuple[Tensor, Tensor]:
        slots = torch.cat([past, new], dim=1)
        ctx.save_for_backward(slots, weight)
        ctx.n_past = past.shape[1]
        both = F.linear(slots, weight, bias).unflatten(2, (2, n_heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # [B, n, 2, H, E] → two [B, H, n, E]
        return key, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_key: Tensor, of_value: Tensor) -> tuple[Tensor | None, ...]:
        slots, weight = ctx.saved_tensors
        dtype, n = of_key.dtype, ctx.n_past  # under autocast, products are in bfloat16
        rows, narrow = slots.to(dtype).flatten(0, 1), weight.to(dtype)
        halves = [half.transpose(1, 2).flatten(2) for half in (of_key, of_value)]  # [B, n+t, H·E]
        of_weight = torch.cat([half.flatten(0, 1).mT @ rows for half in halves]).to(weight.dtype)
        of_bias = torch.cat([half.sum(dim=(0, 1)) for half in halves]).to(weight.dtype)
        key_weight, value_weight = narrow.chunk(2)

        def of_slots(some: slice) -> Tensor:
            of_key, of_value = (half[:, some] for half in halves)
            return (of_key @ key_weight + of_value @ value_weight).to(slots.dtype)

        return (
            of_slots(slice(0, n)) if ctx.needs_input_grad[0] else None,
            of_slots(slice(n, None)) if ctx.needs_input_grad[1] else None,
            of_weight,
            of_bias if ctx.needs_input_grad[3] else None,
            None,
        )
