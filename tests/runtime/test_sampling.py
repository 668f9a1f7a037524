"""Sampling against distributions computed by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from streamlm.runtime.sampling import SHORT_LIST, Sampling, sample

NONE = np.array([], dtype=np.int64)
OFF = {"temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("repetition_penalty", 0, "above 0, at most 100"),
        ("repetition_penalty", 101, "above 0, at most 100"),
        ("repetition_penalty", math.nan, "above 0, at most 100"),
        ("temperature", -0.1, "0 .greedy. to 100"),
        ("temperature", math.inf, "0 .greedy. to 100"),
        ("temperature", math.nan, "0 .greedy. to 100"),
        ("top_k", -1, "a whole number, 0 .off. or more"),
        ("top_k", 2.5, "a whole number, 0 .off. or more"),
        ("top_k", math.inf, "a whole number, 0 .off. or more"),
        ("top_k", math.nan, "a whole number, 0 .off. or more"),
        ("top_p", 0, "above 0, at most 1 .off."),
        ("top_p", 1.01, "above 0, at most 1 .off."),
        ("min_p", -0.1, "0 .off. to 1"),
        ("min_p", 1.1, "0 .off. to 1"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} = {value!r}; allowed: {allowed}$"):
        Sampling(**{name: value})


def distribution(shares: list[float], recent: np.ndarray = NONE, **options: float) -> list[float]:
    """The sampling distribution for a model that outputs `shares`."""
    logits = torch.tensor(shares, dtype=torch.float64).log()
    return Sampling(**{**OFF, **options}).probabilities(logits, recent).tolist()


def test_the_settings_can_be_off() -> None:
    shares = [0.1, 0.4, 0.3, 0.2]
    assert distribution(shares) == pytest.approx(shares)


def test_temperature() -> None:
    squares = [0.01, 0.16, 0.09, 0.04]
    wanted = [square / sum(squares) for square in squares]
    assert distribution([0.1, 0.4, 0.3, 0.2], temperature=0.5) == pytest.approx(wanted)


def test_greedy() -> None:
    """The likeliest token, the first of equals, whatever else is set."""
    assert distribution([0.1, 0.4, 0.3, 0.2], temperature=0) == [0, 1, 0, 0]
    assert distribution([0.1, 0.4, 0.4, 0.1], temperature=0, top_k=3) == [0, 1, 0, 0]


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert distribution([0.1, 0.4, 0.3, 0.2], temperature=1e-8) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, [0, 1, 0, 0]), (2, [0, 4 / 7, 3 / 7, 0]), (9, [0.1, 0.4, 0.3, 0.2])]
)
def test_top_k(top_k: int, kept: list[float]) -> None:
    assert distribution([0.1, 0.4, 0.3, 0.2], top_k=top_k) == pytest.approx(kept)
    assert distribution([0.1, 0.4, 0.3, 0.2], top_k=float(top_k)) == pytest.approx(kept)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, [0, 1, 0, 0]),
        (0.39, [0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 3 / 7, 0]),
        (0.69, [0, 4 / 7, 3 / 7, 0]),
        (0.71, [0, 4 / 9, 3 / 9, 2 / 9]),
        (0.95, [0.1, 0.4, 0.3, 0.2]),
    ],
)
def test_top_p(top_p: float, kept: list[float]) -> None:
    """The smallest set of likeliest tokens with this total, including the one that crosses it."""
    assert distribution([0.1, 0.4, 0.3, 0.2], top_p=top_p) == pytest.approx(kept)


@pytest.mark.parametrize(
    ("min_p", "kept"),
    [
        (0.24, [0.1, 0.4, 0.3, 0.2]),
        (0.26, [0, 4 / 9, 3 / 9, 2 / 9]),
        (0.51, [0, 4 / 7, 3 / 7, 0]),
        (1.0, [0, 1, 0, 0]),
    ],
)
def test_min_p_is_a_share_of_the_likeliest(min_p: float, kept: list[float]) -> None:
    assert distribution([0.1, 0.4, 0.3, 0.2], min_p=min_p) == pytest.approx(kept)


def test_filters_apply_one_after_the_other() -> None:
    """top_p applies to what top_k keeps: .4/.7 reaches .55, .4 alone does not."""
    assert distribution([0.1, 0.4, 0.3, 0.2], top_k=2, top_p=0.55) == [0, 1, 0, 0]
    # Temperature applies before top_p: squares put .16/.30 on the likeliest.
    assert distribution([0.1, 0.4, 0.3, 0.2], temperature=0.5, top_p=0.5) == [0, 1, 0, 0]
    # The penalty applies before greedy selection.
    assert distribution([0.1, 0.4, 0.3, 0.2], np.array([1]), temperature=0) == [0, 1, 0, 0]
    found = distribution([0.1, 0.4, 0.3, 0.2], np.array([1]), temperature=0, repetition_penalty=2)
    assert found == [0, 0, 1, 0]


def test_repetition_penalty_pushes_both_signs_down() -> None:
    logits = torch.tensor([2.0, -1.0, 2.0, -1.0], dtype=torch.float64)
    recent = np.array([0, 1, 1, 0, 0])  # counts do not matter
    found = Sampling(repetition_penalty=2.0, **OFF).probabilities(logits, recent)
    wanted = torch.tensor([1.0, -2.0, 2.0, -1.0], dtype=torch.float64).softmax(0)
    assert torch.allclose(found, wanted)
    assert logits.tolist() == [2, -1, 2, -1], "the caller's logits stay as they are"
    for sampling, seen in (
        (Sampling(**OFF), recent),
        (Sampling(repetition_penalty=2, **OFF), NONE),
    ):
        assert torch.allclose(sampling.probabilities(logits, seen), logits.softmax(0))


def filtered(logits: Tensor, sampling: Sampling) -> list[float]:
    """The filters in order, on a Python list."""
    powers = [math.exp(float(x - logits.max()) / sampling.temperature) for x in logits]
    shares = {i: power / sum(powers) for i, power in enumerate(powers)}
    ranked = sorted(shares, key=lambda i: -shares[i])
    ranked = ranked[: sampling.top_k or len(ranked)]
    total = sum(shares[i] for i in ranked)
    kept, reached = [], 0.0
    for i in ranked:
        if kept and (
            reached >= sampling.top_p * total or shares[i] < sampling.min_p * shares[ranked[0]]
        ):
            break
        kept.append(i)
        reached += shares[i]
    return [shares[i] / reached if i in set(kept) else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"top_k": 100, "top_p": 0.9},
        {"top_k": 1000, "top_p": 0.9},
        {"top_k": 1000, "min_p": 0.1},
        {"min_p": 0.3},
        {"temperature": 2.0, "top_p": 0.95},
    ],
    ids=str,
)
def test_a_large_vocabulary(options: dict[str, float], spread: float) -> None:
    """Flat distributions, whose nucleus exceeds the short list, and peaked ones."""
    random = torch.Generator().manual_seed(6)
    logits = torch.randn(3 * SHORT_LIST, generator=random, dtype=torch.float64) * spread
    sampling = Sampling(**{**OFF, **options})
    found = sampling.probabilities(logits, NONE)
    assert float(found.sum()) == pytest.approx(1.0)
    assert found.tolist() == pytest.approx(filtered(logits, sampling), rel=1e-9, abs=1e-15)


def test_low_precision_logits_are_drawn_from_in_float64() -> None:
    logits = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    found = Sampling(**OFF).probabilities(logits, NONE)
    assert found.dtype == torch.float64
    assert found[1].item() == pytest.approx(1 / (1 + math.exp(-1)))


def draws(sampling: Sampling, logits: Tensor, n: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    return [sample(logits, sampling, random=random, recent=NONE) for _ in range(n)]


def test_a_seed_determines_the_token() -> None:
    logits = torch.zeros(50)
    first = draws(Sampling(**OFF), logits, 40, seed=1)
    assert first == draws(Sampling(**OFF), logits, 40, seed=1)
    assert first != draws(Sampling(**OFF), logits, 40, seed=2)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.6}])
def test_draws_follow_the_distribution(options: dict[str, float]) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.2])
    sampling = Sampling(**{**OFF, **options})
    wanted = sampling.probabilities(logits, NONE).numpy() * 2000
    found = np.bincount(draws(sampling, logits, 2000, seed=3), minlength=8)
    possible = wanted > 0
    assert not found[~possible].any(), "what was filtered out is never drawn"
    chi_square = float(((found - wanted)[possible] ** 2 / wanted[possible]).sum())
    assert chi_square < 30  # at most 7 degrees of freedom: exceeded by chance in 1 of 10,000


class Fixed(np.random.Generator):
    """A generator that always draws the same number."""

    def __init__(self, number: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.number = number

    def random(self) -> float:  # type: ignore[override]
        return self.number


@pytest.mark.parametrize(
    ("drawn", "index"), [(0.0, 1), (0.2499, 1), (0.2501, 3), (0.9999, 3), (math.nextafter(1, 0), 3)]
)
def test_the_ends_of_the_range(drawn: float, index: int) -> None:
    """No draw yields a token of probability 0."""
    logits = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]).log()
    assert sample(logits, Sampling(**OFF), random=Fixed(drawn), recent=NONE) == index
