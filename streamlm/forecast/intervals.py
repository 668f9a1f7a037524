"""Prediction intervals from errors on held-back rows, and how often they held on later ones.

Split conformal prediction (Lei et al., "Distribution-Free Predictive Inference for Regression",
2018): the errors of the valid part are ranked, for each row ahead. Windows overlap and series
change, so its guarantee does not hold here; the coverage is measured on the test part instead.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVELS = (0.5, 0.8, 0.9, 0.95)
FEWEST = 40  # errors that a quantile is taken of


@dataclass(frozen=True)
class Calibration:
    """What held-back rows say about a forecaster.

    Attributes:
        widths: [levels, horizon, C] half the width of each interval, scaled.
        coverage: [levels] the share of the test part's values within their intervals.
        windows: number of windows of the test part.
        season: rows of the baseline's season; mse, mae: the forecaster's errors on the test part;
            naive_mse, naive_mae: the baseline's.
    """

    widths: np.ndarray
    coverage: tuple[float, ...]
    windows: int
    season: int
    mse: float
    mae: float
    naive_mse: float
    naive_mae: float

    def width(self, level: float) -> np.ndarray:
        """Half widths [horizon, C] for a level.

        Raises:
            ValueError: the level was not calibrated.
        """
        return np.asarray(self.widths[_place(level)])

    def covered(self, level: float) -> float:
        """The measured coverage of a level."""
        return self.coverage[_place(level)]

    def to_json(self) -> str:
        """Text that `from_dict` reads after parsing."""
        values = {**self.__dict__, "widths": self.widths.tolist(), "levels": LEVELS}
        return json.dumps(values) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Build from parsed JSON."""
        known = {name: value for name, value in values.items() if name != "levels"}
        known["widths"] = np.array(known["widths"], float)
        return cls(**{**known, "coverage": tuple(known["coverage"])})


def _place(level: float) -> int:
    if level not in LEVELS:
        raise ValueError(f"level {level:g}; allowed: {', '.join(f'{each:g}' for each in LEVELS)}")
    return LEVELS.index(level)


def half_widths(errors: np.ndarray) -> np.ndarray:
    """The half width of each interval: [levels, horizon, C].

    Where there are few windows, a row ahead borrows the errors of the rows beside it.

    Args:
        errors: [windows, horizon, C] absolute errors of held-back rows.
    """
    n, horizon, _ = errors.shape
    radius = max(0, math.ceil((FEWEST / n - 1) / 2))
    found = np.empty((len(LEVELS), *errors.shape[1:]))
    for ahead in range(horizon):
        begin = min(max(0, ahead - radius), max(0, horizon - 2 * radius - 1))
        near = errors[:, begin : begin + 2 * radius + 1]
        ranked = np.sort(near.reshape(-1, errors.shape[2]), axis=0)
        for index, level in enumerate(LEVELS):
            rank = math.ceil((len(ranked) + 1) * level)
            found[index, ahead] = ranked[min(rank, len(ranked)) - 1]
    return found
