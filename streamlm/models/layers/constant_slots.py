"""Keys and values of slots of which only the last get gradients.

Past slots are constants in training, but the projection learns through them. An ordinary product
over all slots computes gradients for each of them, nearly all of which are thrown away.

On a CPU, keys and values are computed as columns, W_kv [past | new]ᵀ. Scores, weighted sums and
their gradients are faster with them, and none of these copies its operands.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from streamlm.models.layers.products import times_transposed


def project_slots(
    past: Tensor,
    new: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    n_heads: int,
    columns: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Keys and values of [past | new] in one product: two [B, H, n + t, E].

    Args:
        past: [B, n, W], may be constant; new: [B, t, W].
        weight: [2·H·E, W], rows of keys, then of values; bias: [2·H·E] or None.
        columns: the order in memory; by default as the device likes it.
    """
    columns = new.device.type == "cpu" if columns is None else columns
    key, value = _ProjectSlots.apply(past, new, weight, bias, n_heads, columns)
    return key, value


class _ProjectSlots(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        past: Tensor,
        new: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        n_heads: int,
        columns: bool,
    ) -> tuple[Tensor, Tensor]:
        slots = torch.cat([past, new], dim=1)
        ctx.save_for_backward(slots, weight)
        ctx.n_past = past.shape[1]
        if columns:
            both = times_transposed(weight, slots.flatten(0, 1))
            if bias is not None:
                both += bias[:, None]
            both = both.view(2, n_heads, -1, *slots.shape[:2])
            key, value = both.permute(0, 3, 1, 4, 2).unbind(0)  # [2, H, E, B, n] → [2, B, H, n, E]
        else:  # fused kernels want the numbers of a head side by side
            both = F.linear(slots, weight, bias).unflatten(2, (2, n_heads, -1))
            key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # [B, n, 2, H, E] → [2, B, H, n, E]
        return key, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slots, weight = ctx.saved_tensors
        dtype, n = grads[0].dtype, ctx.n_past  # under autocast, products are in bfloat16
        rows = slots.to(dtype).flatten(0, 1)
        halves = [each.permute(1, 3, 0, 2).flatten(0, 1) for each in grads]  # [H·E, B, n + t]

        def of_slots(some: slice) -> Tensor:
            total = sum(
                half[:, :, some].flatten(1).mT @ each
                for half, each in zip(halves, weight.to(dtype).chunk(2), strict=True)
            )
            assert isinstance(total, Tensor)
            return total.view(len(slots), -1, slots.shape[2]).to(slots.dtype)

        of_weight = torch.cat([times_transposed(half.flatten(1), rows.mT) for half in halves])
        of_bias = None
        if ctx.needs_input_grad[3]:
            of_bias = torch.cat([half.sum(dim=(1, 2)) for half in halves]).to(weight.dtype)
        return (
            of_slots(slice(0, n)) if ctx.needs_input_grad[0] else None,
            of_slots(slice(n, None)) if ctx.needs_input_grad[1] else None,
            of_weight.to(weight.dtype),
            of_bias,
            None,
            None,
        )
