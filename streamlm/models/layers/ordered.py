"""Frozen weights in the order in which oneDNN's kernels read them, for a CPU.

torch multiplies float32 with another library, which orders the weights anew in every product. With
AVX-512, what is ordered once is multiplied 1.2 to 1.4 times as fast; single rows are not, and with
AVX2 nothing is. The ordered weights are a copy: they take as many bytes as the weights again, while
the model is frozen.
"""

from copy import deepcopy
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from streamlm.models.layers import products

ROWS = 128  # that the order is chosen for; others are multiplied alike
NARROWEST = 128  # d_model; in narrower models, calling oneDNN takes longer than it saves
Module = TypeVar("Module", bound=nn.Module)


class OrderedLinear(nn.Module):
    """y = W x + b, with copies of W and b."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach().clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    def forward(self, x: Tensor) -> Tensor:
        """[..., k] → [..., n]."""
        return ordered_linear(x, self.weight, self.bias)


def ordered_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with ordered weights."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def can_order(weight: Tensor, width: int) -> bool:
    """Whether there are faster kernels for weights like this one in a model of this d_model."""
    if weight.device.type != "cpu" or not products.AVAILABLE or width < NARROWEST:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and products.FASTER


def ordered(block: Module) -> Module:
    """A block for inference that shares all but its linear layers' weights with `block`."""
    twin = deepcopy(block, {id(each): each for each in block.parameters()})
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, OrderedLinear(child.weight, child.bias))
    return twin
