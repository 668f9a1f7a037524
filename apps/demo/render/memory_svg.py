"""The memory as SVG: a column per slot, a row per layer.

A cell's colour shows the attention that the slot receives; its height shows how much compression
kept. The tokens are embedded, so that the page's script can show the passage behind a slot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.demo.render.text_html import escape
from streamlm.engine import Handle
from tokenizer import StreamDecoder

if TYPE_CHECKING:
    from streamlm.engine import Engine
    from streamlm.runtime.memory_report import MemoryReport
    from streamlm.sessions.session import Session

ZONES = (
    ("compressed", "Compressed", "several old tokens per slot"),
    ("memory", "Memory", "one token per slot"),
    ("segment", "Open segment", "the newest tokens"),
)
ROW = 20  # height of a layer, in units of the view box
GAP = 6  # columns between two zones
MIN_AGE_SHARE = 0.2  # share of the slots below which the last zone has no room for its age
SEPARATOR = "\x1f"  # between the texts of tokens


@dataclass(frozen=True)
class MemoryView:
    """The memory of a session at one moment, ready to be drawn.

    Attributes:
        report: the slots; pieces: the characters that each of `report.ids` completes.
        segment: number of slots in the open segment, the newest ones.
    """

    report: MemoryReport
    pieces: Sequence[str]
    segment: int

    @classmethod
    def of(
        cls,
        engine: Engine,
        session: Session,
        *,
        result: Callable[[Handle], Any] = Handle.result,
    ) -> MemoryView | None:
        """View a session's memory; None if nothing was read, or the head has no slots.

        Args:
            result: waits for a request.
        """
        try:
            report: MemoryReport = result(engine.memory_report(session))
        except ValueError:
            return None
        decoder = StreamDecoder(engine.checkpoint.tokenizer)
        pieces = [decoder.decode([id]) for id in report.ids]
        return cls(report, pieces, report.position % engine.checkpoint.model.config.segment_len)

    def svg(self, *, layers: bool = True) -> str:
        """Draw a row per layer; without `layers`, their mean as one narrow strip."""
        return _figure(self.report, self.pieces, segment=self.segment, layers=layers)


def _figure(report: MemoryReport, pieces: Sequence[str], *, segment: int, layers: bool) -> str:
    attention = report.attention.mean(axis=1)  # [L, n]
    error = report.error
    if not layers:
        attention, error = attention.mean(axis=0)[None], error.mean(axis=0)[None]
    shade = _shades(attention)
    n, zones = len(report), _zones(report, segment)
    spans, columns, x = [], np.zeros(n, int), 0
    for _, first, last in zones:
        columns[first:last] = x + np.arange(last - first)
        spans.append((x, x + last - first))
        x += last - first + GAP
    width, height = max(x - GAP, 1), ROW * len(attention)
    cells = []
    for layer in range(len(attention)):
        for i, column in enumerate(columns.tolist()):
            kept = max(0.12, 1 - float(error[layer, i]))
            bar = (ROW - 3) * kept
            cells.append(
                f'<rect x="{column}" y="{ROW * (layer + 1) - bar - 1.5:.1f}" width="1" '
                f'height="{bar:.1f}" style="--a:{shade[layer, i]:.2f}"/>'
            )
    backgrounds = "".join(
        f'<rect class="background {kind}" x="{left}" y="0" width="{right - left}" '
        f'height="{height}"/>'
        for (kind, _, _), (left, right) in zip(zones, spans, strict=True)
    )
    names = {kind: (name, about) for kind, name, about in ZONES}
    labels = "".join(
        f'<span style="flex:{last - first} 1 0" class="{kind}" title="{names[kind][1]}">'
        f"{names[kind][0]}<small>{last - first:,}</small></span>"
        for kind, first, last in zones
    )
    oldest = [report.position - int(report.start[:, first].min()) for _, first, _ in zones]
    age_texts = [f"{age:,} ago" for age in oldest]
    if n - zones[-1][1] < MIN_AGE_SHARE * n:
        age_texts[-1] = ""
    ages = "".join(
        f'<span style="flex:{last - first} 1 0">{text}</span>'
        for text, (_, first, last) in zip(age_texts, zones, strict=True)
    )
    facts = escape(json.dumps(_facts(report, attention, error, columns, zones)))
    texts = escape(SEPARATOR.join(piece.replace(SEPARATOR, " ") for piece in pieces))
    return (
        f'<figure class="memory{"" if layers else " strip"}" tabindex="0" role="group" '
        f'aria-label="Memory, {n} slots. Arrow keys move between slots." '
        f'data-memory="{facts}" data-pieces="{texts}"><div class="zones">{labels}</div>'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true" '
        f'style="height:{height * (1.5 if layers else 1.6):.0f}px">{backgrounds}{"".join(cells)}'
        f'<rect class="mark" width="1" height="{height}" x="-9"/></svg>'
        f'<div class="ages">{ages}<span class="now">now</span></div>'
        '<figcaption class="passage" aria-live="polite">Select a slot to see the passage it '
        "represents.</figcaption></figure>"
    )


def _shades(attention: np.ndarray) -> np.ndarray:
    """Attention on a logarithmic scale from 0 to 1; a few slots receive nearly all of it."""
    positive = attention[attention > 0]
    if not len(positive):
        return np.zeros_like(attention)
    low, high = np.log(np.quantile(positive, [0.05, 1.0]))
    scaled = (np.log(np.maximum(attention, 1e-30)) - low) / max(high - low, 1e-9)
    shades: np.ndarray = 0.25 + 0.75 * np.clip(scaled, 0, 1)
    return shades


def _zones(report: MemoryReport, segment: int) -> list[tuple[str, int, int]]:
    """The non-empty zones: kind, first slot, and the slot after the last."""
    n, old = len(report), int((report.compressions > 0).sum())
    bounds = [0, old, n - segment, n]
    return [
        (kind, first, last)
        for (kind, _, _), (first, last) in zip(ZONES, pairwise(bounds), strict=True)
        if last > first
    ]


def _facts(
    report: MemoryReport,
    attention: np.ndarray,
    error: np.ndarray,
    columns: np.ndarray,
    zones: list[tuple[str, int, int]],
) -> dict[str, object]:
    """What the page's script shows about each slot; rows as they are drawn."""
    same = (report.start == report.start[0]).all() and (report.stop == report.stop[0]).all()
    rows = slice(0, 1) if same else slice(None)  # one row where every layer has the same spans
    return {
        "position": report.position,
        "first": report.first,
        "columns": columns.tolist(),
        "zones": zones,
        "start": report.start[rows].tolist(),
        "stop": report.stop[rows].tolist(),
        "attention": np.round(attention * 100, 2).tolist(),
        "lost": np.round(error, 2).tolist(),
    }


