"""The picture of `benchmarks.stream`: speed along the stream, and what is the same at its end."""

from pathlib import Path
from typing import Any

import numpy as np

from streamlm.plots.style import BLUE, DARK, GREY, ORANGE, panels, save, tokens_text

POINTS = 60  # of the curve


def speeds(curve: list[list[float]], points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """[position, seconds] after each block → position and tokens per second of stretches."""
    array = np.array([[0.0, 0.0], *curve])
    # Stretches of equal length in tokens, cut where blocks end.
    wanted = np.linspace(0, array[-1, 0], min(points, len(array) - 1) + 1)
    cuts = np.unique(np.searchsorted(array[:, 0], wanted))
    at = array[np.minimum(cuts, len(array) - 1)]
    tokens, spent = np.diff(at[:, 0]), np.diff(at[:, 1])
    good = (tokens > 0) & (spent > 0)
    middle = (at[1:, 0] + at[:-1, 0]) / 2
    return middle[good], tokens[good] / spent[good]


def draw(figures: dict[str, Any], path: Path) -> None:
    figure, (left, right) = panels(2, size=(9.2, 3.3), widths=[1.25, 1])
    position, speed = speeds(figures["curve"])
    end = figures["curve"][-1][0]
    left.plot(position, speed, color=BLUE, linewidth=1.6)
    typical = float(np.median(speed))
    left.axhline(typical, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    left.set_ylim(0, 1.25 * float(speed.max()))
    left.set_xlim(0, end)
    left.xaxis.set_major_formatter(lambda tick, _: tokens_text(tick))
    left.set_xlabel("tokens read before")
    left.set_ylabel("tokens per second")
    left.set_title("Reading speed along one stream")
    left.text(
        end * 0.02,
        1.04 * float(speed.max()),
        f"median {typical:,.0f} tokens/s, saving included",
        color=BLUE,
        va="bottom",
    )
    _ratios(right, figures)
    save(figure, path)


def _ratios(axis: Any, figures: dict[str, Any]) -> None:
    young, old = (tokens_text(round(n, -3)) for n in figures["positions"].values())
    memory, marks = figures["memory"], figures["state"]
    rows: list[tuple[str, float, tuple[float, float] | None]] = []
    for name, label in (("feed", "time to read a token"), ("decode", "time to write a token")):
        found = figures["cost"][name]["old_to_young"]
        rows.append((label, found["median"], (found["low"], found["high"])))
    rows.append(("peak memory", memory["old_to_young"], None))
    rows.append(("bytes of state", marks[-1]["state_bytes"] / marks[0]["state_bytes"], None))
    target = figures["target"]
    for row, (_, value, interval) in enumerate(rows):
        if interval:
            axis.plot(interval, [row, row], color=BLUE, linewidth=2.2, solid_capstyle="butt")
        axis.plot([value], [row], "o", color=BLUE, markersize=6)
        axis.text(value, row - 0.22, f"{value:.3f}", ha="center", va="bottom", color=DARK)
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.75)
    edges = [target, *(v for _, v, _ in rows), *(x for _, _, i in rows if i for x in i)]
    axis.set_xlim(min(0.9, min(edges) - 0.03), max(1.2, max(edges) + 0.03))
    axis.axvline(1, color=GREY, linewidth=0.8)
    axis.axvline(target, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    axis.text(target, -0.6, f" target ≤ {target:g}", color=ORANGE, va="center")
    axis.set_xlabel(f"after {old} tokens ÷ after {young} tokens")
    axis.set_title("An old session beside a young one")
    axis.grid(axis="y", visible=False)
