"""What the layers of one call share, and what each of them gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from streamlm.models.cache import Pair
from streamlm.state import State

PositionKeys = tuple[Tensor, ...]
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Call:
    """Inputs that all layers of one call share.

    Attributes:
        state: before the call.
        n_queries: t, new tokens.
        n_keys: K, key columns.
        position_keys: result of `Model.derived`: projected positions of each layer (see
            `SegmentedModel.project_positions`), unless the model overrides `derive`.
        context: result of `SegmentedModel.call_context`, such as the attention mask.
        want_weights: whether attention weights are needed.
    """

    state: State
    n_queries: int
    n_keys: int
    position_keys: Any
    context: Any = None
    want_weights: bool = False


class Attended(NamedTuple):
    """A layer's attention output [B, t, D], its weights [B, H, t, K] or None, and its updates of
    `State.carried`, [B, ...] each."""

    out: Tensor
    weights: Tensor | None = None
    carried: Mapping[str, Tensor] = NOTHING


class Projected(NamedTuple):
    """A layer's new tokens, projected.

    Attributes:
        inputs: input of `SegmentedModel.attend`: [B, t, D] from `Block.read`, unless the model
            overrides `project_new`.
        slots: [B, t, W].
        pair: keys and values [B, H, n, E].
    """

    inputs: Tensor
    slots: Tensor
    pair: Pair
