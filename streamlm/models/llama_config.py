"""LlamaConfig: shape of a Llama-family model, and of the windows it reads through."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamlm.config import JOINT, ModelConfig, any_of, check_compression, require
from streamlm.models.layers.rotary import check_scaling

SLOTS = ("weights", "float32", "bfloat16", "int8")
POLICIES = ("mean", "most-used", "select")
# Settings that do not change the weights: those of the windows.
WINDOWS = (
    *("segment_len", "memory_len", "compressed_len", "compression_rate", "compression"),
    *("compression_loss", "pinned_len", "slots"),
)
# Settings of ModelConfig that a Llama does not have, with their only value.
FIXED: dict[str, object] = {
    **{"norm": "pre", "final_norm": True, "shared_bias": False, "cutoffs": (), "clamp_len": 0},
    **{"dropout": 0.0, "attention_dropout": 0.0, "coverage": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """Shape of a Llama, SmolLM, Qwen or Mistral; see `ModelConfig` for the inherited settings.

    Attributes:
        n_kv_heads: heads of keys and values; a divisor of n_heads.
        norm_eps: ε of the RMS norms.
        rope_theta: base of the rotary frequencies.
        rope_scaling: as in a Hugging Face config.json; see `layers.rotary`. {} for none.
        qkv_bias: biases on queries, keys and values (Qwen2).
        qk_norm: RMS norm of every query and key head, before rotation (Qwen3).
        tied: the output layer is the embedding.
        context_len: positions that the model was trained on.
        pinned_len: S, first tokens of a stream that stay visible (attention sinks).
        slots: precision of slots: "weights" for that of the weights, "float32", "bfloat16", or
            "int8" (bfloat16 whose values fit 8 bits and a shared exponent, which a store packs).
    """

    n_kv_heads: int = 1
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    context_len: int = 2048
    slots: str = "bfloat16"
    head: str = "llama"
    norm: str = "pre"
    final_norm: bool = True
    segment_len: int = 256
    memory_len: int = 512
    compressed_len: int = 384
    compression: str = "most-used"
    compression_loss: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.head == "llama", "head", self.head, "'llama'")
        for name, wanted in FIXED.items():
            value = getattr(self, name)
            require(value == wanted, f"{name} with head 'llama'", value, repr(wanted))
        good = self.n_kv_heads >= 1 and self.n_heads % self.n_kv_heads == 0
        require(good, "n_kv_heads", self.n_kv_heads, f"a divisor of n_heads = {self.n_heads}")
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number")
        require(self.norm_eps > 0, "norm_eps", self.norm_eps, "a number above 0")
        require(self.rope_theta > 0, "rope_theta", self.rope_theta, "a number above 0")
        require(self.slots in SLOTS, "slots", self.slots, any_of(SLOTS))
        good = 0 <= self.pinned_len <= self.segment_len
        allowed = f"0 to segment_len = {self.segment_len}"
        require(good, "pinned_len", self.pinned_len, allowed)
        check_scaling(self.rope_scaling)
        good = self.columns <= self.context_len
        allowed = f"at most context_len = {self.context_len}"
        require(
            good, "pinned_len + compressed_len + memory_len + segment_len", self.columns, allowed
        )
        if self.compressed_len:
            require(self.compression in POLICIES, "compression", self.compression, any_of(POLICIES))
            losses = ("none", JOINT) if self.compression == "select" else ("none",)
            given = self.compression_loss
            require(given in losses, "compression_loss", given, any_of(losses))
        check_compression(self)

    @property
    def columns(self) -> int:
        """S + C + M + T, key columns of one layer."""
        return self.pinned_len + self.past_len + self.segment_len

    @property
    def slot_width(self) -> int:
        """2 · H_kv · E: a slot is the keys, before rotation, and values of a token."""
        return 2 * self.n_kv_heads * self.head_dim

    @property
    def architecture(self) -> dict[str, Any]:
        """All settings."""
        return self.to_dict()


def with_windows(config: LlamaConfig, settings: Mapping[str, Any]) -> LlamaConfig:
    """The configuration with other windows; the weights stay valid.

    Raises:
        ValueError: a setting is unknown or not a setting of the windows, or its value is refused.
    """
    for name in settings:
        require(name in WINDOWS, "setting", name, any_of(WINDOWS))
    return type(config).from_dict({**config.to_dict(), **settings})
