"""What the card can do: matrix products, copies, launches."""

from functools import partial
from typing import Any

import torch

from benchmarks.gpu_parts.run import Part
from benchmarks.tools.timing import milliseconds

# m, k, n of products in the recipe's model, at 64 rows of 256 tokens.
PRODUCTS = {
    "output of attention": (16384, 384, 384),
    "feed-forward": (16384, 384, 1792),
    "keys and values": (49152, 384, 768),
    "wider feed-forward": (16384, 768, 3072),
    "logits": (16384, 384, 8192),
}


def measure(part: Part) -> None:
    """What the card can do: matrix products, copies, launches."""
    device, tiny = part.options.device, part.options.tiny
    part.note(cudnn=torch.backends.cudnn.version(), cuda=torch.version.cuda)
    if device == "cuda":
        part.attempt("card", properties)
    n = 64 if tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        name = f"TFLOP/s, {dtype}, {n}³".replace("torch.", "")
        part.attempt(name, partial(product, n, n, n, dtype, device))
    for name, (m, k, columns) in PRODUCTS.items():
        sizes = (m // 256, k // 16, columns // 16) if tiny else (m, k, columns)
        part.attempt(
            f"TFLOP/s, bfloat16, {name}, {'×'.join(map(str, sizes))}",
            partial(product, *sizes, torch.bfloat16, device),
        )
    part.attempt("TB/s, copied", lambda: copied(1 << (12 if tiny else 30), device))
    part.attempt("µs, launched one by one", lambda: launched(100 if tiny else 1000, device))


def properties() -> dict[str, Any]:
    """The card's name and size."""
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
    }


def product(m: int, k: int, n: int, dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of [m, k] @ [k, n]."""
    a = torch.randn(m, k, device=device, dtype=dtype)
    b = torch.randn(k, n, device=device, dtype=dtype)
    return 2 * m * k * n / milliseconds(lambda: a @ b, device) / 1e9


def copied(n_bytes: int, device: str) -> float:
    """TB/s read and written by a copy from the card to itself."""
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / milliseconds(lambda: target.copy_(source), device, repeats=5) / 1e9


def launched(n: int, device: str) -> float:
    """µs of a small operation, many of them launched one after another."""
    one = torch.zeros(8, device=device)

    def work() -> None:
        for _ in range(n):
            one.add_(1)

    return 1e3 * milliseconds(work, device, repeats=3) / n
