"""Compression losses: attention reconstruction (isolated and joint), auto-encoding.

The losses (Compressive Transformer, §3.2 and Algorithm 2) train only the compressor. All other
tensors are detached, so that the language model does not learn representations that are merely easy
to compress. Means are over layers, rows and occupied slots.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import JOINT, ModelConfig
from streamlm.memory.compression import Select
from streamlm.memory.eviction import Eviction
from streamlm.models.layers.attention import attention_mask
from streamlm.models.layers.block import Layer


class Compressing(Protocol):
    """What the losses need of a model with compressed memory."""

    config: ModelConfig
    layers: nn.ModuleList
    compressors: nn.ModuleList
    decoders: nn.ModuleList
    position_table: Tensor

    def biases(self, index: int) -> tuple[Tensor, Tensor]:
        """Attention biases u and w of a layer, each [H, E]."""


def compression_loss(model: Compressing, eviction: Eviction) -> Tensor:
    """The configured compression loss of one commit, a scalar; 0 for "none" and "bptt"."""
    kind = model.config.compression_loss
    if kind in ("none", "bptt"):
        return eviction.compressed.new_zeros(())
    if kind == "auto-encoding":
        return auto_encoding(model, eviction)
    if kind == JOINT:
        return joint_attention_reconstruction(model, eviction)
    return attention_reconstruction(model, eviction)


def compression_weight(model: Compressing, eviction: Eviction) -> Tensor:
    """Number of rows (slots for auto-encoding) in the mean of `compression_loss`, a scalar.

    The loss of several commits is the mean of their losses, weighted by these numbers.
    """
    if model.config.compression_loss == "auto-encoding":
        return eviction.real.sum()
    return eviction.real.any(dim=1).sum()


def attention_reconstruction(model: Compressing, eviction: Eviction) -> Tensor:
    """Mean squared difference of attention to the evicted and to the compressed slots.

    Content attention as in Algorithm 2: before W_o, without u, w, positions or causal mask.
    """
    rows = eviction.real.any(dim=1)  # [B]
    # Rows without evicted slots have weight 0; unmasked empty slots keep their softmax finite.
    evicted_mask = (eviction.real | ~rows[:, None])[:, None, None]  # [B, 1, 1, T]
    compressed_mask = (eviction.real_compressed | ~rows[:, None])[:, None, None]

    def changes(index: int, layer: Layer, compressed: Tensor) -> Tensor:
        query = _detached(layer, eviction.queries[index], "query")
        with torch.no_grad():
            target = _content(layer, query, eviction.evicted[index], evicted_mask)
        actual = _content(layer, query, compressed, compressed_mask)
        return (actual - target).square().mean(dim=(1, 2, 3))  # [B, H, T, E] → [B]

    total = eviction.compressed.new_zeros(())
    for index, layer in enumerate(model.layers):
        per_row = layer(changes, index, layer, eviction.compressed[index])
        total = total + (per_row * rows).sum()
    return total / (len(model.layers) * rows.sum().clamp(min=1))


def auto_encoding(model: Compressing, eviction: Eviction) -> Tensor:
    """Mean squared error of evicted slots reconstructed from compressed ones."""
    real = eviction.real[..., None]  # [B, T, 1]
    total = eviction.compressed.new_zeros(())
    width = eviction.evicted.shape[-1]
    for index, decoder in enumerate(model.decoders):
        rebuilt = decoder(eviction.compressed[index]).unflatten(2, (-1, width)).flatten(1, 2)
        total = total + ((rebuilt - eviction.evicted[index]) ** 2 * real).sum()
    return total / (len(model.decoders) * real.sum().clamp(min=1) * width)


def joint_attention_reconstruction(model: Compressing, eviction: Eviction) -> Tensor:
    """Mean squared change of the segment's attention output caused by compression; original.

    Compares the segment's full attention, with positions, to the same attention with the evicted
    slots replaced by compressed ones. One softmax covers all slots, so the attention mass of old
    slots is part of the target. `select` replaces each group by its gated average. A compressed
    slot has the mean distance of its group.
    """
    config = model.config
    first, n_new = config.compressed_len, config.evicted_len
    old = slice(first, first + config.segment_len)  # evicted columns
    mask = attention_mask(eviction.filled, config.past_len, 0, config.segment_len)
    rows = eviction.real.any(dim=1)  # [B]
    new_mask = eviction.real_compressed[:, None, None].expand(-1, 1, config.segment_len, -1)

    def changes(index: int, layer: Layer, compressed: Tensor) -> Tensor:
        attention, compressor = layer.attention, model.compressors[index]
        u, w = model.biases(index)
        with torch.no_grad():
            context = layer.read(torch.cat([eviction.past[index], eviction.queries[index]], dim=1))
            query = attention.queries(context[:, -config.segment_len :])
            key, value = attention.project(context)
            positions = attention.project_positions(model.position_table)
            scores = attention.position_scores(query, w, positions)
            bias = scores.masked_fill(~mask, -torch.inf)
            content = query + u[:, None] * config.head_dim**-0.5
            target = F.scaled_dot_product_attention(content, key, value, attn_mask=bias, scale=1.0)
            new_bias = scores[..., old].unflatten(3, (n_new, -1)).mean(dim=4)  # [B, H, T, T/c]
        if isinstance(compressor, Select):
            slots = eviction.evicted[index]
            new_key, new_value = (compressor.pool(slots, part[:, :, old]) for part in (key, value))
            new_bias = new_bias + compressor.mass[:, None, None]
        else:
            new_key, new_value = _heads(layer, compressed)
        new_bias = new_bias.masked_fill(~new_mask, -torch.inf)
        actual = F.scaled_dot_product_attention(
            content,
            _replaced(key, old, new_key, dim=2),
            _replaced(value, old, new_value, dim=2),
            attn_mask=_replaced(bias, old, new_bias, dim=3),
            scale=1.0,
        )
        return (actual - target).square().mean(dim=(1, 2, 3))  # [B, H, T, E] → [B]

    total = eviction.compressed.new_zeros(())
    for index, layer in enumerate(model.layers):
        per_row = layer(changes, index, layer, eviction.compressed[index])
        total = total + (per_row * rows).sum()
    return total / (len(model.layers) * rows.sum().clamp(min=1))


def _replaced(tensor: Tensor, old: slice, new: Tensor, *, dim: int) -> Tensor:
    """Replace the columns `old` of dimension `dim` by `new`."""
    before, after = tensor.narrow(dim, 0, old.start), tensor.shape[dim] - old.stop
    return torch.cat([before, new, tensor.narrow(dim, old.stop, after)], dim=dim)


def _heads(layer: Layer, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of slots with detached weights: two [B, H, n, E]."""
    heads = (layer.attention.n_heads, layer.attention.head_dim)
    both = _detached(layer, slots, "key_value").unflatten(2, (2, *heads))
    key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
    return key, value


def _detached(layer: Layer, slots: Tensor, projection: str) -> Tensor:
    """A projection of slots with detached weights: [B, n, W] → [B, n, out]."""
    if layer.pre_norm:
        norm = layer.attention_norm
        slots = F.layer_norm(
            slots, norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps
        )
    return F.linear(slots, getattr(layer.attention, projection).weight.detach())


def _content(layer: Layer, query: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / √E) v over slots, without positions: [B, H, T, E]."""
    key, value = _heads(layer, slots)
    heads = (layer.attention.n_heads, layer.attention.head_dim)
    query = query.unflatten(2, heads).transpose(1, 2)
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
