"""Transformer blocks: attention and a feed-forward network."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig
from streamlm.models.layers.attention import RelativeAttention
from streamlm.models.layers.constant_slots import project_slots

Attention = TypeVar("Attention", bound=nn.Module)
Result = TypeVar("Result")


class Entered(nn.Module):
    """A layer that is used in several places, all of which enter it through `forward`.

    What wraps a module sees its weights being used there and only there: fully_shard gathers the
    weights of a layer before `forward`, and drops them after it.
    """

    def forward(self, work: Callable[..., Result], *args: object) -> Result:
        """`work(*args)`, which uses the weights of this layer."""
        return work(*args)


class Block(Entered, Generic[Attention]):
    """Attention and a feed-forward network, with post-norm (paper) or pre-norm."""

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
        """Input of attention: the slots, or their LayerNorm with pre-norm."""
        return self.attention_norm(slots) if self.pre_norm else slots

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residuals, norms and feed-forward network after attention: [B, t, D] → [B, t, D]."""
        x = x + self.dropout(attended)
        if self.pre_norm:
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x)
        out: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return out


class Layer(Block[RelativeAttention]):
    """A block with relative attention."""

    def __init__(self, config: ModelConfig) -> None:
        attention = RelativeAttention(
            config.d_model, config.n_heads, config.head_dim, config.attention_dropout
        )
        super().__init__(config, attention)

    def project(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots: [B, n, W] → two [B, H, n, E]."""
        return self.attention.project(self.read(slots))

    def project_training(self, past: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """As `project` of [past | new], with gradients but for `past` if it is constant.

        With pre-norm, W (γ x̂ + β) = (W γ) x̂ + W β: so are the normalised slots x̂ of the past.
        """
        projection: nn.Module = self.attention.key_value
        if not isinstance(projection, nn.Linear):  # packed weights, which learn nothing
            return self.project(torch.cat([past, new], dim=1))
        weight, bias = projection.weight, None
        if self.pre_norm:
            norm = self.attention_norm
            past, new = (F.layer_norm(x, norm.normalized_shape, eps=norm.eps) for x in (past, new))
            weight, bias = weight * norm.weight, weight @ norm.bias
        return project_slots(past, new, weight, bias, n_heads=self.attention.n_heads)
