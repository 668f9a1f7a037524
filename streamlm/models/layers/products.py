"""A matrix product on a CPU by oneDNN, where it is faster; when inference may do so.

For float32 products, torch asks MKL. With AVX-512, that reaches 85 to 90 % of what an AMD processor
can do, and oneDNN all of it; with AVX2, oneDNN is no faster. torch itself asks oneDNN for them in
compiled models alone.
"""

import torch
from torch import Tensor

# torch calls these operations itself in what it compiles; it does not promise them to others.
AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
FASTER = AVAILABLE and torch.backends.cpu.get_cpu_capability() == "AVX512"
LEAST = 2**22  # multiplications; for fewer, calling oneDNN takes longer than it saves


def infers_on_cpu(device: torch.device) -> bool:
    """Whether this is inference on a CPU in the weights' own precision.

    Buffers that inference overwrites, and weights in another order, do not suit autocast, which
    chooses a precision for each operation.
    """
    on_cpu = device.type == "cpu" and not torch.is_grad_enabled()
    return on_cpu and not torch.is_autocast_enabled("cpu")


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """left · rightᵀ without gradients of its own: [m, n] and [k, n] → [m, k]."""
    if _by_onednn(left, right):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
        return out
    return left @ right.mT


def _by_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        FASTER
        and left.numel() * right.shape[0] >= LEAST
        and not torch.compiler.is_compiling()
        and left.device.type == right.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
