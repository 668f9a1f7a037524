"""The losses: language model, attention reconstruction, auto-encoding.

The compression losses (Compressive Transformer, §3.2 and Algorithm 2) train the compressor alone:
all that is not the compressor enters them detached, so that the language model's representations
are not bent to be easy to compress. Averages run over layers, rows and slots that are real.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.model import Eviction, Layer, Model


def language_model_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats; targets of -100 are not scored.

    Args:
        logits: [..., V]; targets: [...] ids.
    """
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=-100, reduction="sum")


def target_loss(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """`language_model_loss` of the output layer; with cutoffs, only of what the targets need.

    Args:
        hidden: [..., D] from `Model.hidden`; targets: [...] ids.
    """
    if model.config.cutoffs:
        return -model.log_prob(hidden, targets).sum()
    return language_model_loss(model.logits(hidden), targets)


def compression_loss(model: Model, eviction: Eviction) -> Tensor:
    """The configured compression loss of one commit, a scalar; 0 where nothing is to be trained."""
    kind = model.config.compression_loss
    if kind in ("none", "bptt"):
        return eviction.compressed.new_zeros(())
    if kind == "auto-encoding":
        return auto_encoding(model, eviction)
    return attention_reconstruction(model, eviction)


def attention_reconstruction(model: Model, eviction: Eviction) -> Tensor:
    """Mean squared difference between attending to the evicted slots and to the compressed ones.

    Content attention only, as in Algorithm 2: no u, w, positions or causal mask, and before W_o.
    """
    rows = eviction.real.any(dim=1)  # [B]
    # Rows with nothing evicted get weight 0; they attend to empty slots only to stay finite.
    evicted_mask = (eviction.real | ~rows[:, None])[:, None, None]  # [B, 1, 1, T]
    compressed_mask = (eviction.real_compressed | ~rows[:, None])[:, None, None]
    total = eviction.compressed.new_zeros(())
    for index, module in enumerate(model.layers):
        layer = cast(Layer, module)
        query = _detached(layer, eviction.queries[index], "query")
        with torch.no_grad():
            wanted = _content(layer, query, eviction.evicted[index], evicted_mask)
        got = _content(layer, query, eviction.compressed[index], compressed_mask)
        per_row = (got - wanted).square().mean(dim=(1, 2, 3))  # [B, H, T, E] → [B]
        total = total + (per_row * rows).sum()
    return total / (len(model.layers) * rows.sum().clamp(min=1))


def auto_encoding(model: Model, eviction: Eviction) -> Tensor:
    """Mean squared error of the evicted slots rebuilt from the compressed ones."""
    real = eviction.real[..., None]  # [B, T, 1]
    total = eviction.compressed.new_zeros(())
    width = eviction.evicted.shape[-1]
    for index, decoder in enumerate(model.decoders):
        rebuilt = decoder(eviction.compressed[index]).unflatten(2, (-1, width)).flatten(1, 2)
        total = total + ((rebuilt - eviction.evicted[index]) ** 2 * real).sum()
    return total / (len(model.decoders) * real.sum().clamp(min=1) * width)


def _detached(layer: Layer, slots: Tensor, projection: str) -> Tensor:
    """A projection of slots whose gradient reaches the slots alone: [B, n, W] → [B, n, out]."""
    if layer.pre_norm:
        norm = layer.attention_norm
        slots = F.layer_norm(
            slots, norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps
        )
    return F.linear(slots, getattr(layer.attention, projection).weight.detach())


def _content(layer: Layer, query: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / √E) v over slots, no positions: [B, H, T, E]."""
    heads = (layer.attention.n_heads, layer.attention.head_dim)
    both = _detached(layer, slots, "key_value").unflatten(2, (2, *heads))
    key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
    query = query.unflatten(2, heads).transpose(1, 2)
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
