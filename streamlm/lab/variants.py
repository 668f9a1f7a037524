"""The variants that `streamlm compare` trains: models that differ in one part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamlm.config import TRAINED_BY, ModelConfig
from streamlm.lab.causality import check_causal
from streamlm.models.build import HEADS, build_empty

UNTRAINED = ("max", "mean", "most-used")
# The reference: the same number of slots, none of them compressed.
DROP = "drop, same slots"
# Settings without compressed memory.
PLAIN: dict[str, Any] = {"compressed_len": 0, "compression_loss": "none"}


@dataclass(frozen=True)
class Variant:
    """A model that differs from the recipe's only in its memory."""

    name: str
    config: ModelConfig


def ablation(base: ModelConfig) -> list[Variant]:
    """Compression × loss (Compressive Transformer, table 6), our own, and three controls.

    The controls have no compressed memory: the same memory alone; as many slots as the others, all
    uncompressed; or one slot for every token that the others' slots cover.
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
                continue  # an untrained gate selects at random
            name = compression if compression in UNTRAINED else f"{compression}, {loss}"
            changed = replace(base, compression=compression, compression_loss=loss)
            variants.append(Variant(name, changed))
    return variants


def heads(base: ModelConfig) -> list[Variant]:
    """All heads, with the parameters of the recipe's model (within 2 %) and its bytes of state.

    The state of "full" grows with the stream.

    Raises:
        ValueError: no feed-forward width gives that number of parameters.
    """
    slots = base.compressed_len + base.memory_len
    variants = {
        "window" if name == base.head else name: replace(head.beside(base, slots), head=name)
        for name, head in HEADS.items()
    }
    variants = {"compressed": base, **variants}
    wanted = n_parameters(base)
    return [Variant(name, with_size(config, wanted)) for name, config in variants.items()]


def n_parameters(config: ModelConfig) -> int:
    """The number of weights of a model, computed without allocating it."""
    return sum(weight.numel() for weight in build_empty(config).parameters())


def with_size(config: ModelConfig, wanted: int) -> ModelConfig:
    """The same model with the feed-forward width that gives it about `wanted` weights.

    Raises:
        ValueError: no width comes within 2 %.
    """
    of_one = n_parameters(replace(config, d_ff=2)) - n_parameters(replace(config, d_ff=1))
    d_ff = max(1, config.d_ff + round((wanted - n_parameters(config)) / of_one))
    sized = replace(config, d_ff=d_ff)
    n = n_parameters(sized)
    if abs(n - wanted) > 0.02 * wanted:
        raise ValueError(
            f"head {config.head!r} has {n:,} parameters with d_ff = {d_ff}; {wanted:,} are wanted"
        )
    return sized


def causal_variants(variants: Sequence[Variant]) -> tuple[list[Variant], dict[str, str]]:
    """The causal variants, and the leak of each other variant by name (`check_causal`)."""
    leaks = {variant.name: check_causal(variant.config) for variant in variants}
    refused = {name: leak for name, leak in leaks.items() if leak is not None}
    return [variant for variant in variants if variant.name not in refused], refused


@dataclass(frozen=True)
class Comparison:
    """A set of variants, and the reference among them.

    Attributes:
        alike: all variants share the backbone's initial weights.
        measured: costs and recall are measured besides the loss; see `lab.costs`.
    """

    variants: Callable[[ModelConfig], list[Variant]]
    reference: str
    alike: bool = True
    measured: bool = False


COMPARISONS = {
    "ablation": Comparison(ablation, DROP),
    "heads": Comparison(heads, "window", alike=False, measured=True),
}
