"""A Llama that reads token by token through lists of slots: slow, plain, independent of caches."""

from typing import Any

import torch
from torch import Tensor

Slot = tuple[Tensor, Tensor]  # key before rotation and value, [H_kv, E] each


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotate each pair (i, i + E/2) of the last dimension as a complex number."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-torch.arange(half, dtype=x.dtype) / half)
    pair = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pair.real, pair.imag], dim=-1)


class Layer:
    """The slots of one layer: [pinned | compressed | memory | segment]."""

    def __init__(self, model: Any, index: int) -> None:
        self.model, self.index, self.config = model, index, model.config
        self.pinned: list[Slot] = []
        self.compressed: list[Slot] = []
        self.memory: list[tuple[int, Slot]] = []
        self.segment: list[tuple[int, Slot]] = []

    def read(self, x: Tensor, token: int) -> Tensor:
        """One token through the layer: [D] → [D]."""
        config, block = self.config, self.model.layers[self.index]
        attention, heads = block.attention, (-1, config.head_dim)
        normed = rms(x, block.attention_norm.weight, config.norm_eps)
        query, key, value = (
            each(normed).view(heads) for each in (attention.query, attention.key, attention.value)
        )
        if config.qk_norm:
            query = rms(query, attention.query_norm.weight, config.norm_eps)
            key = rms(key, attention.key_norm.weight, config.norm_eps)
        self.segment.append((token, (key, value)))
        slots = [*self.pinned, *self.compressed]
        slots += [slot for _, slot in (*self.memory, *self.segment)]
        outputs = []
        for head in range(config.n_heads):
            own = head // (config.n_heads // config.n_kv_heads)
            asked = turned(query[head], len(slots) - 1, config.rope_theta)
            scores = torch.stack(
                [
                    asked @ turned(key[own], place, config.rope_theta)
                    for place, (key, _) in enumerate(slots)
                ]
            )
            weights = (scores / config.head_dim**0.5).softmax(0)
            outputs.append(weights @ torch.stack([value[own] for _, value in slots]))
        x = x + attention.output(torch.cat(outputs))
        normed = rms(x, block.feed_forward_norm.weight, config.norm_eps)
        feed = block.feed_forward
        gated = torch.nn.functional.silu(feed.gate(normed)) * feed.up(normed)
        return x + feed.down(gated)

    def commit(self) -> None:
        """Close the segment, evict what memory does not hold, keep some of it."""
        config = self.config
        self.memory += self.segment
        self.segment = []
        n = max(0, len(self.memory) - config.memory_len)
        evicted, self.memory = self.memory[:n], self.memory[n:]
        self.pinned += [slot for token, slot in evicted if token < config.pinned_len]
        if config.compressed_len and evicted:
            self.compressed = [*self.compressed, *self.kept(evicted)][-config.compressed_len :]

    def kept(self, evicted: list[tuple[int, Slot]]) -> list[Slot]:
        config, n = self.config, len(evicted) // self.config.compression_rate
        slots = [slot for _, slot in evicted]
        if config.compression == "mean":
            groups = [
                slots[i * config.compression_rate :][: config.compression_rate] for i in range(n)
            ]
            means = [
                [torch.stack(half).mean(0) for half in zip(*group, strict=True)] for group in groups
            ]
            return [(key, value) for key, value in means]
        assert config.compression == "select"
        gate = self.model.compressors[self.index].gate  # [H_kv, 2E, 2]
        new: list[list[Slot]] = [[] for _ in range(n)]
        for head in range(config.n_kv_heads):
            values = []
            for token, (key, value) in evicted:
                both = torch.cat([key[head], value[head]])
                normed = both / (both.square().mean() + torch.finfo(both.dtype).eps).sqrt()
                values.append(
                    -1e9 if token < config.pinned_len else float((normed @ gate[head]).sum())
                )
            best = sorted(sorted(range(len(slots)), key=lambda i: -values[i])[:n])
            for place, i in enumerate(best):
                new[place].append((slots[i][0][head], slots[i][1][head]))
        return [
            (torch.stack([k for k, _ in heads]), torch.stack([v for _, v in heads]))
            for heads in new
        ]


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    """Next-token logits of a stream of one row: [n] → [n, V]."""
    config = model.config
    layers = [Layer(model, index) for index in range(config.n_layers)]
    outputs = []
    for place, token in enumerate(tokens.tolist()):
        x = model.embedding.weight[token]
        for layer in layers:
            x = layer.read(x, place)
        hidden = rms(x, model.final_norm.weight, config.norm_eps)
        weight = model.embedding.weight if config.tied else model.output.weight
        outputs.append(weight @ hidden)
        if (place + 1) % config.segment_len == 0:
            for layer in layers:
                layer.commit()
    return torch.stack(outputs)
