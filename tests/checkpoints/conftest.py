"""A writer of checkpoints as of Hugging Face."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pretrained import settings, weights, write_huggingface


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of a shape."""

    def write(shape: str = "llama", *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        shards = options.pop("shards", 1)
        values = settings(shape, **options)
        return write_huggingface(
            tmp_path / "model", values, weights(values, dtype=dtype), shards=shards
        )

    return write
