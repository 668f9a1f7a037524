"""Inference under autocast: every head reads, in pieces of any length."""

from typing import Any

import pytest
import torch

from streamlm.models.layers import ordered, products
from tests.support.invariants import random_tokens, read, tiny_model

NO_MEMORY = {"memory_len": 0, "compressed_len": 0}
HEADS: dict[str, dict[str, Any]] = {
    "relative": {"norm": "pre"},
    "most-used": {"compression": "most-used"},
    "recurrent": {"head": "recurrent", **NO_MEMORY},
    "full": {"head": "full", **NO_MEMORY},
    "linformer": {"head": "linformer", "memory_len": 8, "compressed_len": 0, "projected_len": 2},
    "informer": {"head": "informer", "memory_len": 8, "compressed_len": 0, "factor": 1},
    "sinks": {"head": "sinks", "memory_len": 5, "compressed_len": 0, "pinned_len": 2},
    "sketch": {"head": "sketch", "memory_len": 8, "compressed_len": 5, "compression_rate": 3},
    "llama": {"head": "llama", "pinned_len": 2},
}


@pytest.mark.parametrize("narrowest", [0, 128])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_reads_as_without(
    head: str, rows: int, narrowest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "NARROWEST", narrowest)
    monkeypatch.setattr(products, "FASTER", products.AVAILABLE)
    model = tiny_model(dtype=torch.float32, **HEADS[head])
    tokens, sizes = random_tokens(model, 30, rows=rows), (7, *[1] * 9, 14)
    wanted, _ = read(model, tokens, model.init_state(rows), sizes=sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = read(model, tokens, model.init_state(rows), sizes=sizes)
    assert found.isfinite().all()
    if head not in ("informer", "most-used"):  # they keep others where two are nearly equal
        error = (found.float() - wanted).square().mean().sqrt() / wanted.std()
        assert error < 0.1, f"off by {error} of the logits' deviation"
