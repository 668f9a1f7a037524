"""Settings of small trainers of every kind, and bitwise comparison of runs."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch

from streamlm.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]

MODEL: dict[str, object] = {
    **{"n_layers": 2, "d_model": 32, "n_heads": 2, "head_dim": 16, "d_ff": 64},
    **{"segment_len": 16, "memory_len": 16, "compressed_len": 8, "compression_rate": 4},
}
TRAIN: dict[str, object] = {
    **{"steps": 6, "batch_size": 3, "learning_rate": 1e-2, "warmup_steps": 2},
    **{"checkpoint_steps": 3, "eval_steps": 100, "eval_tokens": 100, "log_steps": 1},
}
# Every compression and compression loss, and other settings that change the arithmetic.
VARIANTS: dict[str, dict[str, object]] = {
    "conv": {"compression_loss": "attention-reconstruction", "dropout": 0.1},
    "dilated": {"compression": "dilated", "compression_loss": "auto-encoding", "accumulate": 2},
    "bptt": {"compression_loss": "bptt", "unroll": 3, "attention_dropout": 0.1, "norm": "pre"},
    "most-used": {"compression": "most-used", "compression_loss": "none"},
    "select": {"compression": "select", "compression_loss": "joint-attention-reconstruction"},
    "max": {"compression": "max", "compression_loss": "none", "accumulate": 2, "unroll": 2},
    "plain": {"compressed_len": 0, "compression_loss": "none", "shared_bias": True},
    "bfloat16": {"precision": "bfloat16"},
    "parts": {"rows_at_once": 2, "accumulate": 2, "unroll": 2, "dropout": 0.1},
    **{
        head: {"head": head, "memory_len": 0, "compressed_len": 0, "compression_loss": "none"}
        for head in ("recurrent", "full")
    },
    "linformer": {
        **{"head": "linformer", "compressed_len": 0, "compression_loss": "none"},
        "projected_len": 4,
    },
    "sinks": {"head": "sinks", "compressed_len": 0, "compression_loss": "none"},
    "informer": {
        **{"head": "informer", "compressed_len": 0, "compression_loss": "none", "factor": 1},
    },
    "sketch": {"head": "sketch", "compression_loss": "none", "coverage": 0.1, "dropout": 0.1},
}


def gradients(trainer: Trainer, steps: int = 1) -> dict[str, torch.Tensor]:
    """The gradients that reach the optimiser at the last of several steps."""
    found: dict[str, torch.Tensor] = {}
    step = trainer.optimizer.step

    def look(*args: Any) -> Any:
        found.update(
            (name, weight.grad.clone())
            for name, weight in trainer.model.named_parameters()
            if weight.grad is not None
        )
        return step(*args)

    trainer.optimizer.step = look  # type: ignore[method-assign]
    list(islice(trainer.run(), steps))
    trainer.optimizer.step = step  # type: ignore[method-assign]
    return found


def everything(trainer: Trainer) -> dict[str, Any]:
    """The complete state of a run."""
    return {
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "states": [vars(state) for state in trainer.states],
        "batches": [batches.state() for batches in trainer.batches],
        "counts": [trainer.step, trainer.tokens],
        "random": torch.get_rng_state(),
    }


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            if name != "cache":
                yield name
                yield from leaves(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def assert_identical(a: Any, b: Any) -> None:
    """Assert bitwise equality, tensors included."""
    for one, other in zip(leaves(a), leaves(b), strict=True):
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, (one, other)
