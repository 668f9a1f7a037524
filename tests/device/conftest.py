"""A pretended CUDA device for the tests of this folder; none of them needs a GPU."""

from collections.abc import Iterator

import pytest

from tests.support.pretended_cuda import Log, pretended_cuda


@pytest.fixture
def cuda() -> Iterator[Log]:
    """Provides the device for the whole test, and its log."""
    with pretended_cuda() as log:
        yield log
