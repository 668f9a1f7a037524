"""Layers: what attends, whatever it is, and a feed-forward network."""

from typing import Generic, TypeVar

from torch import Tensor, nn

from streamlm.config import ModelConfig
from streamlm.models.layers.attention import RelativeAttention

Attention = TypeVar("Attention", bound=nn.Module)


class AnyLayer(nn.Module, Generic[Attention]):
    """Attention and a feed-forward network, normalised after (paper) or before each."""

    attention: Attention

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        width = config.d_model
        self.pre_norm = config.norm == "pre"
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.d_ff),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.d_ff, width),
            nn.Dropout(config.dropout),
        )
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, slots: Tensor) -> Tensor:
        """What attention sees of slots: themselves, or with pre-norm their LayerNorm."""
        return self.attention_norm(slots) if self.pre_norm else slots

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer, after attention: [B, t, D] → [B, t, D]."""
        x = x + self.dropout(attended)
        if self.pre_norm:
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x)
        out: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return out


class Layer(AnyLayer[RelativeAttention]):
    """A layer with relative attention."""

    def __init__(self, config: ModelConfig) -> None:
        attention = RelativeAttention(
            config.d_model, config.n_heads, config.head_dim, config.attention_dropout
        )
        super().__init__(config, attention)

    def project(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots: [B, n, W] → two [B, H, n, E]."""
        return self.attention.project(self.read(slots))
