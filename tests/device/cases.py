"""What the device tests share: small models of every kind, a text, trainers."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from streamlm.config import ModelConfig
from streamlm.models.build import MODELS, build_model
from streamlm.models.llama import LlamaModel
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.trainer import Trainer
from tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]

SHAPE: dict[str, Any] = {
    **{"vocab_size": 96, "n_layers": 2, "d_model": 32, "n_heads": 2, "head_dim": 16, "d_ff": 64},
    **{"segment_len": 16, "memory_len": 32, "compressed_len": 16, "init_std": 0.2},
    **{"norm": "pre", "final_norm": True, "compression_loss": "none"},
}
NO_SLOTS = {"memory_len": 0, "compressed_len": 0}
# Every head, and the settings of the first one that take other paths through the code.
VARIANTS: dict[str, dict[str, Any]] = {
    "relative": {"compression": "conv", "compression_loss": "attention-reconstruction"},
    "most-used": {"compression": "most-used"},
    "select": {"compression": "select", "compression_loss": "joint-attention-reconstruction"},
    "adaptive": {"compression": "mean", "cutoffs": (20, 50), "div_val": 2},
    "recurrent": {"head": "recurrent", **NO_SLOTS},
    "full": {"head": "full", **NO_SLOTS},
    "linformer": {"head": "linformer", "compressed_len": 0, "projected_len": 4},
    "informer": {"head": "informer", "compressed_len": 0, "factor": 2},
    "sinks": {"head": "sinks", "compressed_len": 0, "pinned_len": 4},
    "sketch": {"head": "sketch", "coverage": 0.1},
    "llama": {
        "head": "llama",
        "n_kv_heads": 1,
        "compression": "select",
        "compression_loss": "joint-attention-reconstruction",
        "slots": "weights",
    },
    "llama-most-used": {"head": "llama", "compression": "most-used", "slots": "weights"},
}
# Their slots round: on another processor a last bit of float32 may become another slot.
COARSE: dict[str, dict[str, Any]] = {
    "bfloat16-slots": {**VARIANTS["llama"], "slots": "bfloat16"},
    "int8-slots": {**VARIANTS["llama-most-used"], "slots": "int8"},
}
SENTENCE = "The whale, the whale! Up helm, up helm! "
BOOK = SENTENCE * 12


def config_of(variant: str, **options: Any) -> ModelConfig:
    """The small model of a variant; ids from 0 to 95 unless `vocab_size` differs."""
    values = {**SHAPE, **{**VARIANTS, **COARSE}[variant], **options}
    if values.get("cutoffs") and values["vocab_size"] > SHAPE["vocab_size"]:
        values["cutoffs"] = (1000, 4000)
    head = MODELS[values.get("head", "relative")]
    if head is LlamaModel:
        values.pop("dropout", None)
    return head.settings.from_dict(values)


@cache
def bundled_tokenizer() -> Tokenizer:
    return load_tokenizer(ROOT / "streamlm" / "assets" / "books" / "tokenizer.model")


@cache
def corpus(copies: int = 8) -> Corpus:
    """A corpus of identical documents."""
    ids = bundled_tokenizer().encode(BOOK).astype(np.uint16)
    n_words = len(BOOK.split())
    return Corpus(
        np.concatenate([ids] * copies),
        np.arange(copies + 1) * len(ids),
        len(BOOK) * copies,
        n_words * copies,
    )


def saved(folder: Path, variant: str) -> Path:
    """The directory of a checkpoint with the bundled tokenizer and random weights."""
    tokenizer = bundled_tokenizer()
    torch.manual_seed(1)
    model = build_model(config_of(variant, vocab_size=tokenizer.vocab_size))
    save_checkpoint(folder / variant, model, tokenizer)
    return folder / variant


def loaded(folder: Path, variant: str, device: str) -> Checkpoint:
    """A random checkpoint on a device, in float32, which every device computes in."""
    return load_checkpoint(saved(folder, variant), device=device, dtype=torch.float32)


def trainer_of(
    folder: Path, device: str, variant: str, *, model: dict[str, Any] | None = None, **options: Any
) -> Trainer:
    """A trainer for six steps, which saves and evaluates after the third and the last."""
    tokenizer = bundled_tokenizer()
    values: dict[str, Any] = {
        **{"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2},
        **{"checkpoint_steps": 3, "eval_steps": 3, "eval_tokens": 200, "log_steps": 1},
    }
    return Trainer(
        config_of(variant, vocab_size=tokenizer.vocab_size, **{"dropout": 0.1, **(model or {})}),
        TrainConfig.from_dict({**values, **options}),
        tokenizer=tokenizer,
        train=corpus(),
        valid=corpus(2),
        folder=folder,
        device=device,
    )
