"""Position tables and distance buckets against their formulas."""

import torch

from streamlm.models.layers.positions import buckets, sinusoid
from tests.reference.attention import sinusoid as literal


def test_rows_are_in_order_of_decreasing_distance() -> None:
    table = sinusoid(7, 6)
    assert table.shape == (7, 6) and table.dtype == torch.float32
    for row in range(7):
        wanted = literal(6 - row, 6).float()
        assert torch.allclose(table[row], wanted, rtol=0, atol=1e-7)
    assert table[-1].tolist() == [0, 0, 0, 1, 1, 1]  # distance 0: sines, then cosines


def test_a_shorter_table_is_a_suffix_of_a_longer_one() -> None:
    assert torch.equal(sinusoid(100, 8)[-30:], sinusoid(30, 8))


def test_far_positions_are_exact() -> None:
    """Angles of tens of thousands of radians keep the precision of the result."""
    table = sinusoid(50_001, 4)
    wanted = literal(50_000, 4).float()
    assert torch.allclose(table[0], wanted, rtol=0, atol=1e-7)


def test_distances_are_clamped() -> None:
    table, free = sinusoid(9, 6, clamp=5), sinusoid(9, 6)
    assert torch.equal(table[-6:], free[-6:])  # distances 5 to 0
    assert torch.equal(table[:3], free[-6:-5].expand(3, 6))  # 8, 7, 6
    assert torch.equal(sinusoid(9, 6, clamp=8), free)


def test_four_buckets_per_octave() -> None:
    found = buckets(129, begin=8, per_octave=4).tolist()
    assert found[:10] == [0] * 10 and found == sorted(found)
    assert [found.index(4 * octave) for octave in range(1, 5)] == [16, 32, 64, 128]
    assert set(found) == set(range(17))
