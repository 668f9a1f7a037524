"""Compares with a peer's result, and prints the largest deviation of every row at the end."""

import pytest
import torch
from torch import Tensor

from tests.parity.peers import Compare

# By row: the largest deviation, its tolerance, and the number of comparisons.
ROWS = pytest.StashKey[dict[str, tuple[float, float, int]]]()

torch.set_num_threads(1)


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Compare:
    """Asserts that two tensors are equal but for a tolerance, and notes how far they are apart."""
    rows = request.config.stash.setdefault(ROWS, {})

    def check(row: str, ours: Tensor, theirs: Tensor, *, tolerance: float) -> None:
        assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
        found = float((ours.detach().double() - theirs.detach().double()).abs().max())
        largest, _, n = rows.get(row, (0.0, tolerance, 0))
        worst = found if not found <= largest else largest  # NaN is the worst
        rows[row] = (worst, tolerance, n + 1)
        assert found <= tolerance, row

    return check


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash.get(ROWS, {})
    if not rows:
        return
    width = max(map(len, rows))
    terminalreporter.section("largest deviations")
    terminalreporter.line(f"{'':{width}}  deviation  tolerance  comparisons")
    for row, (largest, tolerance, n) in rows.items():
        terminalreporter.line(f"{row:{width}}  {largest:9.1e}  {tolerance:9.0e}  {n:11,}")
