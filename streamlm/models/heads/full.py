"""Full attention: a causal Transformer that keeps all past slots.

Vaswani et al. (2017), with absolute sinusoids added to the embeddings. An upper bound for models
with bounded memory: its state, and its cost per token, grow with the number of tokens read.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, require
from streamlm.memory.eviction import Eviction
from streamlm.models.base import Observer, Windows
from streamlm.models.cache import Cache, Pair, project_blocks
from streamlm.models.call import Attended, Call
from streamlm.models.layers.attention import ProjectingAttention, attention_mask
from streamlm.models.layers.block import Block
from streamlm.models.layers.positions import absolute
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State

UNBOUNDED = 1 << 32  # slots


class FullAttention(ProjectingAttention):
    """Multi-head attention without positions; no biases on q, k, v and o."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.dropout = config.attention_dropout
        inner = config.n_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.key_value = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.d_model, bias=False)

    def read(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """[B, t, D] → [B, t, D]; mask [B, 1, t, K] is True where attention is allowed."""
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(
            self.queries(x), key, value, attn_mask=mask, dropout_p=dropout, scale=1.0
        )
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return out


class FullModel(SegmentedModel):
    """A causal Transformer whose past contains all closed segments."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            Block(config, FullAttention(config)) for _ in range(config.n_layers)
        )
        self._add_output()
        self.reset_parameters()

    @classmethod
    def beside(cls, base: ModelConfig, slots: int) -> ModelConfig:
        """Its past grows with the stream; see `Model.beside`."""
        return super().beside(base, 0)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Memory is unbounded, so its lengths must be 0; see `Model.check`."""
        for name in ("compressed_len", "memory_len"):
            value = getattr(config, name)
            require(value == 0, f"{name} with head {config.head!r}", value, "0")

    def windows(self, position: int, carried: Mapping[str, Tensor]) -> Windows:
        """Memory contains all closed segments; see `Model.windows`."""
        windows = super().windows(position, carried)
        return replace(windows, memory=windows.memory_end, memory_capacity=UNBOUNDED)

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        return replace(self.empty_state(batch_size), filled_known=(0,) * batch_size)

    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
        finish: bool = True,
    ) -> tuple[Tensor, State]:
        """All layers, after adding absolute positions; see `Model.read`."""
        at = state.position[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, t]
        # Sinusoids are scaled to the embeddings. In the paper, embeddings have an initial variance
        # of 1; here it is smaller, and unscaled sinusoids would dominate.
        size = self.config.init_std * x.shape[2] ** 0.5
        x = x + (size * absolute(at, x.shape[2])).to(x.dtype)
        return super().read(x, state, cache=cache, observe=observe, finish=finish)

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of all closed segments; see `SegmentedModel.project_past`."""
        past = state.past[index]
        if not past.shape[1]:
            return super().project_past(index, state)
        layer = self.blocks[index]
        return project_blocks(
            lambda slots: layer.attention.project(layer.read(slots)), past, self.config.segment_len
        )

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """All columns except those that no row uses any more."""
        n = state.past.shape[2]
        key, value = (half[:, :, half.shape[2] + segment[0].shape[2] - n :] for half in past)
        return [(key, value), segment]

    def call_context(self, call: Call) -> Tensor:
        """Attention mask: [B, 1, t, K]."""
        state = call.state
        return attention_mask(state.filled, state.past.shape[2], state.phase, call.n_queries)

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Full attention; see `SegmentedModel.attend`."""
        out: Tensor = self.blocks[index].attention.read(inputs, *pair, call.context)
        return Attended(out)

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """Append the segment to the past; see `SegmentedModel.closed`."""
        # After a row is reset, the longest row may be shorter than the past is wide.
        known, t = state.filled_known, self.config.segment_len
        if known is None:
            known = tuple(state.filled.tolist())
        counts = tuple(n + t for n in known)
        return self.shifted(state, kept=max(counts), filled_known=counts), None
