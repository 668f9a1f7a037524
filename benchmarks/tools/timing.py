"""Things timed, alone or side by side, and what their ratio is."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def milliseconds(work: Callable[[], object], device: str, *, repeats: int = 10) -> float:
    """Median of some calls, each waited for; one before them is not counted."""

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        wait()
        spent.append(time.perf_counter() - began)
    return 1e3 * float(np.median(spent))


def side_by_side(
    first: Callable[[], float],
    second: Callable[[], float],
    *,
    repeats: int,
    progress: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Measure in turns, so that whatever else the machine does meets both alike.

    Args:
        first, second: each returns the seconds that it took; called once more to warm up.

    Returns:
        Seconds of both; entries of the same index were measured one right after the other.
    """
    first(), second()
    firsts: list[float] = []
    seconds_: list[float] = []
    for index in range(repeats):
        if index % 2:  # the one that goes first may have a disadvantage: take turns
            seconds_.append(second())
            firsts.append(first())
        else:
            firsts.append(first())
            seconds_.append(second())
        progress()
    return firsts, seconds_


def median_interval(values: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """The median, its 95 % bootstrap interval, and the quartiles of the values."""
    array = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    drawn = np.median(random.choice(array, (2000, len(array))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    quarter, three_quarters = np.quantile(array, [0.25, 0.75])
    return {
        "median": float(np.median(array)),
        "low": float(low),
        "high": float(high),
        "quartile_1": float(quarter),
        "quartile_3": float(three_quarters),
    }


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Pairwise ratios of measurements made in turns."""
    pairs = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {**median_interval(pairs), "pairs": len(pairs)}
