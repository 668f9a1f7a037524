"""The sketch head, one query, one head and one key at a time, for one stream.

Runs know where in the stream they began, so that distances need no counting back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference.attention import sinusoid, softmax


def runs(types: Sequence[int], longest: int) -> list[list[int]]:
    """The places of each run's tokens."""
    found: list[list[int]] = []
    for i, kind in enumerate(types):
        if found and types[i - 1] == kind and len(found[-1]) < longest:
            found[-1].append(i)
        else:
            found.append([i])
    return found


@dataclass
class Key:
    """A token, or a run of them: where it begins, its layer input, and how much was paid to it."""

    start: int
    slot: Tensor
    length: int = 1
    type: int = 0
    received: float = 0.0


@dataclass
class Reference:
    """A stream: read token ids segment by segment."""

    weights: Mapping[str, Tensor]
    config: Any
    types: Sequence[int]
    memory: list[list[Key]] = field(default_factory=list)
    far: list[list[Key]] = field(default_factory=list)
    position: int = 0

    def __post_init__(self) -> None:
        self.memory = [[] for _ in range(self.config.n_layers)]
        self.far = [[] for _ in range(self.config.n_layers)]

    def read_segment(self, tokens: Sequence[int]) -> tuple[list[Tensor], list[list[float]]]:
        """A full segment, or what there is of the last one.

        Returns:
            Logits after each token; Σ_i min(a_ti, c_ti) of each layer and token.
        """
        w, config = self.weights, self.config
        rows = [w["embedding.weight"][token] * config.d_model**0.5 for token in tokens]
        again = []
        for layer in range(config.n_layers):
            keys = [
                Key(self.position + i, row, type=self.types[token])
                for i, (row, token) in enumerate(zip(rows, tokens, strict=True))
            ]
            found = [
                self._token(layer, rows[i], self.memory[layer] + keys[: i + 1])
                for i in range(len(rows))
            ]
            rows, again = [row for row, _ in found], [*again, [each for _, each in found]]
            self.memory[layer] += keys
        self.position += len(tokens)
        if len(tokens) == config.segment_len:
            self._close()
        return [w["embedding.weight"] @ row + w["output_bias"] for row in rows], again

    def _close(self) -> None:
        config = self.config
        for layer in range(config.n_layers):
            if len(self.memory[layer]) > config.memory_len:
                leaving = self.memory[layer][: config.segment_len]
                del self.memory[layer][: config.segment_len]
                for run in runs([key.type for key in leaving], config.compression_rate):
                    keys = [leaving[i] for i in run]
                    slot = sum((key.slot for key in keys), 0 * keys[0].slot) / len(keys)
                    self.far[layer].append(Key(keys[0].start, slot, len(keys)))
                self.far[layer] = self.far[layer][-config.compressed_len :]

    def _token(self, layer: int, x: Tensor, near: list[Key]) -> tuple[Tensor, float]:
        config, far = self.config, self.far[layer]
        at = near[-1].start
        tables = self.weights["length_table"][layer]
        near_slots = [self._seen(layer, key.slot) for key in near]
        far_slots = [self._seen(layer, key.slot + tables[key.length - 1]) for key in far]
        near_places = [sinusoid(at - key.start, config.d_model) for key in near]
        far_places = [self.weights["bucket_table"][self._bucket(at - key.start)] for key in far]
        h = self._seen(layer, x)
        w_g, b_g = (self.weights[f"gates.{layer}.{name}"] for name in ("weight", "bias"))
        heads, paid = [], [0.0] * (len(far) + len(near))
        for head in range(config.n_heads):
            g = 1 / (1 + torch.exp(-(w_g[head] @ h + b_g[head]))) if far else torch.tensor(1.0)
            own, own_p = self._head(layer, head, h, near_slots, near_places)
            if far:
                old, old_p = self._head(layer, head, h, far_slots, far_places)
                own = g * own + (1 - g) * old
                old_p = [(1 - g.item()) * p for p in old_p]
            else:
                old_p = []
            heads.append(own)
            for i, p in enumerate([*old_p, *(g.item() * p for p in own_p)]):
                paid[i] += p / config.n_heads
        again = 0.0
        for key, p in zip([*far, *near], paid, strict=True):
            again += min(p, key.received)
            key.received += p
        out = self._of(layer, "attention.output.weight") @ torch.cat(heads)
        if config.norm == "pre":
            x = x + out
            x = x + self._feed_forward(layer, self._norm(layer, "feed_forward_norm", x))
        else:
            x = self._norm(layer, "attention_norm", x + out)
            x = self._norm(layer, "feed_forward_norm", x + self._feed_forward(layer, x))
        return x, again

    def _head(
        self, layer: int, head: int, h: Tensor, slots: list[Tensor], places: list[Tensor]
    ) -> tuple[Tensor, list[float]]:
        config = self.config
        width = config.head_dim
        rows = slice(head * width, (head + 1) * width)
        both = self._of(layer, "attention.key_value.weight")
        w_k, w_v = both[: config.n_heads * width][rows], both[config.n_heads * width :][rows]
        q = self._of(layer, "attention.query.weight")[rows] @ h
        w_r = self._of(layer, "attention.position.weight")[rows]
        u, w = self.weights["content_bias"][layer][head], self.weights["position_bias"][layer][head]
        scores = [
            ((q + u) @ (w_k @ slot) + (q + w) @ (w_r @ place)) / math.sqrt(width)
            for slot, place in zip(slots, places, strict=True)
        ]
        p = softmax(scores)
        out = sum((p_j * (w_v @ slot) for p_j, slot in zip(p, slots, strict=True)), 0 * q)
        return out, [p_j.item() for p_j in p]

    def _bucket(self, distance: int) -> int:
        """Four an octave, from M on."""
        bucket = 0
        while self.config.memory_len * 2 ** ((bucket + 1) / 4) <= distance:
            bucket += 1
        return bucket

    def _of(self, layer: int, name: str) -> Tensor:
        return self.weights[f"layers.{layer}.{name}"]

    def _seen(self, layer: int, slot: Tensor) -> Tensor:
        return self._norm(layer, "attention_norm", slot) if self.config.norm == "pre" else slot

    def _norm(self, layer: int, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, x.shape, self._of(layer, f"{name}.weight"), self._of(layer, f"{name}.bias")
        )

    def _feed_forward(self, layer: int, x: Tensor) -> Tensor:
        x = self._of(layer, "feed_forward.0.weight") @ x + self._of(layer, "feed_forward.0.bias")
        x = x.clamp(min=0)
        return self._of(layer, "feed_forward.3.weight") @ x + self._of(layer, "feed_forward.3.bias")
