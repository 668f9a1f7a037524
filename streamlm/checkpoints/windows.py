"""Default windows of Llama-family models, by the length of text that they were trained on."""

from typing import Any

from streamlm.config import require

SINKS = 4
RATE = 4


def default_windows(context_len: int) -> dict[str, Any]:
    """Settings of the windows: the defaults of LlamaConfig, or shorter ones that fit the context.

    Raises:
        ValueError: the context is too short for any.
    """
    segment = min(256, (context_len - SINKS) // 5 // RATE * RATE)
    require(segment >= RATE, "context length", context_len, f"at least {SINKS + 5 * RATE} tokens")
    lengths = {
        "segment_len": segment, "memory_len": 2 * segment, "compressed_len": segment * 3 // 2
    }  # fmt: skip
    return {**lengths, "pinned_len": SINKS, "compression_rate": RATE}