def retention_curve(report: MemoryReport) -> str:
    """The share of the text that memory retains, by its age in tokens."""
    position = report.position
    oldest = position - int(report.start.min())
    reach = min(position, math.ceil(oldest * 1.6))
    edges = sorted({1, *np.geomspace(1, max(reach, 2), 40).astype(int).tolist(), oldest, reach})
    edges = [edge for edge in edges if edge <= position]
    points = []
    for near, far in pairwise([0, *edges]):
        points.append((far, report.kept(position - far, position - near)))
    width, height, left, right, top = 400, 150, 34, 22, 8

    def x(age: float) -> float:
        return left + (width - left - right) * math.log(max(age, 1)) / math.log(max(reach, 2))

    def y(kept: float) -> float:
        return top + (height - top - 24) * (1 - kept)

    path = " ".join(f"{x(age):.1f},{y(kept):.1f}" for age, kept in points)
    ticks = "".join(
        f'<text x="{x(age):.1f}" y="{height - 6}" text-anchor="middle">{age:,}</text>'
        for age in (4**n for n in range(12))
        if age <= reach
    )
    lines = "".join(
        f'<line x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        f'<text x="{left - 4}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.5, 1)
    )
    table = "; ".join(f"{age:,} tokens ago {kept:.0%}" for age, kept in points[:: len(points) // 6])
    return (
        f'<figure class="curve"><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Retained, by age: {table}">{lines}{ticks}'
        f'<polyline points="{path}"/></svg>'
        f"<figcaption>Share of the text retained, by age in tokens. Text read more than "
        f"{oldest:,} tokens ago no longer has a slot.</figcaption></figure>"
    )
