"""Frozen weights as 8-bit integers, for a CPU: a linear layer and an embedding.

Each output of a layer has its own scale. Activations are rounded to 8 bits too, row by row: a row
has the scale of its own largest number, so its result does not depend on the other rows.

The kernel, FBGEMM's, rounds a whole tensor with one scale, from its smallest to its largest number.
Rows are therefore brought to [-1, 1] first, and one more row spans exactly that. A single row gets
its negative as the other row.
"""

import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

LARGEST = 127
TINY = torch.finfo(torch.float32).tiny
ENGINES = ("x86", "fbgemm")


def has_int8_kernels() -> bool:
    """Whether this processor and this torch have FBGEMM's 8-bit kernels."""
    quantized = torch.backends.quantized
    return quantized.engine in ENGINES and quantized.engine in quantized.supported_engines


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 8 bits: [n, k] → [n, k] int8 and scales [n] float32."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=TINY) / LARGEST
    rounded = (weight / scale[:, None]).round().clamp(-LARGEST, LARGEST)
    return rounded.to(torch.int8), scale


class Frozen(nn.Module):
    """Base of modules with packed weights, which stay as they are and where they are."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise ValueError(
                f"int8 weights to {moved.device} and {moved.dtype}; allowed: the CPU and float32; "
                "load the model in another precision"
            )
        return self

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ValueError("int8 weights cannot be trained; allowed: float32 or bfloat16")
        return super().train(mode)

    def _save_to_state_dict(self, *args: Any) -> None:
        raise ValueError("int8 weights cannot be saved; allowed: float32 or bfloat16")


class Int8Linear(Frozen):
    """y = W x + b with 8-bit weights and activations; see the module.

    Activations are float32, as is the result.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        n, k = weight.shape
        self.in_features, self.out_features = k, n
        whole, scale = quantize(weight)
        with warnings.catch_warnings():  # quantized tensors are deprecated, the kernels are not
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch._make_per_channel_quantized_tensor(
                whole, scale.double(), torch.zeros(n, dtype=torch.int64), 0
            )
            self._packed = torch.ops.quantized.linear_prepack(tensor, None)
        self._bias = None if bias is None else bias.detach().float()
        # Without VNNI, sums of two products have 16 bits, so activations must be below 128.
        self._narrow = not torch.cpu._is_vnni_supported()
        self._signs = torch.tensor([[1.0], [-1.0]])
        self._edges = torch.zeros(1, k)
        self._edges[0, :2] = self._signs[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., k] → [..., n]."""
        rows = x.reshape(-1, self.in_features).float()
        n, linear = rows.shape[0], torch.ops.quantized.linear_dynamic.default
        if n == 1:
            out = linear(rows * self._signs, self._packed, self._narrow).narrow(0, 0, 1)
        else:
            peak = rows.abs().amax(dim=1, keepdim=True)
            unit = torch.cat([rows / peak.clamp(min=TINY), self._edges])
            out = linear(unit, self._packed, self._narrow).narrow(0, 0, n) * peak
        if self._bias is not None:
            out = out + self._bias
        return out.view(*x.shape[:-1], self.out_features)


class Int8Embedding(Frozen):
    """Rows of a table of 8-bit numbers, each with its scale."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.scale = quantize(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] ids → [..., D] float32."""
        return self.weight[tokens] * self.scale[tokens][..., None]
