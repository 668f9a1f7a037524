"""What `streamlm compare` has found as curves to touch: recall, loss, bytes, differences in loss.

The page's script tells the value of the nearest point; the values travel with the picture.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from apps.demo.render.text_html import safe
from streamlm.units import size_text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 210, 58, 10, 10, 24
Value = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Panel:
    """One picture: a line for each variant, the mean of its seeds.

    Attributes:
        part: of a run's measures, with a row for each point; x, y: what is drawn of a row.
        at, of: x and y in words; text: how a value of y is told.
        log: of x, and of y.
    """

    title: str
    part: str
    x: str
    y: Value
    at: str
    of: str
    text: Callable[[float], str]
    log: tuple[bool, bool] = (False, False)


def _bytes(row: Mapping[str, Any]) -> float:
    return float(row["state_bytes"] + row["derived_bytes"])


PANELS = (
    Panel(
        "What having been told adds", "recall", "distance", lambda row: float(row["gain"]),
        "segments between telling and asking", "nats", lambda y: f"{y:.3f}",
    ),
    Panel(
        "Loss by position", "loss_by_position", "place", lambda row: float(row["nats"]),
        "tokens from the beginning", "nats a token", lambda y: f"{y:.3f}", (True, False),
    ),
    Panel(
        "State, and what is derived from it", "stream", "tokens", _bytes,
        "tokens read", "bytes", size_text, (True, True),
    ),
)  # fmt: skip


def curves(path: Path) -> str:
    """The pictures of a comparison's results, a JSON file; "" where it holds none."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        rows, runs = figures["summary"], figures["runs"]
        colours = {row["variant"]: index for index, row in enumerate(rows)}
        found = [_differences(rows), *(_panel(panel, runs, colours) for panel in PANELS)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f'<div class="lab">{"".join(found)}</div>'


def _panel(panel: Panel, runs: Sequence[Mapping[str, Any]], colours: Mapping[str, int]) -> str:
    rows: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for row in (run.get("measures") or {}).get(panel.part, ()):
            of_variant = rows.setdefault(run["variant"], {})
            of_variant.setdefault(float(row[panel.x]), []).append(panel.y(row))
    if not rows:
        return ""
    lines = {
        name: sorted((at, fmean(values)) for at, values in points.items())
        for name, points in sorted(rows.items(), key=lambda item: colours[item[0]])
    }
    every = [point for points in lines.values() for point in points]
    x, y = (_scale([point[axis] for point in every], panel.log[axis]) for axis in (0, 1))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = x(point[0]), y(point[1])
        return (
            round(LEFT + (WIDTH - LEFT - RIGHT) * across, 1),
            round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - up), 1),
        )

    drawn, facts = [], []
    for name, points in lines.items():
        path = " ".join(f"{a},{b}" for a, b in map(place, points))
        drawn.append(f'<polyline style="--c:{colours[name]}" points="{path}"/>')
        told = [[*place(p), f"{p[0]:,.0f} {panel.at}: {panel.text(p[1])}"] for p in points]
        facts.append([name, told, colours[name]])
    ends = [[pick(point[axis] for point in every) for pick in (min, max)] for axis in (0, 1)]
    marks = "".join(
        f'<text x="{a}" y="{HEIGHT - 6}" text-anchor="{anchor}">{value:,.0f}</text>'
        for value, a, anchor in zip(ends[0], (LEFT, WIDTH - RIGHT), ("start", "end"), strict=True)
    ) + "".join(
        f'<text x="{LEFT - 4}" y="{b}" text-anchor="end">{safe(panel.text(value))}</text>'
        for value, b in zip(ends[1], (HEIGHT - BOTTOM, TOP + 8), strict=True)
    )
    return _figure(panel.title, f"{panel.of}, by {panel.at}", "".join(drawn) + marks, facts, HEIGHT)


def _differences(summary: Sequence[Mapping[str, Any]]) -> str:
    """Bits per byte beside the reference, with the interval over seeds, a row for each variant."""
    rows = [row for row in summary if row["difference"] is not None]
    if not rows:
        return ""
    halves = [row["half_interval"] or 0.0 for row in rows]
    ends = [row["difference"] + sign * half for row, half in zip(rows, halves, strict=True)
            for sign in (-1, 1)]  # fmt: skip
    x = _scale([*ends, 0.0], False)
    drawn, facts, step = [], [], 14

    def across(value: float) -> float:
        return round(10 + (WIDTH - 20) * x(value), 1)

    for index, (row, half) in enumerate(zip(rows, halves, strict=True)):
        value, y = row["difference"], TOP + step * (index + 0.5)
        drawn.append(
            f'<polyline style="--c:{index}" '
            f'points="{across(value - half)},{y} {across(value + half)},{y}"/>'
            f'<circle style="--c:{index}" cx="{across(value)}" cy="{y}" r="3"/>'
        )
        said = f"{row['bits_per_byte']:.4f} bits per byte, {value:+.4f} ± {half:.4f}"
        facts.append([row["variant"], [[across(value), y, said]], index])
    height = TOP + step * len(rows) + BOTTOM
    zero = across(0.0)
    ground = (
        f'<line x1="{zero}" x2="{zero}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text x="{zero}" y="{height - 6}" text-anchor="middle">±0</text>'
    )
    about = "bits per byte beside the reference's, 95 % over seeds; fewer are better"
    return _figure("Differences in loss", about, ground + "".join(drawn), facts, height)


def _scale(values: Sequence[float], log: bool) -> Callable[[float], float]:
    """From the least value to the largest as 0 to 1."""

    def turned(value: float) -> float:
        return math.log(max(value, 1e-9)) if log else value

    low, high = turned(min(values)), turned(max(values))
    return lambda value: (turned(value) - low) / ((high - low) or 1.0)


def _figure(title: str, about: str, drawn: str, facts: list[Any], height: int) -> str:
    """A picture to walk through; `facts`: lines of (name, points with words, colour)."""
    names = "".join(f'<span style="--c:{colour}">{safe(name)}</span>' for name, _, colour in facts)
    return (
        f'<figure class="curves" tabindex="0" role="group" aria-label="{safe(title)}: '
        f'{safe(about)}. Arrow keys move from point to point and from line to line." '
        f'data-curves="{safe(json.dumps(facts))}"><b>{safe(title)}</b> <small>{safe(about)}</small>'
        f'<svg viewBox="0 0 {WIDTH} {height}" aria-hidden="true">{drawn}'
        f'<circle class="at" r="5" cx="-9" cy="-9"/></svg><div class="names">{names}</div>'
        '<figcaption aria-live="polite">Touch a line to see its values.</figcaption></figure>'
    )
