"""A bidirectional encoder for masked language modelling, with Linformer or full attention.

Masking follows BERT (Devlin et al., 2019) and RoBERTa: 15 % of the tokens of a window are targets;
of these, 80 % are masked, 10 % are replaced by random tokens and 10 % are unchanged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.heads.linformer import SelfAttention, projections
from streamlm.transfer import send

TARGETS, MASKED, RANDOM = 0.15, 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
        vocab_size, n_layers, d_model, n_heads, d_ff: V, L, D, H and the feed-forward width.
        window: n, tokens per window.
        projected_len: k, length of projected keys and values; 0 means full attention.
        projection: one of `linformer.KINDS`; sharing: one of `linformer.SHARING`.
    """

    vocab_size: int
    n_layers: int = 4
    d_model: int = 256
    n_heads: int = 4
    d_ff: int = 1024
    window: int = 512
    projected_len: int = 0
    projection: str = "linear"
    sharing: str = "layerwise"


class Encoder(nn.Module):
    """A bidirectional Transformer encoder with a masked-language-modelling loss."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, n_heads = config.d_model, config.n_heads
        if width % n_heads:
            raise ValueError(f"d_model = {width}; allowed: a multiple of n_heads = {n_heads}")
        self.embedding = nn.Embedding(config.vocab_size + 1, width)  # V: the mask token
        self.places = nn.Parameter(torch.empty(config.window, width))
        lengths = (
            projections(
                config.n_layers,
                n_heads,
                width // n_heads,
                n=config.window,
                k=config.projected_len,
                kind=config.projection,
                sharing=config.sharing,
            )
            if config.projected_len
            else [None] * config.n_layers
        )
        self.attention = nn.ModuleList(SelfAttention(width, n_heads, each) for each in lengths)
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.Linear(width, config.d_ff), nn.GELU(), nn.Linear(config.d_ff, width))
            for _ in range(config.n_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * config.n_layers + 1))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        for weight in (self.embedding.weight, self.places):
            nn.init.normal_(weight, std=0.02)

    def hidden(self, tokens: Tensor) -> Tensor:
        """[B, n] ids → [B, n, D]."""
        x = self.embedding(tokens) + self.places[: tokens.shape[1]]
        for index, attention in enumerate(self.attention):
            x = x + attention(self.norms[2 * index](x))
            x = x + self.feed_forward[index](self.norms[2 * index + 1](x))
        out: Tensor = self.norms[-1](x)
        return out

    def loss(self, windows: "Masked") -> Tensor:
        """Mean cross-entropy of the targets, in nats."""
        hidden = self.hidden(windows.inputs)[windows.is_target]
        logits = F.linear(hidden, self.embedding.weight[:-1], self.bias)
        return F.cross_entropy(logits, windows.targets)


@dataclass(frozen=True)
class Masked:
    """Windows with masked tokens.

    Attributes:
        inputs: [B, n] ids; V is the mask token.
        is_target: [B, n] True at target positions; targets: [N] ids at these positions.
    """

    inputs: Tensor
    is_target: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Masked":
        """Copy to a device."""
        parts = (self.inputs, self.is_target, self.targets)
        return Masked(*(send(part, device) for part in parts))


def masked_windows(
    tokens: np.ndarray, *, window: int, batch_size: int, vocab_size: int, seed: int
) -> Iterator[Masked]:
    """Endless batches of windows at random offsets, determined by the seed."""
    if len(tokens) < window:
        raise ValueError(f"{len(tokens)} tokens; allowed: at least {window}, the window")
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(0, len(tokens) - window + 1, batch_size)
        rows = np.stack([tokens[start : start + window] for start in starts]).astype(np.int64)
        is_target = random.random(rows.shape) < TARGETS
        draw = random.random(rows.shape)
        inputs = np.where(is_target & (draw < MASKED), vocab_size, rows)
        others = random.integers(0, vocab_size, rows.shape)
        replaced = is_target & (draw >= MASKED) & (draw < MASKED + RANDOM)
        inputs = np.where(replaced, others, inputs)
        yield Masked(
            torch.from_numpy(inputs), torch.from_numpy(is_target), torch.from_numpy(rows[is_target])
        )
