"""The plot of the suite: tasks by distance, with the ends of the memories marked."""

from pathlib import Path
from typing import Any

from streamlm.plots.style import BLUE, DARK, GREEN, GREY, ORANGE, panels_of, save

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7")  # Okabe & Ito (2008)


def draw(figures: dict[str, Any], path: Path, *, title: str = "") -> None:
    """Draw the tasks of the suite: exact answers above, counterfactual gains below."""
    tasks = [
        name for name, part in figures.items() if isinstance(part, dict) and "distance" in part
    ]
    figure, axes = panels_of(2, len(tasks), size=(1.2 + 3.4 * len(tasks), 5.6))
    for column, name in enumerate(tasks):
        rows = figures[name]["distance"]
        for axis, measure in zip(axes[:, column], ("accuracy", "gain"), strict=True):
            _panel(axis, rows, measure, figures["ends"], final=column == len(tasks) - 1)
        axes[0, column].set_title(name, pad=38)
        axes[1, column].set_xlabel("segments from cue to query")
    for axis in axes[0]:
        axis.set_ylim(-0.03, 1.03)
    axes[0, 0].set_ylabel("share of exact answers")
    axes[1, 0].set_ylabel("counterfactual gain, nats")
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=DARK, fontsize=9)
    save(figure, path)


def _panel(
    axis: Any, rows: list[dict[str, Any]], measure: str, ends: dict[str, int], *, final: bool
) -> None:
    """One measure by distance, a line for each label; distances are equally spaced."""
    head = measure == "accuracy"
    low, high = ("low", "high") if head else ("gain_low", "gain_high")
    apart = sorted({row["distance"] for row in rows})
    labels = sorted({row["label"] for row in rows})
    for index, label in enumerate(labels):
        mine = [row for row in rows if row["label"] == label]
        shift = 0.12 * (index - (len(labels) - 1) / 2)  # so that intervals do not overlap
        place = [apart.index(row["distance"]) + shift for row in mine]
        middle = [row[measure] for row in mine]
        bounds = [
            [0.0 if row[low] is None else max(0.0, row[measure] - row[low]) for row in mine],
            [0.0 if row[high] is None else max(0.0, row[high] - row[measure]) for row in mine],
        ]
        named = {1: "1 hop"}.get(label, f"{label} hops") if len(labels) > 1 else None
        axis.errorbar(
            place,
            middle,
            yerr=bounds,
            fmt="o-",
            color=COLOURS[index % len(COLOURS)],
            markersize=3.5,
            linewidth=1.5,
            elinewidth=1,
            label=named,
        )
    chance = rows[0]["chance"] if head else 0.0
    axis.axhline(chance, color=DARK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    if final:
        said = "chance" if head else "forgotten"
        axis.annotate(
            said, (1, chance), (4, 0), xycoords=("axes fraction", "data"), fontsize=8,
            textcoords="offset points", color=DARK, va="center",
        )  # fmt: skip
    sides = {"compressed memory": ("right", -3), "reach": ("left", 3)}  # their lines can be close
    for text, last in ends.items():
        inside = [i for i, distance in enumerate(apart) if distance <= last]
        if not inside or len(inside) == len(apart) or (text != "memory" and last <= ends["memory"]):
            continue
        axis.axvline(inside[-1] + 0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        if head:
            side, offset = sides.get(text, ("center", 0))
            axis.annotate(
                f"{text}\nends".replace("compressed ", "compressed\n"),
                (inside[-1] + 0.5, 1),
                (offset, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha=side,
                va="bottom",
                color=DARK,
                fontsize=7.5,
            )
    axis.set_xticks(range(len(apart)), [str(distance) for distance in apart])
    axis.set_xlim(-0.5, len(apart) - 0.5)
    axis.grid(axis="x", visible=False)
    if len(labels) > 1 and head:
        axis.legend(frameon=False, fontsize=8)
