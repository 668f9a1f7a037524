"""A tiny random model that chats: a Llama with byte-level BPE and a ChatML template."""

from pathlib import Path

from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tests.support.pretrained import settings, weights, write_huggingface

# A few turns outlive its memory.
CHAT_WINDOWS = {"segment_len": 16, "memory_len": 32, "compressed_len": 8, "pinned_len": 2}


def chat_folder(folder: Path, *, seed: int = 1) -> Path:
    """A directory as of Hugging Face."""
    values = settings("llama")
    return write_huggingface(folder, values, weights(values, seed=seed))


def load_chat(folder: str | Path) -> Checkpoint:
    # What a random model writes differs by precision, and the processor chooses it by default.
    windows = {**CHAT_WINDOWS, "precision": "float32"}
    return load_checkpoint(folder, device="cpu", settings=windows)
