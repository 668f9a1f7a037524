"""A linear recurrence: attention without softmax, whose past is one matrix for each head.

    S_i = γ S_{i-1} + k_iᵀ v_i,    o_i = q_i S_i / √E

Retention (Sun et al., "Retentive Network", 2023, eq. 6 to 9) without its rotation of positions and
its gate: distance shows in the decays γ alone. A control: it remembers in as few bytes as can be.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, require
from streamlm.models.cache import Pair
from streamlm.models.layers.attention import ProjectingAttention
from streamlm.models.layers.block import AnyLayer
from streamlm.models.segmented import Attended, Call, SegmentedModel
from streamlm.state import State

MATRICES = "retention"  # what is carried: [L, B, H, E, E]


class Retention(ProjectingAttention):
    """One layer's recurrence over the tokens of a segment, and the matrix of all before it."""

    decay: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        inner = config.n_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.key_value = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.d_model, bias=False)
        # The paper's: heads forget by half within some 22, 44, 88, … tokens.
        heads = torch.arange(config.n_heads, dtype=torch.float64, device="cpu")
        decay = 1 - 2.0 ** (-5 - heads)
        self.register_buffer("decay", decay.to(torch.get_default_dtype()), persistent=False)

    def read(self, x: Tensor, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        """[B, t, D], the last t tokens of a segment's first n, → [B, t, D].

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
        """S after a whole segment."""
        n = key.shape[2]
        ages = torch.arange(n - 1, -1, -1, device=key.device)
        weighted = (key * self._powers(ages)[..., None]).to(matrix.dtype)
        decayed = matrix * self._powers(torch.full((1,), n, device=key.device))[..., None]
        return decayed + weighted.mT @ value.to(matrix.dtype)

    def _powers(self, exponents: Tensor) -> Tensor:
        """γ to these powers, for each head: [...] → [H, ...]."""
        decay = self.decay.view(-1, *[1] * exponents.ndim)
        return decay**exponents


class RecurrentModel(SegmentedModel):
    """A language model that carries matrices instead of slots."""

    closes_with_keys = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            AnyLayer(config, Retention(config)) for _ in range(config.n_layers)
        )
        self._add_output()
        self.reset_parameters()

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """No slots are kept; see `Model.check`."""
        for name in ("compressed_len", "memory_len"):
            value = getattr(config, name)
            require(value == 0, f"{name} with head {config.head!r}", value, "0")

    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""
        config, weight = self.config, self.output_bias
        dtype = torch.promote_types(weight.dtype, torch.float32)  # sums of all that was read
        shape = (config.n_layers, batch_size, config.n_heads, config.head_dim, config.head_dim)
        matrices = torch.zeros(shape, dtype=dtype, device=weight.device)
        return self.empty_state(batch_size, carried={MATRICES: matrices})

    def attend(self, index: int, seen: Tensor, pair: Pair, call: Call) -> Attended:
        """The recurrence of a layer; see `SegmentedModel.attend`."""
        out: Tensor = self._layers[index].attention.read(
            seen, *pair, call.state.carried[MATRICES][index]
        )
        return Attended(out)

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """The segment taken into the matrices; see `SegmentedModel.closed`."""
        matrices = [
            layer.attention.closed(key, value, matrix).detach()
            for layer, key, value, matrix in zip(
                self._layers, keys, values, state.carried[MATRICES], strict=True
            )
        ]
        return self.shifted(state, kept=0, carried={MATRICES: torch.stack(matrices)}), None
