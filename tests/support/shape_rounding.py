"""A pytest plugin that rounds like another processor: a product's last bits depend on its shape.

    python -m pytest -p tests.support.shape_rounding tests

A matrix product adds in an order that its kernel chooses by the operands' shapes, strides and
alignment, and each processor has its own. A test may take one processor's accident for a promise.
Under this plugin every product is off by a few units in the last place, which depend on shape,
strides and alignment alone. Equal operations in equal shapes stay bit-equal, and that is all that
streamlm promises; everything else needs a tolerance.
"""

import functools
import os
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.models.layers import ordered, products

ALIGNMENT = 64  # bytes; torch aligns what it allocates to as many
UNITS = 3  # in the last place, at most
INHERITED = "STREAMLM_SHAPE_ROUNDING"


def pytest_configure() -> None:
    """Replace torch's products, for this process and those that it starts."""
    os.environ[INHERITED] = "1"
    inherit()


def inherit() -> None:
    """Round as the process does that started this one, for good."""
    if INHERITED not in os.environ:
        return
    ordered.NARROWEST = products.LEAST = 0  # tiny models take the ways of wide ones
    products.FASTER = products.AVAILABLE  # on every processor
    for owner, names in (
        (F, ("linear", "conv1d", "scaled_dot_product_attention")),
        (ordered, ("ordered_linear",)),
        (torch, ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum")),
        (Tensor, ("matmul", "mm", "bmm", "__matmul__", "baddbmm_")),
    ):
        for name in names:
            setattr(owner, name, _off_by_shape(getattr(owner, name)))


def _off_by_shape(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(product)
    def rounded(*args: Any, **kwargs: Any) -> Tensor:
        result = product(*args, **kwargs)
        if torch.compiler.is_compiling():
            return result
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        operands = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        key = repr([_layout(tensor) for tensor in operands])
        units = zlib.crc32(key.encode()) % (2 * UNITS + 1) - UNITS
        factor = 1 + units * torch.finfo(result.dtype).eps
        return result.mul_(factor) if product.__name__ == "baddbmm_" else result * factor

    return rounded


def _layout(tensor: Tensor) -> tuple[object, ...]:
    """What a kernel may be chosen by."""
    if tensor.layout != torch.strided:
        return tuple(tensor.shape)
    strides = [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]
    return (*tensor.shape, *strides, tensor.data_ptr() % ALIGNMENT)
