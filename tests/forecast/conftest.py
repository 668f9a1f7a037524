"""A series of two waves in a CSV file."""

from pathlib import Path

import pytest

from tests.support.waves import write


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return write(tmp_path / "waves.csv", 400)
