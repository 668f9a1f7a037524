"""What the tests of this folder share: how peers are imported, and how results are compared."""

import importlib
import os
import warnings
from typing import Any, Protocol

import pytest
from torch import Tensor


class Compare(Protocol):
    """The fixture `compare`."""

    def __call__(self, row: str, ours: Tensor, theirs: Tensor, *, tolerance: float) -> None: ...


def peer(module: str, package: str) -> Any:
    """A module to compare with; without it tests are skipped, but never under `make parity`."""
    if "STREAMLM_PARITY" not in os.environ:
        return pytest.importorskip(module, reason=f"needs {package}; `make parity` has it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)
