"""The memory as a picture: a column for each slot, a row for each layer, drawn as SVG.

The colour of a cell is the attention that it receives, its height what compression has kept of it.
The page's script says which passage a slot stands for; the tokens travel with the picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from apps.demo.render.text_html import safe
from streamlm.runtime.reports import Progress
from streamlm.units import duration_text
from tokenizer import StreamDecoder

if TYPE_CHECKING:
    from streamlm.runtime.memory_report import MemoryReport
    from streamlm.sessions.session import Session

ZONES = (
    ("compressed", "Compressed memory", "several old tokens in one slot"),
    ("memory", "Memory", "a slot for each token"),
    ("segment", "Open segment", "the newest tokens"),
)
ROW = 20  # height of a layer
GAP = 6  # columns between two zones
SEPARATOR = "\x1f"  # of the tokens' texts


@dataclass(frozen=True)
class Seen:
    """A look at a memory.

    Attributes:
        report: what was seen; pieces: the characters that each of `report.ids` completes.
        segment: slots of the open segment, the newest ones.
    """

    report: MemoryReport
    pieces: Sequence[str]
    segment: int

    @classmethod
    def of(cls, session: Session) -> Seen | None:
        """What a session remembers; None where nothing was read, or a head has no slots."""
        try:
            report = session.memory_report()
        except ValueError:
            return None
        decoder = StreamDecoder(session.checkpoint.tokenizer)
        pieces = [decoder.decode([id]) for id in report.ids]
        return cls(report, pieces, session.state.phase)

    def picture(self, *, layers: bool = True) -> str:
        """The picture; without `layers`, their mean as a narrow strip."""
        return _picture(self.report, self.pieces, segment=self.segment, layers=layers)


def _picture(report: MemoryReport, pieces: Sequence[str], *, segment: int, layers: bool) -> str:
    attention = report.attention.mean(axis=1)  # [L, n]
    error = report.error
    if not layers:
        attention, error = attention.mean(axis=0)[None], error.mean(axis=0)[None]
    shade = _shades(attention)
    zones = _zones(report, segment)
    at, columns, x = [], np.zeros(len(report), int), 0
    for _, first, last in zones:
        columns[first:last] = x + np.arange(last - first)
        at.append((x, x + last - first))
        x += last - first + GAP
    width, height = max(x - GAP, 1), ROW * len(attention)
    cells = []
    for layer in range(len(attention)):
        for i, column in enumerate(columns.tolist()):
            kept = max(0.12, 1 - float(error[layer, i]))
            tall = (ROW - 3) * kept
            cells.append(
                f'<rect x="{column}" y="{ROW * (layer + 1) - tall - 1.5:.1f}" width="1" '
                f'height="{tall:.1f}" style="--a:{shade[layer, i]:.2f}"/>'
            )
    grounds = "".join(
        f'<rect class="ground {kind}" x="{left}" y="0" width="{right - left}" height="{height}"/>'
        for (kind, _, _), (left, right) in zip(zones, at, strict=True)
    )
    names = {kind: (name, about) for kind, name, about in ZONES}
    labels = "".join(
        f'<span style="flex:{last - first} 1 0" class="{kind}" title="{names[kind][1]}">'
        f"{names[kind][0]}<small>{last - first:,}</small></span>"
        for kind, first, last in zones
    )
    oldest = [report.position - int(report.start[:, first].min()) for _, first, _ in zones]
    ages = "".join(
        f'<span style="flex:{last - first} 1 0">{age:,} ago</span>'
        for age, (_, first, last) in zip(oldest, zones, strict=True)
    )
    facts = safe(json.dumps(_facts(report, attention, error, columns, zones)))
    words = safe(SEPARATOR.join(piece.replace(SEPARATOR, " ") for piece in pieces))
    return (
        f'<figure class="memory{"" if layers else " strip"}" tabindex="0" role="group" '
        f'aria-label="Memory, {len(report)} slots. Arrow keys move from slot to slot." '
        f'data-memory="{facts}" data-pieces="{words}"><div class="zones">{labels}</div>'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true" '
        f'style="height:{height * (1.5 if layers else 1.6):.0f}px">{grounds}{"".join(cells)}'
        f'<rect class="mark" width="1" height="{height}" x="-9"/></svg>'
        f'<div class="ages">{ages}<span class="now">now</span></div>'
        '<figcaption class="passage" aria-live="polite">Touch a slot to see the passage it stands '
        "for.</figcaption></figure>"
    )


def _shades(attention: np.ndarray) -> np.ndarray:
    """From 0 to 1, by order of magnitude; a few slots get nearly all of the attention."""
    positive = attention[attention > 0]
    if not len(positive):
        return np.zeros_like(attention)
    low, high = np.log(np.quantile(positive, [0.05, 1.0]))
    scaled = (np.log(np.maximum(attention, 1e-30)) - low) / max(high - low, 1e-9)
    shades: np.ndarray = 0.15 + 0.85 * np.clip(scaled, 0, 1)
    return shades


def _zones(report: MemoryReport, segment: int) -> list[tuple[str, int, int]]:
    """The zones that have slots: their kinds, and the slots first ≤ i < last."""
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
    """What the page's script needs to tell about slots; layers as they are drawn."""
    alike = bool((report.start == report.start[0]).all() and (report.stop == report.stop[0]).all())
    rows = slice(0, 1) if alike else slice(None)
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


def recall_curve(report: MemoryReport) -> str:
    """How much is kept of what was read so long ago, from the report's own score."""
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
        f'aria-label="Kept, by age: {table}">{lines}{ticks}'
        f'<polyline points="{path}"/></svg>'
        f"<figcaption>How much of the text is kept, by its age in tokens. What was read more than "
        f"{oldest:,} tokens ago has no slot any more.</figcaption></figure>"
    )


def progress_bar(done: Progress, *, skipped: int) -> str:
    """How far a reading has come, how fast it goes, and how well it predicts."""
    report = done.report
    share = done.read / done.size if done.size else 0.0
    speed = report.tokens_per_second
    fresh = max(done.read - skipped, 1)
    left = (done.size or done.read) - done.read
    facts = [f"{share:.0%}", f"{report.tokens:,} tokens"]
    if skipped:
        facts.append(f"went on at byte {skipped:,}")
    if speed:
        facts.append(f"{speed:,.0f} tokens/s")
    if left and report.seconds:
        facts.append(f"{duration_text(left * report.seconds / fresh)} left")
    if report.bits_per_byte is not None:
        facts.append(f"{report.bits_per_byte:.2f} bits per byte")
    return (
        f'<div class="going"><div role="progressbar" aria-label="Read so far" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}"><div style="width:{share:.1%}">'
        f'</div></div><p role="status">{" · ".join(facts)}</p></div>'
    )
