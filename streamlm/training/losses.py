"""The loss of the language model; large logits exist a chunk at a time."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from streamlm.models.base import Model
from streamlm.training.data import IGNORED

CHUNK_BYTES = 1 << 26  # of logits that exist at once


def language_model_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats, at least in float32; targets of -100 are not scored.

    Args:
        logits: [..., V]; targets: [...] ids.
    """
    flat = logits.flatten(0, -2).to(_wide(logits.dtype))
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def target_loss(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """`language_model_loss` of the output layer; with cutoffs, only for the bins of the targets.

    Logits of more than CHUNK_BYTES exist a chunk at a time, except in compiled code.

    Args:
        hidden: [..., D] from `Model.hidden`.
        targets: [...] ids; with cutoffs preferably on the host, see `Model.log_prob`.
    """
    if model.config.cutoffs:
        return -model.log_prob(hidden, targets).sum()
    rows = CHUNK_BYTES // (model.config.vocab_size * _wide(hidden.dtype).itemsize)
    few = targets.numel() <= rows
    if few or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return language_model_loss(model.logits(hidden), targets)
    return chunked_loss(model, hidden, targets, rows=max(rows, 1))


def chunked_loss(model: Model, hidden: Tensor, targets: Tensor, *, rows: int) -> Tensor:
    """`target_loss` without cutoffs, with logits of so many rows at a time; differentiable once."""
    weight, bias = model.output_weights()
    given = hidden.flatten(0, -2), weight, bias, targets.flatten()
    loss: Tensor = _ChunkedLoss.apply(*given, rows, _product_dtype(weight))
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """The loss, and its gradients as long as the logits of a chunk exist: they are only scaled."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """See `chunked_loss`.

        Args:
            hidden: [N, D]; weight: [V, D]; bias: [V] or None; targets: [N].
            rows: of a chunk.
            dtype: of products. Softmax and sums over chunks are at least in float32.
        """
        wide, wanted = _wide(dtype), ctx.needs_input_grad[:3]
        loss = hidden.new_zeros((), dtype=wide)
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
        # Casts by hand: autocast would keep those that are made here, where they have no gradient,
        # for later uses of the weight.
        with torch.autocast(hidden.device.type, enabled=False):
            low, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                slots, own = hidden[part].to(dtype), targets[part]
                scored = own != IGNORED
                at = own.masked_fill(~scored, 0)[:, None]
                scores = F.linear(slots, low, low_bias).log_softmax(dim=-1, dtype=wide)  # [n, V]
                loss -= scores.gather(1, at)[:, 0].masked_fill(~scored, 0).sum()
                if not any(wanted):
                    continue
                # The gradient of the logits, softmax less one at the target, but for rows that are
                # not scored: they are left out of the products.
                scores.exp_().scatter_(1, at, scores.gather(1, at) - 1)
                gradient, counts = scores.to(dtype), scored[:, None].to(dtype)
                if of_hidden is not None:
                    of_hidden[part] = gradient @ low * counts
                if of_weight is not None:
                    of_weight += gradient.mT @ (slots * counts)
                if of_bias is not None:
                    of_bias += scored.to(wide) @ scores
        ctx.save_for_backward(
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if each is None else each * grad for each in ctx.saved_tensors)
        return *scaled, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which the weight is multiplied: that of autocast within its context."""
    device = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
