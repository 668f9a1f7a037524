"""Layer: relative attention and a feed-forward network."""

from torch import Tensor, nn

from streamlm.attention import RelativeAttention
from streamlm.config import ModelConfig


class Layer(nn.Module):
    """Attention and a feed-forward network, normalised after (paper) or before each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.d_model
        self.pre_norm = config.norm == "pre"
        self.attention = RelativeAttention(
            width,
            config.n_heads,
            config.head_dim,
            config.attention_dropout,
        )
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

    def project(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots: [B, n, W] → two [B, H, n, E]."""
        return self.attention.project(self.read(slots))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer, after attention: [B, t, D] → [B, t, D]."""
        x = x + self.dropout(attended)
        if self.pre_norm:
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x)
        out: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return out
