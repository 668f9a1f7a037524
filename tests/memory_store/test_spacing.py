"""`Retention.spacing`: which of many close snapshots stay."""

import pytest

from memory_store import Commit, Ref, Retention


def refs(*positions: int) -> list[Ref]:
    return [Ref("main", n, Commit(f"{n}", "", at), 0.0) for n, at in enumerate(positions)]


def test_one_in_so_many_tokens_and_the_newest_stay() -> None:
    policy = Retention(last=8, thin=True, spacing=64)
    turns = refs(*range(0, 1000, 10))
    kept = [ref.position for ref in policy.kept(turns)]
    assert kept[-2:] == [980, 990]  # a quarter of `last`
    # The first behind each multiple: of 64 among the newest, of more among older ones.
    assert kept[:-2] == [
        *(70, 130, 200, 260, 320, 390, 450, 520, 580, 640, 710, 770, 840, 900, 960),
    ]
    assert policy.newest == 2 and Retention(last=8, thin=True).newest == 8
    # Snapshots that are far apart stay as they do without spacing, but for which end of a block.
    assert len(policy.kept(refs(*range(0, 640, 64)))) == 10 - 1


def test_collecting_on_the_way_keeps_the_same() -> None:
    policy, turns = Retention(last=4, thin=True, spacing=32), refs(*range(0, 3000, 7))
    alive = set(turns)
    for n in [*range(1, len(turns), 5), len(turns)]:
        alive &= set(policy.kept(turns[:n])) | set(turns[n:])
    assert alive == set(policy.kept(turns)) and len(alive) < 30


@pytest.mark.parametrize("spacing", [3, -1, True, 2.0, "4"])
def test_spacing_is_a_power_of_two(spacing: object) -> None:
    with pytest.raises(ValueError, match=r"spacing = .*; allowed: 0, or a power of two"):
        Retention(last=4, thin=True, spacing=spacing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="together with thin"):
        Retention(last=4, spacing=4)
