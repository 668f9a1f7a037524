"""Colours that belong together can be told apart, by people who confuse red and green too."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

CSS = Path(__file__).resolve().parents[2] / "apps/demo/serving/page.css"
LEAST = 12.0  # of CIE 1976; 2.3 is just noticeable

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)


def lab(colour: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of #rrggbb, as seen."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(np.clip(TO_XYZ @ np.clip(sight @ linear, 0, 1) / WHITE, 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def colours(names: list[str], *, dark: bool) -> list[str]:
    """The colours that the page's styles give these names."""
    css = CSS.read_text(encoding="utf-8")
    rules = re.findall(r"([^{}]*)\{([^{}]*)\}", css)
    values: dict[str, str] = {}
    for selector, body in rules:
        if ".dark" not in selector or dark:
            values |= dict(re.findall(r"(--[\w]+): ([^;]+);", body))
    found = []
    for name in names:
        value = values[name]
        while value.startswith("var("):
            value = values.get(value[4:-1], "#eeeeee" if dark else "#1f2937")  # the theme's ink
        found.append(value)
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["--compressed", "--memory", "--segment"],
        ["--first", "--second"],
        [f"--c{n}" for n in range(7)],
    ],
    ids=["zones", "histories", "curves"],
)
def test_colours_can_be_told(names: list[str], dark: bool) -> None:
    shown = colours(names, dark=dark)
    for kind, sight in SIGHT.items():
        for one, other in combinations(shown, 2):
            apart = float(np.linalg.norm(lab(one, sight) - lab(other, sight)))
            assert apart >= LEAST, (kind, one, other, apart)


def test_the_measure_finds_colours_that_cannot_be_told() -> None:
    """A red and a green that are the same to a deuteranope, and far apart to others."""
    apart = {
        kind: float(np.linalg.norm(lab("#c0392b", sight) - lab("#6b6b1e", sight)))
        for kind, sight in SIGHT.items()
    }
    assert apart["usual"] > 50 > 2 * apart["deuteranopia"]
