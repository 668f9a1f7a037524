"""Invariants of every compression, head, norm, precision and edge-case shape."""

import pytest
import torch

from streamlm.config import COMPRESSIONS, NORMS
from streamlm.models.transformer_xl import TransformerXL
from tests.support import invariants
from tests.support.invariants import tiny_model
from tests.support.phases import check_phases
from tests.support.threads import check_threads

# A compression sees what a norm leaves, whichever it is: with "pre", one that learns and one that
# counts attention stand for all.
KINDS: dict[str, dict[str, object]] = {
    f"{compression}-{norm}": {"compression": compression, "norm": norm}
    for compression in COMPRESSIONS
    for norm in NORMS
    if norm == "post" or compression in ("conv", "most-used")
}
SHAPES: dict[str, dict[str, object]] = {
    "no-compression": {"compressed_len": 0, "memory_len": 5},
    "short-memory": {"memory_len": 2},
    "no-memory": {"memory_len": 0},
    "nothing-kept": {"memory_len": 0, "compressed_len": 0},
    "few-compressed": {"compressed_len": 1},
    "even": {"memory_len": 8, "compressed_len": 6},
    "rate-1": {"compression_rate": 1, "memory_len": 7},
    "one-token-segments": {"segment_len": 1, "compression_rate": 1},
    "shared-bias": {"shared_bias": True, "norm": "pre", "final_norm": True},
    "adaptive": {"cutoffs": (4, 7), "div_val": 2, "clamp_len": 5},
    "adaptive-one-table": {"cutoffs": (4, 7), "embed_dim": 6},
    "bptt": {"compression_loss": "bptt", "compression": "dilated"},
}
RECURRENT: dict[str, object] = {"head": "recurrent", "memory_len": 0, "compressed_len": 0}
LINFORMER: dict[str, object] = {
    "head": "linformer", "memory_len": 8, "compressed_len": 0, "projected_len": 2
}  # fmt: skip
INFORMER: dict[str, object] = {
    "head": "informer", "memory_len": 8, "compressed_len": 0, "factor": 1
}  # fmt: skip
SINKS: dict[str, object] = {
    "head": "sinks", "memory_len": 5, "compressed_len": 0, "pinned_len": 2
}  # fmt: skip
SKETCH: dict[str, object] = {
    "head": "sketch", "memory_len": 8, "compressed_len": 5, "compression_rate": 3
}  # fmt: skip
HEADS: dict[str, dict[str, object]] = {
    "informer-post": INFORMER,
    "informer-pre": {**INFORMER, "norm": "pre", "shared_bias": True},
    "informer-no-memory": {**INFORMER, "memory_len": 0},
    "linformer-post": LINFORMER,
    "linformer-pre": {**LINFORMER, "norm": "pre", "sharing": "none", "shared_bias": True},
    "linformer-conv": {**LINFORMER, "projection": "conv", "sharing": "headwise"},
    "linformer-no-memory": {**LINFORMER, "memory_len": 0},
    "sinks-post": SINKS,
    "sinks-pre": {**SINKS, "norm": "pre", "memory_len": 8, "pinned_len": 3, "clamp_len": 6},
    "sinks-short-memory": {**SINKS, "memory_len": 2},
    "sinks-no-memory": {**SINKS, "memory_len": 0, "pinned_len": 4},
    "recurrent-post": RECURRENT,
    "sketch-post": SKETCH,
    "sketch-pre": {**SKETCH, "norm": "pre", "shared_bias": True, "memory_len": 4},
    "sketch-covered": {**SKETCH, "coverage": 0.5},
    "sketch-no-runs": {**SKETCH, "compressed_len": 0, "coverage": 0.5},
    "sketch-no-memory": {**SKETCH, "compressed_len": 0, "memory_len": 0},
    "recurrent-pre": {**RECURRENT, "norm": "pre", "final_norm": True},
}
LLAMA: dict[str, object] = {"head": "llama", "pinned_len": 2}
LLAMAS: dict[str, dict[str, object]] = {
    "llama-select": LLAMA,
    "llama-most-used": {**LLAMA, "compression": "most-used"},
    "llama-mean": {**LLAMA, "compression": "mean", "memory_len": 6},
    "llama-window": {**LLAMA, "compressed_len": 0, "memory_len": 5},
    "llama-short-memory": {**LLAMA, "compressed_len": 0, "memory_len": 2},
    "llama-no-memory": {**LLAMA, "compressed_len": 0, "memory_len": 0},
    "llama-no-pinned": {**LLAMA, "pinned_len": 0},
    "llama-many-pinned": {**LLAMA, "pinned_len": 4},
    "llama-one-group": {**LLAMA, "n_kv_heads": 2},
    "llama-qwen": {**LLAMA, "qk_norm": True, "qkv_bias": True, "tied": False},
}
FULL: dict[str, object] = {"head": "full", "memory_len": 0, "compressed_len": 0}
GROWING: dict[str, dict[str, object]] = {"full-post": FULL, "full-pre": {**FULL, "norm": "pre"}}
MODELS = {**KINDS, **SHAPES, **HEADS, **LLAMAS, **GROWING}
# Logits and slots are around 1, so these are a few hundred ulps of each precision.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5}

