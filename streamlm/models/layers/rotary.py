"""Rotary position embeddings, with the frequency scalings of Llama-family models.

Su et al., "RoFormer" (2021). Halves are split, as in Hugging Face checkpoints: dimension i is
rotated with dimension i + E/2. Scalings: "linear" (Chen et al. 2023), "llama3" (Llama 3.1),
"yarn" (Peng et al. 2023). Scalings that depend on the length of the text are not supported: a
stream has none.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from streamlm.config import any_of, require

SCALINGS = ("default", "linear", "llama3", "yarn")
# Numbers that each scaling needs, and those that it allows with their defaults.
NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
YARN: dict[str, float] = {"beta_fast": 32.0, "beta_slow": 1.0}
ALLOWED = {"yarn": (*YARN, "attention_factor", "mscale", "mscale_all_dim", "truncate")}


def check_scaling(scaling: Mapping[str, Any]) -> None:
    """Validate `LlamaConfig.rope_scaling`.

    Raises:
        ValueError: names the setting, the given and the allowed value.
    """
    if not scaling:
        return
    kind = scaling.get("rope_type", "default")
    require(kind in SCALINGS, "rope_scaling's rope_type", kind, any_of(SCALINGS))
    allowed = {"rope_type", *NEEDS[kind], *ALLOWED.get(kind, ())}
    for name in scaling:
        require(name in allowed, f"setting of rope_scaling {kind!r}", name, any_of(sorted(allowed)))
    for name in NEEDS[kind]:
        value = scaling.get(name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        require(good, f"rope_scaling's {name}", value, "a number above 0")


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """Radians per position of each pair of dimensions, [E/2] float32, and a factor of cos and sin.

    Args:
        scaling: see `check_scaling`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    plain = 1.0 / theta**exponents
    kind = scaling.get("rope_type", "default") if scaling else "default"
    if kind == "linear":
        return plain / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if kind == "yarn":
        return _yarn(plain, head_dim, theta, scaling)
    return plain, 1.0


def _llama3(plain: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are stretched by the factor, short ones not, and those between partly."""
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    smooth = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / factor + smooth * plain


def _yarn(
    plain: Tensor, head_dim: int, theta: float, scaling: Mapping[str, Any]
) -> tuple[Tensor, float]:
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        """The dimension that makes so many rotations within the context."""
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(scaling.get("beta_fast") or YARN["beta_fast"])
    high = dimension(scaling.get("beta_slow") or YARN["beta_slow"])
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if high == low else high
    ramp = ((torch.arange(head_dim // 2, device="cpu").float() - low) / (high - low)).clamp(0, 1)
    mixed = plain / factor * ramp + plain * (1 - ramp)
    return mixed, _attention_factor(factor, scaling)


def _attention_factor(factor: float, scaling: Mapping[str, Any]) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    some, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if some and all_dims:
        return temperature(some) / temperature(all_dims)
    return temperature(1.0)


def rotation(frequencies: Tensor, factor: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of positions, which can be fractions: [n] → two [n, E] float32; see `rotate`."""
    angles = positions.float()[:, None] * frequencies.float()
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head by its position.

    Every element is computed by itself, so the result does not depend on the other rows.

    Args:
        heads: [..., n, E].
        cos, sin: [..., n, E] from `rotation`, broadcast; sin is negative in the first half.
    """
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return (heads * cos).add_(swapped * sin)
