"""Relative positions: the sinusoid table of Transformer-XL.

Distances are counted in slots: a query and the key `delta` columns before it stand `delta` apart,
whether that key is an uncompressed or a compressed slot (the `concat` reading of the Compressive
Transformer, where the three kinds of context are one row of slots).
"""

import torch
from torch import Tensor


def sinusoid(
    n: int, d_model: int, *, clamp: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Rows for the distances n-1, n-2, …, 0, oldest first: [n, d_model], float32.

    Distances above `clamp` count as `clamp`, so that a model may read a longer memory than it was
    trained with (Transformer-XL, the authors' clamp_len); 0 clamps nothing.

    R_δ = [sin(δω); cos(δω)] with ω_i = 10000^(-2i/d): the halves are concatenated, not
    interleaved (Transformer-XL, §3.3 and the authors' code). Always computed in float32: in
    bfloat16 the angle of a far position is off by more than a radian.
    """
    distance = torch.arange(n - 1, -1, -1, dtype=torch.float64, device="cpu")
    if clamp:
        distance = distance.clamp(max=clamp)
    return absolute(distance, d_model).float().to(device)


def absolute(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of any positions: [...] → [..., width], float64."""
    index = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angle = positions[..., None].double() * torch.pow(10000.0, -index / width)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def buckets(n: int, *, begin: int, per_octave: int) -> Tensor:
    """Buckets of the distances 0 to n-1, wider the further away: [n] int64.

    Distances up to `begin` are in bucket 0; from there on, each octave has as many.
    """
    octaves = (torch.arange(n, dtype=torch.float64, device="cpu") / begin).clamp(min=1).log2()
    return (octaves * per_octave).floor().long()
