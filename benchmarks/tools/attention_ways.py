"""One layer's relative attention, forward and backward, in several ways that compute the same.

    python -m benchmarks.tools.attention_ways triton    # one way, in a process of its own

Prints one JSON object. A kernel of our own that fails takes its process's CUDA context with it, so
`benchmarks.gpu` lets it have its own.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

import benchmarks.tools.without_store  # noqa: F401  must come before streamlm
from benchmarks.tools.parity import distance
from benchmarks.tools.timing import milliseconds
from streamlm.models.layers.attention import attention_mask, relative_shift

Way = Callable[[], Tensor]
FULL = (64, 6, 256, 512, 64)  # B, H, T, P, E of the recipe for a GPU
TINY = (2, 2, 32, 64, 16)


def as_it_is(
    q: Tensor, k: Tensor, v: Tensor, scores: Tensor, filled: Tensor, past_len: int
) -> Tensor:
    """As `RelativeAttention` computes it; see `relative_triton.relative_attention` for shapes."""
    t = q.shape[2]
    mask = attention_mask(filled, past_len, k.shape[2] - past_len - t, t)
    bias = relative_shift(scores).masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Queries, keys, values [B, H, ·, E], positions [H, N+1, E], and the gradient of the result."""

    q: Tensor
    k: Tensor
    v: Tensor
    r: Tensor
    filled: Tensor
    back: Tensor
    past_len: int

    @classmethod
    def random(cls, sizes: tuple[int, ...], device: str) -> Self:
        """In bfloat16, the same numbers for every way; the past is full."""
        b, h, t, p, e = sizes
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            made = torch.randn(*shape, generator=generator) * e**-0.25
            return made.to(device, torch.bfloat16)

        q, k, v = (normal(b, h, n, e).requires_grad_() for n in (t, p + t, p + t))
        filled = torch.full((b,), p, dtype=torch.int64, device=device)
        return cls(q, k, v, normal(h, p + t + 1, e), filled, normal(b, h, t, e), p)

    @property
    def scores(self) -> Tensor:
        """[B, H, T, N+1] by distance: computed anew, for it is a part of every way."""
        return self.q @ self.r.mT

    @property
    def flops(self) -> int:
        """Of q kᵀ and p v, forward and backward, as FlashAttention counts them, without q rᵀ."""
        b, h, t, e = self.q.shape
        return (4 + 10) * b * h * t * self.k.shape[2] * e


def ways(inputs: Inputs, *, backend: str = "inductor") -> dict[str, Callable[[], Way]]:
    """By name, what makes a way ready; some need to be compiled first.

    Args:
        backend: of torch.compile.
    """
    q, k, v, filled, p = inputs.q, inputs.k, inputs.v, inputs.filled, inputs.past_len
    compiled = partial(torch.compile, dynamic=False, backend=backend)

    def compiled_as_it_is() -> Way:
        run = compiled(as_it_is)
        return lambda: run(q, k, v, inputs.scores, filled, p)

    def flex() -> Way:
        return flex_way(inputs, compiled)

    def triton() -> Way:
        from benchmarks.tools.relative_triton import relative_attention

        return lambda: relative_attention(q, k, v, inputs.scores, filled, p)

    def without_bias() -> Way:
        return lambda: F.scaled_dot_product_attention(q, k, v, scale=1.0)

    return {
        "as it is": lambda: lambda: as_it_is(q, k, v, inputs.scores, filled, p),
        "without bias, unmasked": without_bias,  # what a fused kernel can do at best
        "as it is, compiled": compiled_as_it_is,
        "flex": flex,
        "triton": triton,
    }


def flex_way(inputs: Inputs, compiled: Callable[..., Any]) -> Way:
    """FlexAttention (torch.nn.attention), its scores modified by reading those by distance."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, p, filled = inputs.q, inputs.past_len, inputs.filled
    t, n = q.shape[2], inputs.k.shape[2]

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i + n - t) & (j >= p - filled[b])

    block = create_block_mask(visible, len(q), None, t, n, device=str(q.device))
    run = compiled(flex_attention)

    def way() -> Tensor:
        scores = inputs.scores

        def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            # It is called for cells that the mask hides, too: no read behind the row's end.
            return score + scores[b, h, i, (t - i + j).clamp(max=n)]

        out: Tensor = run(q, inputs.k, inputs.v, score_mod=biased, block_mask=block, scale=1.0)
        return out

    return way


def timed(way: Way, inputs: Inputs, *, same: bool = True) -> dict[str, float]:
    """Times of a way, and how far its results are from those of the model.

    Args:
        same: False where it computes something else, and is not compared.
    """
    device, leaves = str(inputs.q.device), (inputs.q, inputs.k, inputs.v)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(way(), leaves, inputs.back)

    found: dict[str, float] = {}
    if same:
        full = [each.detach().float().requires_grad_() for each in leaves]
        q, k, v = full
        wanted = as_it_is(q, k, v, q @ inputs.r.float().mT, inputs.filled, inputs.past_len)
        found["difference"] = distance(way(), wanted)
        for name, mine, other in zip(
            "qkv", both(), torch.autograd.grad(wanted, full, inputs.back.float()), strict=True
        ):
            found[f"difference of d{name}"] = distance(mine, other)
        del wanted
    with torch.no_grad():
        found["forward ms"] = milliseconds(way, device)
    found["both ms"] = milliseconds(both, device)
    found["TFLOP/s"] = inputs.flops / found["both ms"] / 1e9
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    inputs = Inputs.random(TINY if options.tiny else FULL, options.device)
    made = ways(inputs)
    if options.way not in made:
        parser.error(f"no way {options.way!r}; allowed: {', '.join(made)}")
    print(json.dumps(timed(made[options.way](), inputs)))


if __name__ == "__main__":
    main()