# Effects of norms and shapes are checked in the higher precision; that float32 differs by its
# rounding alone, once for each kind.
CASES = [(name, torch.float64) for name in MODELS] + [
    (name, torch.float32) for name in MODELS if name.endswith("-post")
]

everywhere = pytest.mark.parametrize("name", MODELS)
in_both_precisions = pytest.mark.parametrize(
    ("name", "dtype"), CASES, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in CASES]
)


def build(name: str, dtype: torch.dtype, **options: object) -> TransformerXL:
    return tiny_model(dtype=dtype, **MODELS[name], **options)


@in_both_precisions
def test_chunking(name: str, dtype: torch.dtype) -> None:
    invariants.check_chunking(build(name, dtype), tolerance=TOLERANCE[dtype])


@everywhere
def test_causality(name: str) -> None:
    invariants.check_causality(build(name, torch.float32))


@everywhere
def test_purity(name: str) -> None:
    invariants.check_purity(build(name, torch.float32))


@everywhere
def test_rows(name: str) -> None:
    invariants.check_rows(build(name, torch.float64), tolerance=TOLERANCE[torch.float64])


@everywhere
def test_phases(name: str) -> None:
    check_phases(build(name, torch.float64), tolerance=TOLERANCE[torch.float64])


@everywhere
def test_threads(name: str) -> None:
    """Often for one model of each class, and one that counts attention."""
    often = name in (*HEADS, *GROWING) and name.endswith("-post")
    often |= name in ("most-used-post", "llama-select")
    check_threads(build(name, torch.float32), rounds=20 if often else 6)


@everywhere
@torch.no_grad()
def test_prefill(name: str) -> None:
    invariants.check_prefill(build(name, torch.float32))


@everywhere
def test_reset(name: str) -> None:
    invariants.check_reset(build(name, torch.float64), tolerance=TOLERANCE[torch.float64])


@everywhere
def test_resume(name: str) -> None:
    invariants.check_resume(build(name, torch.float32))


@pytest.mark.parametrize(
    "name", ["conv-pre", "most-used-post", "dilated-post", "short-memory", *HEADS]
)
def test_resume_in_bfloat16(name: str) -> None:
    invariants.check_resume(build(name, torch.bfloat16))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in GROWING])
def test_bounded(name: str) -> None:
    invariants.check_bounded(build(name, torch.float32, n_layers=1))


@pytest.mark.parametrize("name", GROWING)
def test_growing_states_are_detected(name: str) -> None:
    with pytest.raises(AssertionError, match="bytes"):
        invariants.check_bounded(build(name, torch.float32, n_layers=1), n_segments=9)
