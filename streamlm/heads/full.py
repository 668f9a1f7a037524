"""Full attention: a causal Transformer that forgets nothing, and so grows with what it reads.

Vaswani et al. (2017), with absolute sinusoids added to the embeddings. A control: what any bounded
memory can at most hope for, at a price that rises with every token. Its state is not bounded.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.attention import ProjectingAttention, attention_mask
from streamlm.cache import project_blocks
from streamlm.config import ModelConfig
from streamlm.heads.key_value import KeyValueModel, Pair, Places
from streamlm.layer import AnyLayer
from streamlm.model import Observer
from streamlm.positions import absolute
from streamlm.state import State


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


class FullModel(KeyValueModel):
    """A causal Transformer whose past holds all that was read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            AnyLayer(config, FullAttention(config)) for _ in range(config.n_layers)
        )
        self._add_output()
        self.reset_parameters()

    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""
        return replace(self.empty_state(batch_size), filled_known=(0,) * batch_size)

    def read(
        self, x: Tensor, state: State, *, observe: Observer | None = None
    ) -> tuple[Tensor, State]:
        """All layers, over tokens that know their absolute positions; see `Model.read`."""
        at = state.position[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, t]
        # As large beside the embeddings as in the paper, where those begin with a variance of 1;
        # ours begin smaller, and would be drowned by sines of their full size.
        size = self.config.init_std * x.shape[2] ** 0.5
        return super().read(x + (size * absolute(at, x.shape[2])).to(x.dtype), state)

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of all segments that were closed; see `KeyValueModel.project_past`."""
        past = state.past[index]
        if not past.shape[1]:
            return super().project_past(index, state)
        layer = self._layers[index]
        return project_blocks(
            lambda slots: layer.attention.project(layer.read(slots)), past, self.config.segment_len
        )

    def past_after(self, index: int, past: Pair, segment: Pair, state: State) -> Pair:
        """All of it, but for columns that no row needs any more."""
        n = state.past.shape[2]
        key, value = (torch.cat(both, dim=2)[:, :, -n:] for both in zip(past, segment, strict=True))
        return key, value

    def attend(
        self, index: int, seen: Tensor, pair: Pair, state: State, places: Places
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Attention of a layer; see `KeyValueModel.attend`."""
        (key, value), past_len, t = pair, state.past.shape[2], seen.shape[1]
        mask = attention_mask(state.filled, past_len, key.shape[2] - past_len - t, t)
        out: Tensor = self._layers[index].attention.read(seen, key, value, mask)
        return out, {}

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> State:
        """The segment put behind the past; see `KeyValueModel.closed`."""
        # Rows that began anew may need less than others did.
        known = state.filled_known
        if known is None:
            known = tuple(state.filled.tolist())
        t = self.config.segment_len
        return self.shifted(state, kept=max(known) + t, filled_known=tuple(n + t for n in known))
