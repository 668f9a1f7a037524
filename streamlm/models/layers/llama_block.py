"""Blocks of Llama-family models: grouped-query attention and a gated feed-forward network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.layers.block import Entered
from streamlm.models.layers.rotary import rotate
from streamlm.models.llama_config import LlamaConfig

BLOCK = 192  # rows of queries at a time


def plain_products(query: Tensor) -> bool:
    """Whether two products and a softmax are faster than the fused attention kernel.

    They are in bfloat16 on a CPU, in blocks whose scores stay in its caches: 1.5 times over 1,156
    keys, on a processor with AVX-512 and bfloat16. The fused kernel computes scores in float32.
    """
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return on_cpu and not torch.is_grad_enabled()


def padding(rows: int) -> int:
    """Rows to add to a product, so that it has one of few shapes: at most a quarter of them.

    In bfloat16 oneDNN compiles a kernel for each shape and keeps the last 1,024: 0.4 to 0.8 MB each
    for 1,156 keys, some hundred MB in a process that reads pieces of all lengths.
    """
    step = 1 << max(0, rows.bit_length() - 3)
    return -rows % step


class GroupedAttention(nn.Module):
    """Attention of H query heads to H_kv heads of keys and values (Ainslie et al. 2023)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        inner, narrow = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        width, bias = config.d_model, config.qkv_bias
        self.query = nn.Linear(width, inner, bias=bias)
        self.key = nn.Linear(width, narrow, bias=bias)
        self.value = nn.Linear(width, narrow, bias=bias)
        self.output: nn.Module = nn.Linear(inner, width, bias=False)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.query_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
            self.key_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and slots, before rotation: [B, t, D] → [B, H, t, E] and [B, t, W]."""
        query = self.query_norm(self.query(x).unflatten(2, (-1, self.head_dim)))
        key = self.key_norm(self.key(x).unflatten(2, (-1, self.head_dim)))
        value = self.value(x).unflatten(2, (-1, self.head_dim))
        return query.transpose(1, 2), torch.stack([key, value], dim=3).flatten(2)

    def split(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before rotation and values of slots: [B, n, W] → two [B, H_kv, n, E]."""
        heads = slots.unflatten(2, (self.n_kv_heads, 2, self.head_dim))
        key, value = heads.permute(3, 0, 2, 1, 4).unbind(0)
        return key, value

    def grouped(self, query: Tensor) -> Tensor:
        """Queries as rows of the heads whose keys they share: [B, H, t, E] → [B, H_kv, G·t, E]."""
        return query.reshape(query.shape[0], self.n_kv_heads, -1, self.head_dim)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        bias: Tensor,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output [B, t, D], and the weights [B, H, t, K] or None.

        The queries of the H / H_kv heads that share keys are rows of one product.

        Args:
            query: [B, H, t, E], rotated; key, value: [B, H_kv, K, E], rotated.
            bias: [B or 1, 1, t · H / H_kv, K], -inf where masked; rows are (head, query).
            want_weights: return the weights; disables the fused kernel.
        """
        b, _, t, _ = query.shape
        rows = self.grouped(query)
        weights = None
        if want_weights or plain_products(rows):
            wide = bias.expand(b, self.n_kv_heads, -1, -1).flatten(0, 1)
            keys, values = key.flatten(0, 1).mT, value.flatten(0, 1)
            outputs: list[Tensor] = []
            found: list[Tensor] = []
            for some, added in zip(
                rows.flatten(0, 1).split(BLOCK, dim=1), wide.split(BLOCK, dim=1), strict=True
            ):
                n = some.shape[1]
                if more := padding(n):  # padding by nothing would copy
                    some, added = (F.pad(each, (0, 0, 0, more)) for each in (some, added))
                scores = torch.baddbmm(added, some, keys, alpha=self.head_dim**-0.5)
                part = scores.softmax(dim=-1)
                outputs.append(torch.bmm(part, values)[:, :n])
                if want_weights:
                    found.append(part[:, :n])
            heads = torch.cat(outputs, dim=1)
            weights = torch.cat(found, dim=1).view(b, self.n_heads, t, -1) if found else None
        else:
            heads = F.scaled_dot_product_attention(rows, key, value, attn_mask=bias)
        heads = heads.reshape(b, self.n_heads, t, self.head_dim).transpose(1, 2).flatten(2)
        out: Tensor = self.output(heads)
        return out, weights


class FeedForward(nn.Module):
    """W_down(silu(W_gate x) · W_up x) (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class LlamaBlock(Entered):
    """RMS norm before attention and before the feed-forward network, residuals around both."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = GroupedAttention(config)
        self.feed_forward_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def read(self, x: Tensor) -> Tensor:
        """Input of attention."""
        out: Tensor = self.attention_norm(x)
        return out

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residuals and feed-forward network after attention: [B, t, D] → [B, t, D]."""
        x = x + attended
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out

    def pair(
        self, slots: Tensor, cos: Tensor, sin: Tensor, *, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of slots, in a precision: two [B, H_kv, n, E].

        Args:
            cos, sin: of the slots' positions, broadcast to [B, 1, n, E].
        """
        key, value = self.attention.split(slots)
        return rotate(key, cos, sin).to(dtype), value.to(dtype)
