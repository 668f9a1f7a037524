"""Compression losses: attention reconstruction (isolated and joint), auto-encoding.

They (Compressive Transformer, §3.2 and Algorithm 2) train the compressor alone: all that is not the
compressor enters them detached, so that the language model's representations are not bent to be
easy to compress. Averages run over layers, rows and slots that are real.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import JOINT, ModelConfig
from streamlm.memory.compression import Select
from streamlm.memory.eviction import Eviction
from streamlm.models.layers.attention import attention_mask
from streamlm.models.layers.block import Layer


class Compressing(Protocol):
    """A model that compresses slots, as far as these losses are concerned."""

    config: ModelConfig
    layers: nn.ModuleList
    compressors: nn.ModuleList
    decoders: nn.ModuleList
    position_table: Tensor

    def biases(self, index: int) -> tuple[Tensor, Tensor]:
        """u and w of a layer, each [H, E]."""


def compression_loss(model: Compressing, eviction: Eviction) -> Tensor:
    """The configured compression loss of one commit, a scalar; 0 if there is none."""
    kind = model.config.compression_loss
    if kind in ("none", "bptt"):
        return eviction.compressed.new_zeros(())
    if kind == "auto-encoding":
        return auto_encoding(model, eviction)
    if kind == JOINT:
        return joint_attention_reconstruction(model, eviction)
    return attention_reconstruction(model, eviction)


def compression_weight(model: Compressing, eviction: Eviction) -> Tensor:
    """The rows, or slots for auto-encoding, that `compression_loss` averages: a scalar.

    The loss of several commits is the mean of their losses with these weights.
    """
    if model.config.compression_loss == "auto-encoding":
        return eviction.real.sum()
    return eviction.real.any(dim=1).sum()


def attention_reconstruction(model: Compressing, eviction: Eviction) -> Tensor:
    """Mean squared difference between attention to the evicted and to the compressed slots.

    Content attention only, as in Algorithm 2: before W_o, without u, w, positions or causal mask.
    """
    rows = eviction.real.any(dim=1)  # [B]
    # Rows without evicted slots have weight 0; they attend to empty slots only to stay finite.
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


def auto_encoding(model: Compressing, eviction: Eviction) -> Tensor:
    """Mean squared error of the evicted slots, decoded from the compressed ones."""
    real = eviction.real[..., None]  # [B, T, 1]
    total = eviction.compressed.new_zeros(())
    width = eviction.evicted.shape[-1]
    for index, decoder in enumerate(model.decoders):
        rebuilt = decoder(eviction.compressed[index]).unflatten(2, (-1, width)).flatten(1, 2)
        total = total + ((rebuilt - eviction.evicted[index]) ** 2 * real).sum()
    return total / (len(model.decoders) * real.sum().clamp(min=1) * width)


def joint_attention_reconstruction(model: Compressing, eviction: Eviction) -> Tensor:
    """Mean squared change of the segment's attention output due to compression; our own.

    Compares the segment's full attention, with positions, with the same attention after the evicted
    slots are replaced by the compressed ones. One softmax covers all slots, so that the attention
    mass of old slots is part of the target. `select` replaces each group by its gated average. A
    compressed slot has the mean distance of its group.
    """
    config = model.config
    first, n_new = config.compressed_len, config.evicted_len
    old = slice(first, first + config.segment_len)  # the columns that were evicted
    mask = attention_mask(eviction.filled, config.past_len, 0, config.segment_len)
    rows = eviction.real.any(dim=1)  # [B]
    new_mask = eviction.real_compressed[:, None, None].expand(-1, 1, config.segment_len, -1)
    total = eviction.compressed.new_zeros(())
    for index, (module, compressor) in enumerate(zip(model.layers, model.compressors, strict=True)):
        layer = cast(Layer, module)
        attention = layer.attention
        u, w = model.biases(index)
        with torch.no_grad():
            context = layer.read(torch.cat([eviction.past[index], eviction.queries[index]], dim=1))
            query = attention.queries(context[:, -config.segment_len :])
            key, value = attention.project(context)
            positions = attention.project_positions(model.position_table)
            scores = attention.position_scores(query, w, positions)
            bias = scores.masked_fill(~mask, -torch.inf)
            content = query + u[:, None] * config.head_dim**-0.5
            wanted = F.scaled_dot_product_attention(content, key, value, attn_mask=bias, scale=1.0)
            new_bias = scores[..., old].unflatten(3, (n_new, -1)).mean(dim=4)  # [B, H, T, T/c]
        if isinstance(compressor, Select):
            slots = eviction.evicted[index]
            new_key, new_value = (compressor.pool(slots, part[:, :, old]) for part in (key, value))
            new_bias = new_bias + compressor.mass[:, None, None]
        else:
            new_key, new_value = _heads(layer, eviction.compressed[index])
        new_bias = new_bias.masked_fill(~new_mask, -torch.inf)
        got = F.scaled_dot_product_attention(
            content,
            _instead(key, old, new_key, dim=2),
            _instead(value, old, new_value, dim=2),
            attn_mask=_instead(bias, old, new_bias, dim=3),
            scale=1.0,
        )
        per_row = (got - wanted).square().mean(dim=(1, 2, 3))  # [B, H, T, E] → [B]
        total = total + (per_row * rows).sum()
    return total / (len(model.layers) * rows.sum().clamp(min=1))


def _instead(tensor: Tensor, old: slice, new: Tensor, *, dim: int) -> Tensor:
    """The tensor with the columns `old` of dimension `dim` replaced by `new`."""
    before, after = tensor.narrow(dim, 0, old.start), tensor.shape[dim] - old.stop
    return torch.cat([before, new, tensor.narrow(dim, old.stop, after)], dim=dim)


def _heads(layer: Layer, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of slots, with a gradient only to the slots: two [B, H, n, E]."""
    heads = (layer.attention.n_heads, layer.attention.head_dim)
    both = _detached(layer, slots, "key_value").unflatten(2, (2, *heads))
    key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
    return key, value


def _detached(layer: Layer, slots: Tensor, projection: str) -> Tensor:
    """A projection of slots with a gradient only to the slots: [B, n, W] → [B, n, out]."""
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
