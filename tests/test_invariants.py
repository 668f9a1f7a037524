"""The invariants over every compression, norm, precision and over the odd shapes."""

import pytest
import torch

from streamlm.config import COMPRESSIONS, NORMS
from streamlm.model import Model
from tests import invariants
from tests.invariants import tiny_model

KINDS: dict[str, dict[str, object]] = {
    f"{compression}-{norm}": {"compression": compression, "norm": norm}
    for compression in COMPRESSIONS
    for norm in NORMS
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
    "bptt": {"compression_loss": "bptt", "compression": "dilated"},
}
MODELS = {**KINDS, **SHAPES}
# Logits and slots are around 1, so these are some hundred roundings of each precision.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5}

everywhere = pytest.mark.parametrize("name", MODELS)
in_both_precisions = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])


def build(name: str, dtype: torch.dtype) -> Model:
    return tiny_model(dtype=dtype, **MODELS[name])


@everywhere
@in_both_precisions
def test_chunking(name: str, dtype: torch.dtype) -> None:
    invariants.check_chunking(build(name, dtype), tolerance=TOLERANCE[dtype])


@everywhere
@in_both_precisions
def test_causality(name: str, dtype: torch.dtype) -> None:
    invariants.check_causality(build(name, dtype))


@everywhere
@in_both_precisions
def test_purity(name: str, dtype: torch.dtype) -> None:
    invariants.check_purity(build(name, dtype))


@everywhere
@in_both_precisions
def test_rows(name: str, dtype: torch.dtype) -> None:
    invariants.check_rows(build(name, dtype), tolerance=TOLERANCE[dtype])


@everywhere
def test_bounded(name: str) -> None:
    invariants.check_bounded(build(name, torch.float32))


@everywhere
@pytest.mark.parametrize(
    "dtype", [*TOLERANCE, torch.bfloat16], ids=["float64", "float32", "bfloat16"]
)
def test_resume(name: str, dtype: torch.dtype) -> None:
    invariants.check_resume(build(name, dtype))
