"""The models that `streamlm compare` puts side by side: one part exchanged, the rest alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from streamlm.config import TRAINED_BY, ModelConfig
from streamlm.lab.causality import gate
from streamlm.models.build import build_model

UNTRAINED = ("max", "mean", "most-used")
# What the others are compared with: as many slots, none of them compressed.
DROP = "drop, same slots"
# A model that compresses nothing.
PLAIN: dict[str, Any] = {"compressed_len": 0, "compression_loss": "none"}


@dataclass(frozen=True)
class Variant:
    """A model that differs from the recipe's in its memory alone."""

    name: str
    config: ModelConfig


def ablation(base: ModelConfig) -> list[Variant]:
    """Compression × loss (Compressive Transformer, table 6), our own, and the three controls.

    The controls have no compressed memory, but more memory: as many slots as the others (what
    they drop is gone), or as many as all that the others' slots stand for (nothing is compressed).
    """
    c_len, rate = base.compressed_len, base.compression_rate

    def plain(slots: int) -> ModelConfig:
        return replace(base, memory_len=slots, compressed_len=0, compression_loss="none")

    variants = [
        Variant("drop, memory alone", plain(base.memory_len)),
        Variant(DROP, plain(base.memory_len + c_len)),
        Variant("not compressed, same reach", plain(base.memory_len + rate * c_len)),
    ]
    for compression in (*UNTRAINED, *TRAINED_BY):
        for loss in TRAINED_BY.get(compression, ("none",)):
            if compression == "select" and loss == "none":
                continue  # a gate that nothing trains chooses at random
            name = compression if compression in UNTRAINED else f"{compression}, {loss}"
            changed = replace(base, compression=compression, compression_loss=loss)
            variants.append(Variant(name, changed))
    return variants


def heads(base: ModelConfig) -> list[Variant]:
    """Ways to treat the past, with as many parameters as the recipe's model (within 2 %), and as
    many bytes of state; "full" has as many as it reads.

    Raises:
        ValueError: no feed-forward width makes the parameters as many.
    """
    slots = base.compressed_len + base.memory_len
    plain = replace(base, memory_len=slots, compressed_len=0, compression_loss="none")
    whole = replace(plain, memory_len=slots // base.segment_len * base.segment_len)
    # The sketch needs a whole segment in memory before what it merges.
    recent = min(max(base.memory_len, base.segment_len), slots) // base.segment_len
    recent *= base.segment_len
    shorter = max(1, base.segment_len // base.compression_rate)
    # A recurrence carries matrices of E · E for each head instead of slots of D.
    square = math.isqrt(slots * base.d_model // base.n_heads)
    variants = {
        "compressed": base,
        "window": plain,
        "sinks": replace(plain, head="sinks", memory_len=slots - base.pinned_len),
        "linformer": replace(whole, head="linformer", projected_len=shorter),
        "informer": replace(whole, head="informer"),
        "sketch": replace(
            plain,
            head="sketch",
            memory_len=recent,
            compressed_len=slots - recent if recent else 0,
        ),
        "recurrent": replace(plain, head="recurrent", memory_len=0, head_dim=square),
        "full": replace(plain, head="full", memory_len=0),
    }
    wanted = n_parameters(base)
    return [Variant(name, as_large(config, wanted)) for name, config in variants.items()]


def n_parameters(config: ModelConfig) -> int:
    """Weights of a model, which is not built."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(config).parameters())


def as_large(config: ModelConfig, wanted: int) -> ModelConfig:
    """The same with a feed-forward width that makes it have about `wanted` weights.

    Raises:
        ValueError: none comes within 2 %.
    """
    of_one = n_parameters(replace(config, d_ff=2)) - n_parameters(replace(config, d_ff=1))
    d_ff = max(1, config.d_ff + round((wanted - n_parameters(config)) / of_one))
    found = replace(config, d_ff=d_ff)
    n = n_parameters(found)
    if abs(n - wanted) > 0.02 * wanted:
        raise ValueError(
            f"head {config.head!r} has {n:,} parameters with d_ff = {d_ff}; {wanted:,} are wanted"
        )
    return found


def admitted(variants: Sequence[Variant]) -> tuple[list[Variant], dict[str, str]]:
    """The variants that do not look ahead, and by name, where each of the others does."""
    leaks = {variant.name: gate(variant.config) for variant in variants}
    refused = {name: leak for name, leak in leaks.items() if leak is not None}
    return [variant for variant in variants if variant.name not in refused], refused


@dataclass(frozen=True)
class Comparison:
    """What is exchanged, and which variant the others are compared with.

    Attributes:
        alike: all begin with the same weights, but for what is exchanged.
        measured: more than their loss is measured; see `laboratory`.
    """

    variants: Callable[[ModelConfig], list[Variant]]
    reference: str
    alike: bool = True
    measured: bool = False


COMPARISONS = {
    "ablation": Comparison(ablation, DROP),
    "heads": Comparison(heads, "window", alike=False, measured=True),
}
