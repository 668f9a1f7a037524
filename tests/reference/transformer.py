"""Algorithm 1 of the Compressive Transformer on Python lists of slots, for one stream.

`Reference` takes the weights of a model by their names and shares nothing else with it. It reads
whole segments (the last may be shorter). Slots are vectors; `compressed[l]` and `memory[l]` are
plain lists of them, oldest first, and there are no empty slots.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference import compression
from tests.reference.attention import relative_attention


@dataclass
class Slot:
    """A layer input, and the attention that its queries gave it since it is in memory."""

    vector: Tensor
    received: list[float]


@dataclass
class Evicted:
    """What one layer compressed at one commit."""

    queries: list[Tensor]
    slots: list[Tensor]
    compressed: list[Tensor]


class Reference:
    """One stream of the model that `weights` (its named parameters) belong to."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        n_layers: int,
        segment_len: int,
        memory_len: int,
        compressed_len: int,
        rate: int,
        kind: str,
        norm: str,
        bptt: bool = False,
    ) -> None:
        self.weights, self.n_layers = weights, n_layers
        self.segment_len, self.memory_len, self.compressed_len = (
            segment_len,
            memory_len,
            compressed_len,
        )
        self.rate, self.kind, self.norm, self.bptt = rate, kind, norm, bptt
        self.memory: list[list[Slot]] = [[] for _ in range(n_layers)]
        self.compressed: list[list[Tensor]] = [[] for _ in range(n_layers)]

    def read(self, tokens: Sequence[int]) -> tuple[list[Tensor], list[Evicted]]:
        """The logits after each token, and what each layer evicted (nothing: empty lists)."""
        assert 1 <= len(tokens) <= self.segment_len
        table = self.weights["embedding.weight"]
        width = table.shape[1]
        hidden = [table[token] * math.sqrt(width) for token in tokens]
        inputs = []
        for index in range(self.n_layers):
            inputs.append([h.detach() for h in hidden])
            hidden = self._layer(index, hidden)
        if "final_norm.weight" in self.weights:
            hidden = [self._norm("final_norm", h) for h in hidden]
        logits = [table @ h + self.weights["output_bias"] for h in hidden]
        if len(tokens) < self.segment_len:
            return logits, []
        return logits, [self._commit(index, inputs[index]) for index in range(self.n_layers)]

    def _layer(self, index: int, hidden: list[Tensor]) -> list[Tensor]:
        name = f"layers.{index}"
        context = self.compressed[index] + [slot.vector for slot in self.memory[index]] + hidden
        if self.norm == "pre":
            context = [self._norm(f"{name}.attention_norm", slot) for slot in context]
        shared = len(self.weights["content_bias"]) == 1
        attended, attention = relative_attention(
            context[-len(hidden) :],
            context,
            w_q=self.weights[f"{name}.attention.query.weight"],
            w_kv=self.weights[f"{name}.attention.key_value.weight"],
            w_r=self.weights[f"{name}.attention.position.weight"],
            w_o=self.weights[f"{name}.attention.output.weight"],
            u=self.weights["content_bias"][0 if shared else index],
            w=self.weights["position_bias"][0 if shared else index],
        )
        for heads in attention:
            for j, slot in enumerate(self.memory[index]):
                column = len(self.compressed[index]) + j
                slot.received.append(sum(head[column] for head in heads) / len(heads))
        out = []
        for h, a in zip(hidden, attended, strict=True):
            if self.norm == "pre":
                x = h + a
                out.append(x + self._feed_forward(name, self._norm(f"{name}.feed_forward_norm", x)))
            else:
                x = self._norm(f"{name}.attention_norm", h + a)
                out.append(self._norm(f"{name}.feed_forward_norm", x + self._feed_forward(name, x)))
        return out

    def _commit(self, index: int, inputs: list[Tensor]) -> Evicted:
        slots = self.memory[index] + [Slot(vector, []) for vector in inputs]
        n = max(0, len(slots) - self.memory_len)
        if self.compressed_len:
            n -= n % self.rate
        evicted, self.memory[index] = slots[:n], slots[n:]
        old = [slot.vector for slot in evicted]
        if not self.compressed_len:
            return Evicted(inputs, [], [])
        usage = [sum(s.received) / max(1, len(s.received)) for s in evicted]
        new = self._compress(index, old, usage)
        kept = self.compressed[index] + (new if self.bptt else [slot.detach() for slot in new])
        self.compressed[index] = kept[max(0, len(kept) - self.compressed_len) :]
        return Evicted(inputs, old, new)

    def _compress(self, index: int, slots: list[Tensor], usage: list[float]) -> list[Tensor]:
        name = f"compressors.{index}"
        match self.kind:
            case "max":
                return compression.max_pool(slots, self.rate)
            case "mean":
                return compression.mean_pool(slots, self.rate)
            case "conv":
                return compression.conv(slots, self.rate, kernel=self._kernel(f"{name}.weight"))
            case "dilated":
                layers = [
                    (
                        dilation,
                        self.weights[f"{name}.dilated.{i}.weight"],
                        self.weights[f"{name}.dilated.{i}.bias"],
                    )
                    for i, dilation in enumerate((1, 2, 4))
                ]
                kernel = self._kernel(f"{name}.strided.weight")
                return compression.dilated(slots, self.rate, layers=layers, kernel=kernel)
            case "most-used":
                return compression.most_used(slots, self.rate, usage=usage)
            case "select":
                return compression.select(slots, self.rate, gate=self.weights[f"{name}.gate"])
        raise AssertionError(self.kind)

    def _kernel(self, name: str) -> Tensor:
        """The matrix [W, c·W] of a strided convolution as its kernel [W, W, c]."""
        weight = self.weights[name]
        width = len(weight)
        return torch.stack(
            [weight[:, k * width : (k + 1) * width] for k in range(self.rate)], dim=2
        )

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.sum() / len(x)
        variance = ((x - mean) ** 2).sum() / len(x)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        part = f"{name}.feed_forward"
        inner = self.weights[f"{part}.0.weight"] @ x + self.weights[f"{part}.0.bias"]
        return (
            self.weights[f"{part}.3.weight"] @ inner.clamp(min=0) + self.weights[f"{part}.3.bias"]
        )
