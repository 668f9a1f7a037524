"""Frozen weights as 8-bit integers, for a CPU: a linear layer and an embedding.

Each output of a layer has its own scale. Inputs are written with two digits of 8 bits, so that the
weights alone lose precision: with one digit, the few large numbers in the inputs of a language
model leave too few steps to the others. Each row has a scale of its own, so its result does not
depend on the other rows.

The kernel, FBGEMM's, rounds a whole tensor to the 256 steps between its smallest and its largest
number. One more row, of the ends of a fixed range, makes these steps the integers.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

LARGEST = 127
TINY = torch.finfo(torch.float32).tiny
ENGINES = ("x86", "fbgemm")


class Digits(NamedTuple):
    """How inputs become integers of the kernel: x = norm / half · (high + low / base).

    Attributes:
        narrow: the kernel has 7 bits for inputs. Without VNNI, sums of two products have 16 bits.
        half: largest digit; a row's norm, which no number exceeds, becomes `half`.
        base: steps of the low digit in one of the high digit.
    """

    narrow: bool
    half: int
    base: int

    def edges(self, k: int) -> Tensor:
        """The row that spans the range: [1, k]."""
        row = torch.zeros(1, k)
        row[0, 0], row[0, 1] = self.base / 2, -self.base / 2
        return row


def digits_here() -> Digits:
    """For this processor."""
    return Digits(False, 127, 255) if torch.cpu._is_vnni_supported() else Digits(True, 63, 127)


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

    def _save_to_state_dict(self, *args: Any) -> None:
        raise ValueError("int8 weights cannot be saved; allowed: float32 or bfloat16")


class Int8Linear(Frozen):
    """y = W x + b with 8-bit weights; see the module. Inputs and results are float32."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, digits: Digits | None = None
    ) -> None:
        super().__init__()
        n, k = weight.shape
        self.in_features, self.out_features = k, n
        self.digits = digits or digits_here()
        whole, scale = quantize(weight)
        with warnings.catch_warnings():  # quantized tensors are deprecated, the kernels are not
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch._make_per_channel_quantized_tensor(
                whole, scale.double(), torch.zeros(n, dtype=torch.int64), 0
            )
            self.packed = torch.ops.quantized.linear_prepack(tensor, None)
        self.bias = None if bias is None else bias.detach().float()
        self._edges = self.digits.edges(k)

    def forward(self, x: Tensor) -> Tensor:
        """[..., k] → [..., n]."""
        narrow, half, base = self.digits
        rows = x.reshape(-1, self.in_features).float()
        n = rows.shape[0]
        scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=TINY) / half
        high = rows / scale
        low = torch.sub(high, high.round()).mul_(base)
        both = torch.cat([high, low, self._edges])
        out = torch.ops.quantized.linear_dynamic.default(both, self.packed, narrow)
        y = torch.add(out[:n], out[n : 2 * n], alpha=1 / base).mul_(scale)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


class Int8Embedding(Frozen):
    """Rows of a table of 8-bit numbers, each with its scale."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.scale = quantize(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] ids → [..., D] float32."""
        return self.weight[tokens] * self.scale[tokens][..., None]
