"""What every test shares: one thread, and CUDA tests only where there is a CUDA device."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("streamlm", deadline=None)  # a busy machine is not a failing test
settings.load_profile("streamlm")
torch.set_num_threads(1)  # tiny models: a second thread costs more than it computes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)
