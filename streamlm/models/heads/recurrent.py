"""Linear recurrence: attention without softmax, with one state matrix per head.

    S_i = γ S_{i-1} + k_iᵀ v_i,    o_i = q_i S_i / √E

Retention (Sun et al., "Retentive Network", 2023, eq. 6 to 9) without rotary positions and output
gate: only the decay γ depends on distance. A baseline with a minimal state.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, require
from streamlm.models.cache import Pair
from streamlm.models.call import Attended, Call
from streamlm.models.layers.attention import ProjectingAttention
from streamlm.models.layers.block import Block
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State

MATRICES = "retention"  # carried tensor: [L, B, H, E, E]


class Retention(ProjectingAttention):
    """Retention over the tokens of a segment and the state matrix of all earlier segments."""

    decay: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        inner = config.n_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.key_value = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.d_model, bias=False)
        # As in the paper: half-lives of about 22, 44, 88, … tokens.
        heads = torch.arange(config.n_heads, dtype=torch.float64, device="cpu")
        decay = 1 - 2.0 ** (-5 - heads)
        self.register_buffer("decay", decay.to(torch.get_default_dtype()), persistent=False)

    def read(self, x: Tensor, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        """Outputs of the last t of the segment's first n tokens: [B, t, D] → [B, t, D].

        Args:
            key, value: [B, H, n, E]; matrix: [B, H, E, E], S before the segment.
        """
        n, t = key.shape[2], x.shape[1]
        query = self.queries(x)
        at = torch.arange(n - t, n, device=x.device)
        distance = at[:, None] - torch.arange(n, device=x.device)  # [t, n]
        weight = self._powers(distance.clamp(min=0)) * (distance >= 0)
        near = ((query @ key.mT) * weight) @ value
        far = (query @ matrix.to(query.dtype)) * self._powers(at + 1)[..., None]
        heads = F.layer_norm(near + far, (self.head_dim,))
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return out

    def closed(self, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        """S after the segment."""
        n = key.shape[2]
        ages = torch.arange(n - 1, -1, -1, device=key.device)
        weighted = (key * self._powers(ages)[..., None]).to(matrix.dtype)
        decayed = matrix * self._powers(torch.full((1,), n, device=key.device))[..., None]
        return decayed + weighted.mT @ value.to(matrix.dtype)

    def _powers(self, exponents: Tensor) -> Tensor:
        """Powers of each head's γ: [...] → [H, ...]."""
        decay = self.decay.view(-1, *[1] * exponents.ndim)
        return decay**exponents


class RecurrentModel(SegmentedModel):
    """A language model whose state is one matrix per layer and head."""

    closes_with_keys = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            Block(config, Retention(config)) for _ in range(config.n_layers)
        )
        self._add_output()
        self.reset_parameters()

    @classmethod
    def beside(cls, base: ModelConfig, slots: int) -> ModelConfig:
        """A matrix E · E per head instead of slots; see `Model.beside`."""
        square = math.isqrt(slots * base.d_model // base.n_heads)
        return replace(super().beside(base, 0), head_dim=square)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """There is no memory, so its lengths must be 0; see `Model.check`."""
        for name in ("compressed_len", "memory_len"):
            value = getattr(config, name)
            require(value == 0, f"{name} with head {config.head!r}", value, "0")

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        config, weight = self.config, self.output_bias
        dtype = torch.promote_types(weight.dtype, torch.float32)  # sums over all tokens
        shape = (config.n_layers, batch_size, config.n_heads, config.head_dim, config.head_dim)
        matrices = torch.zeros(shape, dtype=dtype, device=weight.device)
        return self.empty_state(batch_size, carried={MATRICES: matrices})

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Retention; see `SegmentedModel.attend`."""
        out: Tensor = self.blocks[index].attention.read(
            inputs, *pair, call.state.carried[MATRICES][index]
        )
        return Attended(out)

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """Add the segment to the matrices; see `SegmentedModel.closed`."""
        matrices = [
            layer.attention.closed(key, value, matrix).detach()
            for layer, key, value, matrix in zip(
                self.blocks, keys, values, state.carried[MATRICES], strict=True
            )
        ]
        return self.shifted(state, kept=0, carried={MATRICES: torch.stack(matrices)}), None
