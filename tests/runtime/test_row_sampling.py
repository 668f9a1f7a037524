"""Sampling for many rows: each draws what it draws alone, from the same distribution."""

import numpy as np
import pytest
import torch

from streamlm.runtime.row_sampling import Draw, sample_rows
from streamlm.runtime.sampling import SHORT_LIST, Sampling, sample

V = 3 * SHORT_LIST
SETTINGS = {
    "default": Sampling(),
    "greedy": Sampling(temperature=0),
    "hot": Sampling(temperature=100, top_p=1),
    "cold": Sampling(temperature=1e-6),
    "top-k": Sampling(top_k=5, top_p=0.9),
    "long top-k": Sampling(temperature=2, top_k=SHORT_LIST + 100, top_p=0.99),
    "nucleus": Sampling(temperature=1, top_p=0.5),
    "min-p": Sampling(temperature=1.5, top_p=1, min_p=0.2),
    "penalty": Sampling(repetition_penalty=5, temperature=0.5),
}


def draw_of(name: str, *, seed: int) -> Draw:
    suppressed = torch.zeros(V, dtype=torch.bool)
    suppressed[:10] = True
    recent = np.arange(20, 40, dtype=np.int32)
    return Draw(SETTINGS[name], np.random.default_rng(seed), recent, suppressed)


def logits_of(n_rows: int) -> torch.Tensor:
    return 3 * torch.randn(n_rows, V, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_are_those_of_one_row(name: str) -> None:
    """The same generator gives the same tokens, but where float32 rounds a share otherwise."""
    logits, n_rows, same = logits_of(40), 40, 0
    draws = [draw_of(name, seed=seed) for seed in range(n_rows)]
    found = sample_rows(logits, draws)
    for row in range(n_rows):
        one = draw_of(name, seed=row)
        wanted = sample(
            logits[row].masked_fill(one.suppressed, -torch.inf),
            one.sampling,
            random=one.random,
            recent=one.recent,
        )
        same += found[row] == wanted
    assert same >= n_rows - 1


def test_rows_do_not_depend_on_each_other() -> None:
    logits, names = logits_of(len(SETTINGS)), list(SETTINGS)
    together = sample_rows(logits, [draw_of(name, seed=7) for name in names])
    for row, name in enumerate(names):
        draws: list[Draw | None] = [None] * len(names)
        draws[row] = draw_of(name, seed=7)
        others = logits.clone()
        others[torch.arange(len(names)) != row] = torch.randn(len(names) - 1, V)
        assert sample_rows(others, draws)[row] == together[row]


def test_what_is_suppressed_is_never_drawn() -> None:
    logits = torch.zeros(200, V)
    logits[:, :10] = 50.0
    tokens = sample_rows(logits, [draw_of("hot", seed=seed) for seed in range(200)])
    assert min(tokens) >= 10
    assert sample_rows(logits, [None] * 200) == [0] * 200
    assert torch.equal(logits[:, :10], torch.full((200, 10), 50.0))  # the caller's stay as they are


def test_shares_of_many_draws() -> None:
    """Against the distribution itself: 4,000 draws of four tokens."""
    logits = torch.full((4000, 4), -torch.inf)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits[:] = shares.log()
    plain = Sampling(temperature=1, top_p=1)
    nothing, none = np.zeros(0, np.int32), torch.zeros(4, dtype=torch.bool)
    draws = [Draw(plain, np.random.default_rng(seed), nothing, none) for seed in range(4000)]
    counts = np.bincount(sample_rows(logits, draws), minlength=4) / 4000
    assert np.abs(counts - shares.numpy()).max() < 0.03
