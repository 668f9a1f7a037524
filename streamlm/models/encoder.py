"""An encoder that guesses masked tokens: the Linformer in its own form, and its twin.

Masked language modelling as in BERT (Devlin et al., 2019) and RoBERTa: of each window 15 % of the
tokens are to be guessed; of these 80 % are hidden, 10 % are other tokens, and 10 % stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.heads.linformer import SelfAttention, projections
from streamlm.transfer import send

GUESSED, HIDDEN, OTHER = 0.15, 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
        vocab_size, n_layers, d_model, n_heads, d_ff: V, L, D, H and the feed-forward width.
        window: n, tokens that are read at a time.
        projected_len: k, what keys and values are shortened to; 0 attends fully.
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
    """Reads a window in both directions and says of each place which token stands there."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, n_heads = config.d_model, config.n_heads
        if width % n_heads:
            raise ValueError(f"d_model = {width}; allowed: a multiple of n_heads = {n_heads}")
        self.embedding = nn.Embedding(config.vocab_size + 1, width)  # the last one hides
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
        """Mean cross-entropy of the tokens that are to be guessed, in nats."""
        hidden = self.hidden(windows.inputs)[windows.guessed]
        logits = F.linear(hidden, self.embedding.weight[:-1], self.bias)
        return F.cross_entropy(logits, windows.targets)


@dataclass(frozen=True)
class Masked:
    """Windows with some tokens to be guessed.

    Attributes:
        inputs: [B, n] ids, of which V hides.
        guessed: [B, n] True where a token is to be guessed; targets: those tokens.
    """

    inputs: Tensor
    guessed: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Masked":
        """The same on another device."""
        parts = (self.inputs, self.guessed, self.targets)
        return Masked(*(send(part, device) for part in parts))


def masked_windows(
    tokens: np.ndarray, *, window: int, batch_size: int, vocab_size: int, seed: int
) -> Iterator[Masked]:
    """Batches of windows from anywhere in the tokens, without end; the seed says which."""
    if len(tokens) < window:
        raise ValueError(f"{len(tokens)} tokens; allowed: at least {window}, the window")
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(0, len(tokens) - window + 1, batch_size)
        rows = np.stack([tokens[start : start + window] for start in starts]).astype(np.int64)
        guessed = random.random(rows.shape) < GUESSED
        draw = random.random(rows.shape)
        inputs = np.where(guessed & (draw < HIDDEN), vocab_size, rows)
        others = random.integers(0, vocab_size, rows.shape)
        inputs = np.where(guessed & (draw >= HIDDEN) & (draw < HIDDEN + OTHER), others, inputs)
        yield Masked(
            torch.from_numpy(inputs), torch.from_numpy(guessed), torch.from_numpy(rows[guessed])
        )
