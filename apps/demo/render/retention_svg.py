"""How much of the text still has a slot, by its age, as SVG."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from streamlm.units import tokens_text

if TYPE_CHECKING:
    from streamlm.runtime.memory_report import MemoryReport

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 150, 34, 22, 8, 24


def retention_curve(report: MemoryReport) -> str:
    """The share of the text that still has a slot, and what compression left of it, by age.

    A slot is no proof that the model can use the text: that is measured by recall alone.
    """
    position = report.position
    oldest = position - int(report.start.min())
    reach = min(position, math.ceil(oldest * 1.6))
    edges = sorted({1, *np.geomspace(1, max(reach, 2), 40).astype(int).tolist(), oldest, reach})
    points = []
    for near, far in pairwise([0, *(edge for edge in edges if edge <= position)]):
        span = position - far, position - near
        points.append((far, report.covered(*span), report.kept(*span)))

    def x(age: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(max(age, 1)) / math.log(max(reach, 2))

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    paths = [
        " ".join(f"{x(point[0]):.1f},{y(point[which]):.1f}" for point in points) for which in (1, 2)
    ]
    ticks = "".join(
        f'<text x="{x(age):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{tokens_text(age)}</text>'
        for age in (4**n for n in range(12))
        if age <= reach
    )
    lines = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        f'<text x="{LEFT - 4}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.5, 1)
    )
    step = max(1, len(points) // 6)
    table = "; ".join(f"{age:,} tokens ago {share:.0%}" for age, share, _ in points[::step])
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Still has a slot, by age: {table}">{lines}{ticks}'
        f'<polyline class="slot" points="{paths[0]}"/>'
        f'<polyline class="left" points="{paths[1]}"/></svg>'
        '<figcaption><span class="slot">Share of the text that still has a slot</span>, by age in '
        'tokens, and <span class="left">what compression left of it</span>. Text read more than '
        f"{oldest:,} tokens ago no longer has a slot. A slot does not mean that the model can use "
        "the text.</figcaption></figure>"
    )
