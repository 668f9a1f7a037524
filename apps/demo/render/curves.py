"""Results of `streamlm compare` as interactive curves: recall, loss, memory, loss differences.

The values are embedded, so that the page's script can show the value of the nearest point.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from apps.demo.render.text_html import escape
from streamlm.units import size_text, tokens_text

COLOURS = 7  # that the page tells apart; further lines have the same colours and are dashed
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 210, 58, 10, 10, 24
Value = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Panel:
    """One plot: a line per variant, averaged over its seeds.

    Attributes:
        measure: the entry of a run's `measures` to plot, a list with one row per point.
        x: the row's field on the x axis; y: the value of a row on the y axis.
        x_label, y_label: the axes in words; format: a value of y as text.
        log: whether x, and y, are logarithmic.
    """

    title: str
    measure: str
    x: str
    y: Value
    x_label: str
    y_label: str
    format: Callable[[float], str]
    log: tuple[bool, bool] = (False, False)


def _bytes(row: Mapping[str, Any]) -> float:
    return float(row["state_bytes"] + row["derived_bytes"])


PANELS = (
    Panel(
        "Recall: gain from the cue", "recall", "distance", lambda row: float(row["gain"]),
        "segments between cue and query", "nats", lambda y: f"{y:.3f}",
    ),
    Panel(
        "Loss by position", "loss_by_position", "place", lambda row: float(row["nats"]),
        "tokens from the start", "nats per token", lambda y: f"{y:.3f}", (True, False),
    ),
    Panel(
        "Memory: state and cache", "stream", "tokens", _bytes,
        "tokens read", "bytes", size_text, (True, True),
    ),
)  # fmt: skip


def comparison_curves(path: Path) -> str:
    """Draw the results of a comparison, a JSON file; "" if it holds nothing to draw."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        rows, runs = figures["summary"], figures["runs"]
        colours = {row["variant"]: index for index, row in enumerate(rows)}
        figures_html = [_differences(rows), *(_panel(panel, runs, colours) for panel in PANELS)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f'<div class="lab">{"".join(figures_html)}</div>'


def _panel(panel: Panel, runs: Sequence[Mapping[str, Any]], colours: Mapping[str, int]) -> str:
    rows: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for row in (run.get("measures") or {}).get(panel.measure, ()):
            of_variant = rows.setdefault(run["variant"], {})
            of_variant.setdefault(float(row[panel.x]), []).append(panel.y(row))
    if not rows:
        return ""
    lines = {
        name: sorted((at, fmean(values)) for at, values in points.items())
        for name, points in sorted(rows.items(), key=lambda item: colours[item[0]])
    }
    all_points = [point for points in lines.values() for point in points]
    x, y = (_scale([point[axis] for point in all_points], panel.log[axis]) for axis in (0, 1))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = x(point[0]), y(point[1])
        return (
            round(LEFT + (WIDTH - LEFT - RIGHT) * across, 1),
            round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - up), 1),
        )

    drawn, facts = [], []
    for name, points in lines.items():
        path = " ".join(f"{a},{b}" for a, b in map(place, points))
        drawn.append(f'<polyline {_colour(colours[name])} points="{path}"/>')
        values = [[*place(p), f"{p[0]:,.0f} {panel.x_label}: {panel.format(p[1])}"] for p in points]
        facts.append([name, values, colours[name]])
    ends = [[pick(point[axis] for point in all_points) for pick in (min, max)] for axis in (0, 1)]
    marks = "".join(
        f'<text x="{a}" y="{HEIGHT - 6}" text-anchor="{anchor}">{tokens_text(value)}</text>'
        for value, a, anchor in zip(ends[0], (LEFT, WIDTH - RIGHT), ("start", "end"), strict=True)
    ) + "".join(
        f'<text x="{LEFT - 4}" y="{b}" text-anchor="end">{escape(panel.format(value))}</text>'
        for value, b in zip(ends[1], (HEIGHT - BOTTOM, TOP + 8), strict=True)
    )
    about = f"{panel.y_label}, by {panel.x_label}"
    return _figure(panel.title, about, "".join(drawn) + marks, facts, HEIGHT)


def _differences(summary: Sequence[Mapping[str, Any]]) -> str:
    """Difference in bits per byte from the reference, with its interval over seeds, per variant."""
    rows = [row for row in summary if row["difference"] is not None]
    if not rows:
        return ""
    halves = [row["half_interval"] or 0.0 for row in rows]
    ends = [row["difference"] + sign * half for row, half in zip(rows, halves, strict=True)
            for sign in (-1, 1)]  # fmt: skip
    x = _scale([*ends, 0.0], False)
    drawn, facts, sure, step = [], [], list[bool](), 14

    def across(value: float) -> float:
        return round(10 + (WIDTH - 20) * x(value), 1)

    for index, (row, half) in enumerate(zip(rows, halves, strict=True)):
        value, y = row["difference"], TOP + step * (index + 0.5)
        drawn.append(
            f"<polyline {_colour(index)} "
            f'points="{across(value - half)},{y} {across(value + half)},{y}"/>'
            f'<circle {_colour(index)} cx="{across(value)}" cy="{y}" r="3"/>'
        )
        text = f"{row['bits_per_byte']:.4f} bits per byte, {value:+.4f} ± {half:.4f}"
        sure.append(row["half_interval"] is not None and abs(value) > half)
        facts.append([row["variant"], [[across(value), y, text]], index])
    height = TOP + step * len(rows) + BOTTOM
    zero = across(0.0)
    axis = (
        f'<line x1="{zero}" x2="{zero}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text x="{zero}" y="{height - 6}" text-anchor="middle">±0</text>'
    )
    about = "bits per byte relative to the reference, 95% interval over seeds; lower is better"
    about += "; bold: the interval excludes zero"
    return _figure("Differences in loss", about, axis + "".join(drawn), facts, height, bold=sure)


def _colour(index: int) -> str:
    """The attributes of a line, and of its name, that give it its colour."""
    dashed = " dashed" if index >= COLOURS else ""
    return f'class="c{index % COLOURS}{dashed}" style="--c:{index}"'


def _scale(values: Sequence[float], log: bool) -> Callable[[float], float]:
    """Map the range of `values` linearly, or logarithmically, to 0..1."""

    def transformed(value: float) -> float:
        return math.log(max(value, 1e-9)) if log else value

    low, high = transformed(min(values)), transformed(max(values))
    return lambda value: (transformed(value) - low) / ((high - low) or 1.0)


def _figure(
    title: str,
    about: str,
    drawn: str,
    facts: list[Any],
    height: int,
    *,
    bold: Sequence[bool] = (),
) -> str:
    """A plot to explore by pointer or keyboard.

    Args:
        facts: (name, points with text, colour) each; bold: which names are bold.
    """
    names = "".join(
        f"<span {_colour(colour)}>{f'<b>{escape(name)}</b>' if strong else escape(name)}</span>"
        for (name, _, colour), strong in zip(facts, bold or [False] * len(facts), strict=True)
    )
    return (
        f'<figure class="curves" tabindex="0" role="group" aria-label="{escape(title)}: '
        f'{escape(about)}. Arrow keys move between points and lines." '
        f'data-curves="{escape(json.dumps(facts))}">'
        f"<b>{escape(title)}</b> <small>{escape(about)}</small>"
        f'<svg viewBox="0 0 {WIDTH} {height}" aria-hidden="true">{drawn}'
        f'<circle class="at" r="5" cx="-9" cy="-9"/></svg><div class="names">{names}</div>'
        '<figcaption aria-live="polite">Select a line to see its values.</figcaption></figure>'
    )
