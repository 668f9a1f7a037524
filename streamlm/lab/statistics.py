"""Statistics of compared runs: means, differences and their confidence intervals, by seed."""

import math
from collections.abc import Sequence
from typing import Any

from streamlm.lab.compare import Run

# Two-sided 95 % quantiles of Student's t, for 1 to 9 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def summary(runs: Sequence[Run], *, reference: str) -> list[dict[str, Any]]:
    """A row for each variant, best first: its mean, and its difference from the reference.

    Intervals are 95 % intervals of Student's t over the differences by seed.
    """
    by_name: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_name.setdefault(run.variant, {})[run.seed] = run
    base = by_name.get(reference, {})
    rows = []
    for name, of_seed in by_name.items():
        bits = [run.bits_per_byte for run in of_seed.values()]
        both = sorted(set(of_seed) & set(base))
        differences = [of_seed[seed].bits_per_byte - base[seed].bits_per_byte for seed in both]
        mean, half = mean_interval(differences)
        rows.append(
            {
                "variant": name,
                "seeds": len(bits),
                "bits_per_byte": sum(bits) / len(bits),
                "differences": differences,
                "difference": mean,
                "half_interval": half,
                "parameters": next(iter(of_seed.values())).parameters,
            }
        )
    return sorted(rows, key=lambda row: row["bits_per_byte"])


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and half of its 95 % interval; None for too few values."""
    n = len(values)
    if not n:
        return None, None
    mean = sum(values) / n
    if n == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, STUDENT[min(n - 2, len(STUDENT) - 1)] * math.sqrt(variance / n)
