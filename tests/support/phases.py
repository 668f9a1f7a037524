"""What holds for batches of streams of any age, for every head, compression and norm."""

import numpy as np
import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.state import State
from tests.support.invariants import (
    assert_same_state,
    largest_difference,
    random_sizes,
    random_tokens,
    read,
)


def check_phases(model: Model, *, tolerance: float) -> None:
    """Rows of any ages and phases read in one batch what each of them reads alone.

    However they came together, in calls of one token or of many, with a cache, without one and with
    gradients, while commits close the segments of some rows and leave those of others open.
    """
    t = model.config.segment_len
    ages, n = [5 * t + t // 2, 0, 3 * t, 6 * t - 1, 1], 2 * t + 3
    tokens, random = random_tokens(model, n, rows=len(ages)), np.random.default_rng(8)
    # Beside a row with one token to go, every call is of one; the first three leave room for more.
    random_split = random_sizes(n, t, random)
    with torch.no_grad():
        rows = [_aged(model, age) for age in ages]
        stacked, put = State.stack(rows), model.init_state(len(ages))
        for row, state in enumerate(rows):
            put = put.put(row, state)
        digests = [state.digest() for state in (*rows, stacked, put)]
        assert [put.rows(row).digest() for row in range(len(ages))] == digests[: len(ages)]
        alone = [read(model, tokens[i : i + 1], state) for i, state in enumerate(rows)]
    for n_rows, sizes, gradients, cached, begin in (
        (3, [n], False, True, stacked),
        (3, random_split, False, True, put),
        (5, [1] * n, False, True, stacked),
        (5, [1] * n, False, False, put),
        (3, random_split, True, False, stacked),
    ):
        where = f"{sizes}, {gradients=}, {cached=}"
        with torch.set_grad_enabled(gradients):
            some = begin.rows(range(n_rows))
            logits, end = read(model, tokens[:n_rows], some, sizes=sizes, cached=cached)
        for row, (wanted, state) in enumerate(alone[:n_rows]):
            difference = largest_difference(logits[row : row + 1], wanted)
            assert difference <= tolerance, f"row {row} of {where}: off by {difference}"
            assert_same_state(end.rows(row), state, tolerance=tolerance)
        assert [state.digest() for state in (*rows, stacked, put)] == digests, "a state was changed"
    _check_exchange(model, tokens, rows, alone, tolerance=tolerance)
    _check_gradients(model, tokens[:3], rows[:3], tolerance=tolerance)


def _aged(model: Model, age: int) -> State:
    """A stream of one row that has read so many tokens."""
    state = model.init_state(1)
    return read(model, random_tokens(model, age, seed=age), state)[1] if age else state


@torch.no_grad()
def _check_exchange(
    model: Model,
    tokens: Tensor,
    rows: list[State],
    alone: list[tuple[Tensor, State]],
    *,
    tolerance: float,
) -> None:
    """Between two calls, one stream leaves the batch and another takes its row."""
    half, cache = tokens.shape[1] // 2, Cache()
    _, state = read(model, tokens[1:, :half], State.stack(rows[1:]), sizes=[1] * half, cache=cache)
    state = state.put(0, rows[0])
    left = tokens.shape[1] - half
    rest = torch.cat([tokens[:1, :left], tokens[2:, half:]])
    logits, _ = read(model, rest, state, cache=cache)
    wanted = torch.cat([alone[0][0][:, :left], *(found[:, half:] for found, _ in alone[2:])])
    for row in range(len(rows) - 1):
        difference = largest_difference(logits[row], wanted[row])
        assert difference <= tolerance, f"row {row} after an exchange: off by {difference}"


def _check_gradients(model: Model, tokens: Tensor, rows: list[State], *, tolerance: float) -> None:
    """Weights learn from a call what they learn from its rows one by one.

    From one call: what a segment read in calls before is a constant.
    """
    weights, state = list(model.parameters()), State.stack(rows)
    tokens = tokens[:, : model.config.segment_len - max(state.length)]

    def gradient(tokens: Tensor, state: State) -> list[Tensor]:
        logits, _ = model(tokens, state)
        loss = logits.square().sum()
        return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))

    with torch.enable_grad():
        together = gradient(tokens, state)
        alone = [gradient(tokens[i : i + 1], state) for i, state in enumerate(rows)]
    for found, *parts in zip(together, *alone, strict=True):
        wanted = torch.stack(parts).sum(dim=0)
        scale = max(1.0, float(wanted.abs().max()))
        assert largest_difference(found, wanted) <= 10 * tolerance * scale
