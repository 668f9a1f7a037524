"""The same computation on two devices, or in two precisions: how far apart the results are.

`tests/test_cuda.py` asserts on these figures, `benchmarks.gpu` writes them down.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from streamlm.config import COMPRESSIONS, TRAINED_BY, ModelConfig
from streamlm.models.base import Model
from streamlm.models.build import build_model
from streamlm.models.cache import Cache
from streamlm.models.compression_losses import compression_loss
from streamlm.runtime.stream import advance, score
from streamlm.sessions.snapshots import to_snapshot, to_state
from streamlm.state import State
from streamlm.training.losses import language_model_loss

SEGMENTS = 6  # enough that the compressed memory is full and forgets

CASES = [
    (kind, loss)
    for kind in COMPRESSIONS
    for loss in TRAINED_BY.get(kind, ("none",))
    if loss not in ("none", "bptt") or kind not in TRAINED_BY
]


def small_config(compression: str = "conv", loss: str = "none", **options: Any) -> ModelConfig:
    """A model that is small, but has every part."""
    shape: dict[str, Any] = {
        **{"vocab_size": 96, "n_layers": 2, "d_model": 32, "n_heads": 2, "head_dim": 16},
        **{"d_ff": 64, "segment_len": 16, "memory_len": 32, "compressed_len": 16},
        **{"norm": "pre", "final_norm": True, "init_std": 0.2},
    }
    return ModelConfig(compression=compression, compression_loss=loss, **{**shape, **options})


def seeded_model(config: ModelConfig) -> Model:
    torch.manual_seed(0)
    return build_model(config).eval()


def some_tokens(config: ModelConfig, n: int, *, rows: int = 3) -> Tensor:
    """[rows, n] ids, always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (rows, n), generator=generator)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float32 without TF32: convolutions use it on CUDA unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def train_segments(
    model: Model, tokens: Tensor, *, precision: str = "float32"
) -> dict[str, Tensor | State]:
    """Segments as the trainer reads them, with the gradient of all losses together.

    Args:
        tokens: [B, n + 1], n a multiple of the segment length.
    """
    t, device = model.config.segment_len, model.device
    tokens = tokens.to(device)
    model.zero_grad()
    state, logits = model.init_state(len(tokens)), []
    language, auxiliary = (torch.zeros((), device=device) for _ in range(2))
    context: Any = contextlib.nullcontext()
    if precision == "bfloat16":
        context = torch.autocast(device.type, dtype=torch.bfloat16)
    n = tokens.shape[1] - 1
    for start in range(0, n, t):
        with context:
            found, state = model(tokens[:, start : start + t], state)
            targets = tokens[:, start + 1 : start + t + 1]
            language = language + language_model_loss(found, targets) / (n * len(tokens))
            state, eviction = model.commit(state)
            if eviction is not None:
                auxiliary = auxiliary + compression_loss(model, eviction).float()
        logits.append(found.detach().float())
    (language + auxiliary).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {
        "logits": torch.cat(logits, dim=1),
        "language_loss": language.detach(),
        "compression_loss": auxiliary.detach(),
        "past": state.past.detach().float(),
        "usage": state.usage.detach(),
        "gradient": gradient,
    }


def distance(one: Any, other: Any) -> float:
    """Largest difference, in units of the other's largest value."""
    a, b = one.detach().double().cpu(), other.detach().double().cpu()
    if not b.numel():
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


def between_devices(compression: str, loss: str, device: str) -> dict[str, float]:
    """Training on the CPU and on `device`, float32: logits, state, losses and gradients."""
    config = small_config(compression, loss)
    model = seeded_model(config)
    tokens = some_tokens(config, SEGMENTS * config.segment_len + 1)
    with exact():
        here = train_segments(model, tokens)
        there = train_segments(copy.deepcopy(model).to(device), tokens)
    return {name: distance(there[name], here[name]) for name in here}


def between_precisions(compression: str, loss: str, device: str) -> dict[str, float]:
    """Training under bfloat16 autocast and in float32, both on `device`."""
    config = small_config(compression, loss)
    model = seeded_model(config).to(device)
    tokens = some_tokens(config, SEGMENTS * config.segment_len + 1)
    full = train_segments(model, tokens)
    half = train_segments(model, tokens, precision="bfloat16")
    return {name: distance(half[name], full[name]) for name in full}


def streaming(config: ModelConfig, device: str, *, at_once: int = 1) -> dict[str, float]:
    """Log-probabilities of a stream on `device`, token by token, and on the CPU, in one call.

    Args:
        at_once: tokens that `device` reads at a time.
    """
    model = seeded_model(config)
    tokens = some_tokens(config, SEGMENTS * config.segment_len - 3)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    model, cache = model.freeze(), Cache()
    other = copy.deepcopy(model).to(device)
    with exact():
        whole, state = score(model, inputs, targets, model.init_state(len(inputs)))
        there, pieces = other.init_state(len(inputs)), []
        for i in range(0, inputs.shape[1], at_once):
            columns = slice(i, i + at_once)
            found, there = score(
                other,
                inputs[:, columns].to(device),
                targets[:, columns].to(device),
                there,
                cache,
            )
            pieces.append(found)
    return {
        "log_probabilities": distance(torch.cat(pieces, dim=1), whole),
        "past": distance(there.past, state.past),
    }


def moved(compression: str, device: str) -> dict[str, float]:
    """A state saved on the CPU, loaded on `device`, and gone on from on both."""
    config = small_config(compression)
    model = seeded_model(config)
    tokens = some_tokens(config, SEGMENTS * config.segment_len, rows=1)
    cut = tokens.shape[1] // 2 + 3
    other = copy.deepcopy(model).to(device)
    with exact():
        _, state = advance(model, tokens[:, :cut], model.init_state(1))
        log = tokens[0, :cut].numpy()
        saved = to_snapshot(state, model, arrays={}, tokens=log, attributes={})
        loaded = to_state(saved, other)
        same = loaded.digest() == state.digest()
        last, state = advance(model, tokens[:, cut:], state)
        found, loaded = advance(other, tokens[:, cut:].to(device), loaded)
    return {
        "loaded_differently": float(not same),
        "hidden": distance(found, last),
        "past": distance(loaded.past, state.past),
    }
