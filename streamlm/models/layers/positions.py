"""Sinusoidal position tables, relative and absolute, and buckets of distances.

Distances are measured in slots: the key `delta` columns before a query has distance `delta`, for
uncompressed and compressed slots alike (compressed memory, memory and segment are concatenated, as
in the Compressive Transformer).
"""

import torch
from torch import Tensor


def sinusoid(
    n: int, d_model: int, *, clamp: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Encodings of the distances n-1, n-2, …, 0, in this order: [n, d_model], float32.

    Distances are clamped to `clamp`, so that a model can use a longer memory than in training
    (clamp_len of the original Transformer-XL code); 0 disables clamping.

    R_δ = [sin(δω); cos(δω)] with ω_i = 10000^(-2i/d): the halves are concatenated, not
    interleaved (Transformer-XL, §3.3 and its code). Angles are computed in float64: in bfloat16,
    the angle of a distant position is off by more than a radian.
    """
    distance = torch.arange(n - 1, -1, -1, dtype=torch.float64, device="cpu")
    if clamp:
        distance = distance.clamp(max=clamp)
    return absolute(distance, d_model).float().to(device)


def absolute(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal encoding of positions, sines first: [...] → [..., width], float64."""
    index = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angle = positions[..., None].double() * torch.pow(10000.0, -index / width)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def buckets(n: int, *, begin: int, per_octave: int) -> Tensor:
    """Logarithmic buckets of the distances 0 to n-1: [n] int64.

    Distances up to `begin` are in bucket 0; each octave above has `per_octave` buckets.
    """
    octaves = (torch.arange(n, dtype=torch.float64, device="cpu") / begin).clamp(min=1).log2()
    return (octaves * per_octave).floor().long()
