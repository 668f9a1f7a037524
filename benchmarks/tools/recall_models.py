"""The models of `benchmarks.recall`, which differ in nothing but what they do with old slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamlm.config import COMPRESSIONS, TRAINED_BY, ModelConfig
from streamlm.lab.variants import heads

VOCAB, FAMILY = 512, 8  # chance is 1 / FAMILY
SEGMENT, MEMORY, COMPRESSED, RATE = 32, 32, 32, 4
ORACLE, WINDOW = "uncompressed, M + c·C slots", "window, M + C slots"
HEADS_BASE = "compressed, by conv"
SHAPE: dict[str, Any] = {
    **{"vocab_size": VOCAB, "n_layers": 2, "d_model": 64, "n_heads": 2, "head_dim": 32},
    **{"d_ff": 128, "segment_len": SEGMENT, "norm": "pre", "final_norm": True},
    # The usual 0.02 is too small for so narrow a model: nothing is learned for hundreds of steps.
    **{"compression_rate": RATE, "init_std": 0.1},
}


@dataclass(frozen=True)
class Entry:
    """A model to train: its name in the figures, and its configuration."""

    name: str
    config: ModelConfig

    @property
    def slots(self) -> int:
        return self.config.past_len

    @property
    def compressed(self) -> bool:
        return self.config.compressed_len > 0


def entries(compressions: Sequence[str] = COMPRESSIONS) -> list[Entry]:
    """The oracle, the window, and each compression with each loss that can train it.

    Raises:
        ValueError: an unknown compression; lists those that there are.
    """
    if wrong := sorted(set(compressions) - set(COMPRESSIONS)):
        raise ValueError(f"--compressions {' '.join(wrong)}; allowed: {', '.join(COMPRESSIONS)}")
    plain = {"compressed_len": 0, "compression_loss": "none"}
    found = [
        Entry(name, ModelConfig(**SHAPE, **plain, memory_len=slots))
        for name, slots in (
            (ORACLE, MEMORY + RATE * COMPRESSED),
            (WINDOW, MEMORY + COMPRESSED),
        )
    ]
    for compression in compressions:
        trained_by = [loss for loss in TRAINED_BY.get(compression, ()) if loss != "none"]
        for loss in trained_by or ["none"]:
            name = compression if loss == "none" else f"{compression}, {loss}"
            found.append(Entry(name, _config(compression, loss)))
    return found


def heads_entries() -> list[Entry]:
    """The oracle, the window, and every other head with as many parameters and bytes of state."""
    base = ModelConfig(**SHAPE, memory_len=MEMORY, compressed_len=COMPRESSED)
    others = [
        Entry(HEADS_BASE if variant.name == "compressed" else variant.name, variant.config)
        for variant in heads(base)
        if variant.name != "window"
    ]
    return [*entries([]), *others]


def _config(compression: str, loss: str) -> ModelConfig:
    return ModelConfig(
        **SHAPE,
        memory_len=MEMORY,
        compressed_len=COMPRESSED,
        compression=compression,
        compression_loss=loss,
    )
