"""The Informer: ProbSparse attention, a distilling encoder, a one-pass decoder.

Zhou et al., "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting",
AAAI 2021. Where the authors' code (Informer2020) differs from the paper, this follows the code.
With full attention and without distilling, it is the encoder-decoder Transformer of Vaswani et al.
(2017).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.forecast.attention import Attention, Lazy
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.series import Batch


class Embedding(nn.Module):
    """Values, positions and date features: [B, n, C] and [B, n, F] → [B, n, D]."""

    def __init__(self, n_columns: int, n_marks: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.values = nn.Conv1d(n_columns, d_model, 3, padding=1, padding_mode="circular")
        nn.init.kaiming_normal_(self.values.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.marks = nn.Linear(n_marks, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, marks: Tensor) -> Tensor:
        embedded = self.values(values.mT).mT
        places = _sinusoid(embedded.shape[1], embedded.shape[2], embedded.device)
        out: Tensor = self.dropout(embedded + places + self.marks(marks))
        return out


def _sinusoid(n: int, width: int, device: torch.device) -> Tensor:
    """Absolute positions, alternating sine and cosine (Vaswani et al., §3.5): [n, D]."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(n, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class _FeedForward(nn.Sequential):
    def __init__(self, config: ForecastConfig) -> None:
        super().__init__(
            nn.Linear(config.d_model, config.d_ff),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.d_ff, config.d_model),
            nn.Dropout(config.dropout),
        )


class EncoderLayer(nn.Module):
    """Attention and a feed-forward network, each followed by a LayerNorm."""

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.attention = Attention(
            config.d_model, config.n_heads, factor=config.factor_or_none, dropout=config.dropout
        )
        self.feed_forward = _FeedForward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention(x, x)))
        out: Tensor = self.norms[1](x + self.feed_forward(x))
        return out


class Distil(nn.Module):
    """Halves the length between two layers (eq. 5): [B, n, D] → [B, ⌈n/2⌉, D]."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(d_model, d_model, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.norm(self.convolution(x.mT)))
        return F.max_pool1d(x, 3, stride=2, padding=1).mT


class Encoder(nn.Module):
    """Encoder layers; with `distil`, the length is halved between them."""

    def __init__(self, config: ForecastConfig, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(n_layers))
        n_distils = n_layers - 1 if config.distil else 0
        self.distils = nn.ModuleList(Distil(config.d_model) for _ in range(n_distils))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.distils):
                x = self.distils[index](x)
        out: Tensor = self.norm(x)
        return out


class DecoderLayer(nn.Module):
    """Masked self-attention, full attention to the encoder, a feed-forward network."""

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        width, n_heads = config.d_model, config.n_heads
        lazy: Lazy = "mean" if config.lazy == "mean" else "sum"
        self.attention = Attention(
            width,
            n_heads,
            factor=config.factor_or_none,
            causal=True,
            lazy=lazy,
            dropout=config.dropout,
        )
        self.cross_attention = Attention(width, n_heads, factor=None, dropout=config.dropout)
        self.feed_forward = _FeedForward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, encoded: Tensor) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention(x, x)))
        x = self.norms[1](x + self.dropout(self.cross_attention(x, encoded)))
        out: Tensor = self.norms[2](x + self.feed_forward(x))
        return out


class Informer(nn.Module):
    """Forecasts `horizon` rows in one pass.

    The decoder reads the last `label_len` rows of the past, followed by zeros for the horizon.
    """

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.config = config
        columns, marks, width = config.n_columns, config.n_marks, config.d_model
        self.past = Embedding(columns, marks, width, config.dropout)
        self.future = Embedding(columns, marks, width, config.dropout)
        # Encoder replicas; each reads the later half of its predecessor's input.
        self.encoders = nn.ModuleList(Encoder(config, n) for n in config.encoder_layers)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, columns)

    def forward(self, batch: Batch) -> Tensor:
        """The forecast [B, horizon, C], scaled; the batch's future values are not read."""
        embedded = self.past(batch.past, batch.past_marks)
        n = embedded.shape[1]
        encoded = torch.cat(
            [encoder(embedded[:, -(n // 2**i) :]) for i, encoder in enumerate(self.encoders)], dim=1
        )
        label = self.config.label_len
        begin = batch.past[:, n - label :]
        values = F.pad(begin, (0, 0, 0, batch.future_marks.shape[1]))
        marks = torch.cat([batch.past_marks[:, n - label :], batch.future_marks], dim=1)
        x = self.future(values, marks)
        for layer in self.decoder:
            x = layer(x, encoded)
        out: Tensor = self.output(self.norm(x))[:, label:]
        return out
