"""Calibration: ranks and choices on scores that are known, and a whole run with a tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.lab.calibration import _choose, _hits, _reciprocal_rank, calibrate, steps
from streamlm.memory.recall import WIDTH

SPAN = (500, 520)  # tokens of a fact; its keys are one further


def peaked(*places: tuple[int, float], n: int = 1000) -> torch.Tensor:
    """Scores of one head that peak at places."""
    scores = torch.full((1, n), 0.01)
    for place, score in places:
        scores[0, place] = score
    return scores


@pytest.mark.parametrize(
    ("place", "hit"),
    [(510, True), (502, True), (520, True), (470, False), (560, False), (100, False)],
)
def test_a_hit_has_the_whole_fact_in_its_passage(place: int, hit: bool) -> None:
    assert bool(_hits(peaked((place, 0.9)), SPAN)) is hit


def test_ranks_count_places_that_are_apart() -> None:
    assert _reciprocal_rank(peaked((510, 0.9), (100, 0.5)), SPAN) == 1.0
    assert _reciprocal_rank(peaked((510, 0.5), (100, 0.9)), SPAN) == 0.5
    beside = peaked((510, 0.5), (100, 0.9), (100 + WIDTH // 2, 0.8))
    assert _reciprocal_rank(beside, SPAN) == 0.5
    others = [(20 + 40 * i, 0.9) for i in range(9)]
    assert _reciprocal_rank(peaked((510, 0.5), *others), SPAN) == 0.0


def test_heads_are_chosen_that_find_what_others_miss() -> None:
    """Of four heads, one finds half of the facts, one the rest, one a part of these, one none."""
    first = [(510, 0.9), (100, 0.9), (510, 0.9), (100, 0.9)]
    second = [(300, 0.3), (510, 0.95), (300, 0.3), (510, 0.95)]
    third = [(300, 0.3), (510, 0.95), (300, 0.3), (300, 0.3)]
    none = [(200, 0.02)] * 4
    scores = [
        torch.cat([peaked(head[question]) for head in (none, third, first, second)])
        for question in range(4)
    ]
    assert sorted(_choose(scores, [SPAN] * 4)) == [2, 3]


@pytest.fixture
def prose_of(prose: Callable[..., str]) -> str:
    return prose(1500)


def test_a_whole_run(tiny_folder: Callable[..., Path], prose_of: str) -> None:
    checkpoint = load_checkpoint(tiny_folder(head="llama", n_heads=4), device="cpu")
    done: list[int] = []
    options = {"tokens": 900, "n_facts": 6}
    found = calibrate(checkpoint, prose_of, progress=done.append, **options)
    again = calibrate(checkpoint, prose_of, **options)
    assert found == again
    found.heads.check(checkpoint.model.config)  # type: ignore[arg-type]
    assert sum(done) == steps(checkpoint, **options)
    assert set(found.found) == {"cue", "question", "told"}
    assert all(0 <= share <= 1 for share in found.found.values())
    value = found.to_json()
    assert value["facts"] == 6 and value["alone"] == sorted(value["alone"], key=lambda row: -row[2])


def test_what_cannot_be_calibrated(tiny_folder: Callable[..., Path], prose_of: str) -> None:
    llama = load_checkpoint(tiny_folder(head="llama"), device="cpu")
    with pytest.raises(ValueError, match=r"tokens; allowed: at least 100,0"):
        calibrate(llama, prose_of, tokens=100_000)
    with pytest.raises(ValueError, match="allowed: at least"):
        calibrate(llama, prose_of, tokens=600, n_facts=40)
    other = load_checkpoint(tiny_folder(), device="cpu")
    with pytest.raises(ValueError, match="allowed: Llama-family models"):
        calibrate(other, prose_of, tokens=900, n_facts=6)
