"""The table and the picture of `benchmarks.recall`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tools.recall_models import ORACLE, WINDOW
from streamlm.cli.display import output, show_table
from streamlm.plots.style import BLUE, DARK, GREEN, GREY, ORANGE, SKY, panels, save

OTHERS = (BLUE, GREEN, SKY, "#CC79A7", "#E69F00", "#8C6D31", "#7A68A6")


def remembered(model: dict[str, Any], last: int, first: int) -> list[float]:
    """Accuracy of each seed over the distances from `first` to `last`."""
    rows = [row for row in model["distance"] if first <= row["distance"] <= last]
    weights = [row["questions"] for row in rows]
    return [float(x) for x in np.average([row["seeds"] for row in rows], axis=0, weights=weights)]


def span(figures: dict[str, Any]) -> tuple[int, int]:
    """The distances that lie in compressed memory, and outside the window of as many slots."""
    return figures[WINDOW]["ends"]["memory"] + 1, figures[ORACLE]["ends"]["memory"]


def show(figures: dict[str, Any]) -> None:
    """Print recall by distance in segments."""
    apart = [row["distance"] for row in figures[ORACLE]["distance"]]
    rows = [
        [
            name,
            str(model["slots"]),
            *(f"{row['accuracy']:.2f}" for row in model["distance"]),
            _area(found["auc"] for found in model["foresight"]),
            _area(found["compressed"]["auc"] for found in model["foresight"]),
        ]
        for name, model in figures.items()
    ]
    output.print("share of values recalled, by segments from telling to asking")
    columns = ["", "slots", *(f"{distance:>4}" for distance in apart), "AUC", "compressed"]
    show_table(columns, rows, right=columns[1:])
    output.print(f"chance: {figures[ORACLE]['distance'][0]['chance']:.3f}")
    output.print("AUC: does the memory report, before a question, tell right answers from wrong?")


def _area(found: Iterable[float | None]) -> str:
    known = [area for area in found if area is not None]
    return f"{np.mean(known):.2f}" if known else "-"


def draw(figures: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    figure, (left, right) = panels(2, size=(10.4, 4.2), widths=[1.25, 1])
    first, last = span(figures)
    best: dict[str, str] = {}  # of each compression, the loss that served it best
    for name in figures:
        if name in (ORACLE, WINDOW):
            continue
        kind = name.partition(",")[0]
        share = float(np.mean(remembered(figures[name], last, first)))
        if kind not in best or share > np.mean(remembered(figures[best[kind]], last, first)):
            best[kind] = name
    colours = dict(zip(best, OTHERS * 3, strict=False))
    shown = {ORACLE: DARK, WINDOW: ORANGE, **{best[kind]: colours[kind] for kind in best}}
    _curves(left, figures, shown)
    every = {name: shown.get(name) or colours[name.partition(",")[0]] for name in figures}
    _shares(right, figures, every, (first, last))
    save(figure, path)


def _curves(axis: Any, figures: dict[str, Any], shown: dict[str, str]) -> None:
    for name, colour in shown.items():
        rows = figures[name]["distance"]
        place = [row["distance"] for row in rows]
        axis.plot(
            place,
            [row["accuracy"] for row in rows],
            marker="o",
            color=colour,
            markersize=3.5,
            linewidth=2.0 if name in (ORACLE, WINDOW) else 1.5,
            linestyle=(0, (4, 2)) if name == ORACLE else "-",
            label=name.partition(",")[0],
            zorder=3 if name == ORACLE else 2,
        )
        axis.fill_between(
            place,
            [row["low"] for row in rows],
            [row["high"] for row in rows],
            color=colour,
            alpha=0.13,
            linewidth=0,
        )
    chance = figures[ORACLE]["distance"][0]["chance"]
    axis.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    furthest = max(row["distance"] for row in figures[ORACLE]["distance"])
    axis.text(-0.4, chance + 0.012, "chance", color=GREY, ha="left", va="bottom", fontsize=8)
    ends = next(model["ends"] for model in figures.values() if model["compressed"])
    window = figures[WINDOW]["ends"]["memory"]
    axis.set_ylim(0, 1.03)
    for x, text, side in (
        (ends["memory"], "memory\nends", "right"),
        (window, "window\nends", "left"),
        (ends["compressed memory"], "compressed\nmemory ends", "left"),
    ):
        axis.axvline(x + 0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axis.annotate(
            text, (x + 0.5, 1), (3 if side == "left" else -3, 2), textcoords="offset points",
            xycoords=("data", "axes fraction"), color=DARK, ha=side, va="bottom", fontsize=8,
        )  # fmt: skip
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_xticks(range(0, furthest + 1, 2 if furthest > 8 else 1))
    axis.set_xlabel("segments from telling to asking")
    axis.set_ylabel("share of values recalled")
    axis.set_title("Recall by distance", pad=30)
    axis.legend(loc="upper right", bbox_to_anchor=(1, 0.95), frameon=False, fontsize=8)


def _shares(
    axis: Any, figures: dict[str, Any], colours: dict[str, str], span: tuple[int, int]
) -> None:
    """Each model's recall where the window has lost everything; a dot for each seed."""
    first, last = span
    shares = {name: remembered(model, last, first) for name, model in figures.items()}
    order = sorted(shares, key=lambda name: -np.mean(shares[name]))
    places = np.arange(len(order))
    axis.barh(
        places,
        [np.mean(shares[name]) for name in order],
        color=[colours[name] for name in order],
        height=0.66,
        alpha=0.85,
    )
    for place, name in zip(places, order, strict=True):
        seeds = shares[name]
        axis.plot(seeds, [place] * len(seeds), "o", color="white", markeredgecolor=DARK, ms=3.5)
        axis.text(max(seeds) + 0.03, place, f"{np.mean(seeds):.2f}", va="center", color=DARK)
    chance = figures[ORACLE]["distance"][0]["chance"]
    axis.axvline(chance, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    axis.set_yticks(places, order)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_xlabel(f"share recalled after {first} to {last} segments")
    axis.set_title("Where the window has lost it", pad=30)
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
