"""Full attention: a causal Transformer that forgets nothing, and so grows with what it reads.

Vaswani et al. (2017), with absolute sinusoids added to the embeddings. A control: what any bounded
memory can at most hope for, at a price that rises with every token. Its state is not bounded.
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
from streamlm.models.layers.attention import ProjectingAttention, attention_mask
from streamlm.models.layers.block import AnyLayer
from streamlm.models.layers.positions import absolute
from streamlm.models.segmented import Attended, Call, SegmentedModel
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
        """[B, t, D] → [B, t, D]; mask [B, 1, t, K] is True where a query may look."""
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(
            self.queries(x), key, value, attn_mask=mask, dropout_p=dropout, scale=1.0
        )
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return out


class FullModel(SegmentedModel):
    """A causal Transformer whose past holds all that was read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            AnyLayer(config, FullAttention(config)) for _ in range(config.n_layers)
        )
        self._add_output()
        self.reset_parameters()

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Nothing is ever dropped; see `Model.check`."""
        for name in ("compressed_len", "memory_len"):
            value = getattr(config, name)
            require(value == 0, f"{name} with head {config.head!r}", value, "0")

    def windows(self, position: int, carried: Mapping[str, Tensor]) -> Windows:
        """Memory holds all closed segments; see `Model.windows`."""
        found = super().windows(position, carried)
        return replace(found, memory=found.memory_end, memory_capacity=UNBOUNDED)

    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""
        return replace(self.empty_state(batch_size), filled_known=(0,) * batch_size)

    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, State]:
        """All layers, over tokens that know their absolute positions; see `Model.read`."""
        at = state.position[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, t]
        # As large beside the embeddings as in the paper, where those begin with a variance of 1;
        # ours begin smaller, and would be drowned by sines of their full size.
        size = self.config.init_std * x.shape[2] ** 0.5
        x = x + (size * absolute(at, x.shape[2])).to(x.dtype)
        return super().read(x, state, cache=cache, observe=observe)

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of all segments that were closed; see `SegmentedModel.project_past`."""
        past = state.past[index]
        if not past.shape[1]:
            return super().project_past(index, state)
        layer = self._layers[index]
        return project_blocks(
            lambda slots: layer.attention.project(layer.read(slots)), past, self.config.segment_len
        )

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> Pair:
        """All of it, but for columns that no row needs any more."""
        n = state.past.shape[2]
        key, value = (torch.cat(both, dim=2)[:, :, -n:] for both in zip(past, segment, strict=True))
        return key, value

    def look(self, call: Call) -> Tensor:
        """Where queries may look: [B, 1, t, K]."""
        state = call.state
        return attention_mask(state.filled, state.past.shape[2], state.phase, call.n_queries)

    def attend(self, index: int, seen: Tensor, pair: Pair, call: Call) -> Attended:
        """Attention of a layer; see `SegmentedModel.attend`."""
        out: Tensor = self._layers[index].attention.read(seen, *pair, call.look)
        return Attended(out)

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """The segment put behind the past; see `SegmentedModel.closed`."""
        # Rows that began anew may need less than others did.
        known, t = state.filled_known, self.config.segment_len
        if known is None:
            known = tuple(state.filled.tolist())
        counts = tuple(n + t for n in known)
        return self.shifted(state, kept=max(counts), filled_known=counts), None
