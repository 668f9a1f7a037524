"""The memory as SVG: a column per slot, a row per layer, or one row as a strip.

Each zone has the width of what it can hold. A cell's height shows how much compression kept; in
the rows of layers its colour shows the attention that the slot receives. The tokens are embedded,
so that the page's script can show the passage behind a slot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.demo.render.claim_html import claim_html
from apps.demo.render.text_html import escape
from streamlm.engine import Handle
from tokenizer import StreamDecoder

if TYPE_CHECKING:
    from streamlm.engine import Engine
    from streamlm.runtime.memory_report import MemoryReport
    from streamlm.sessions.session import Session

KINDS = ("compressed", "memory", "segment")
NAMES = {"compressed": "Compressed", "memory": "Memory", "segment": "Open segment"}
ROW = 20  # height of a layer, in units of the view box
GAP = 6  # columns between two zones
LEAST = 0.12  # the least height of a cell, as a share of its row
SEPARATOR = "\x1f"  # between the texts of tokens


@dataclass(frozen=True)
class Zones:
    """What each zone of a memory can hold.

    Attributes:
        compressed, memory, segment: slots; rate: tokens that one compressed slot stands for.
        pinned: first tokens that stay, which are not drawn.
    """

    compressed: int
    memory: int
    segment: int
    rate: int
    pinned: int = 0

    @classmethod
    def of(cls, config: Any) -> Zones:
        """The zones of a model that reports on its memory."""
        lengths = config.compressed_len, config.memory_len, config.segment_len
        pinned = config.pinned_len if config.head == "llama" else 0
        return cls(*lengths, config.compression_rate, pinned)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.compressed, self.memory, self.segment

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first column of each zone, and the column after its last."""
        found, x = [], 0
        for size in self.sizes:
            found.append((x, x + size))
            x += size + GAP * bool(size)
        return found


@dataclass(frozen=True)
class MemoryView:
    """The memory of a session at one moment, ready to be drawn.

    Attributes:
        report: the slots; pieces: the characters that each token from `report.first` on completes.
        zones: what the memory can hold.
    """

    report: MemoryReport
    pieces: Sequence[str]
    zones: Zones

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
        return cls(report, pieces, Zones.of(engine.checkpoint.model.config))

    def strip_html(self) -> str:
        """The claim, and the strip with its legend."""
        slots = sum(self.zones.sizes) + self.zones.pinned
        claim = claim_html(self.report.position, slots=slots, slot_bytes=self.report.slot_bytes)
        return f"{claim}{self.svg(layers=False)}"

    def svg(self, *, layers: bool = True) -> str:
        """Draw a row per layer; without `layers`, their mean as one narrow strip."""
        report, zones = self.report, self.zones
        error, attention = report.error, None
        if report.attention.shape[1]:
            attention = report.attention.mean(axis=1)  # [L, n]
        if not layers:
            error = error.mean(axis=0)[None]
            attention = None if attention is None else attention.mean(axis=0)[None]
        groups = self._groups()
        columns = np.concatenate([np.arange(*columns) for _, _, columns in groups])
        width, height = max(stop for _, stop in zones.spans), ROW * len(error)
        backgrounds = "".join(
            f'<rect class="background {kind}" x="{left}" y="0" width="{right - left}" '
            f'height="{height}"/>'
            for kind, (left, right) in zip(KINDS, zones.spans, strict=True)
        )
        heights = (ROW - 3) * np.maximum(LEAST, 1 - error)
        heights[:, (report.stop == 0).all(axis=0) & (report.compressions > 0)] = 0.0  # unknown
        cells = "".join(
            f'<g class="cells {kind}">'
            + (
                _shaded(columns[slots], heights[:, slots], _shades(attention)[:, slots])
                if layers and attention is not None
                else _outline(columns[slots], heights[:, slots])
            )
            + "</g>"
            for kind, slots, _ in groups
        )
        facts = escape(json.dumps(_facts(report, attention, error, columns, groups, zones)))
        texts = escape(SEPARATOR.join(piece.replace(SEPARATOR, " ") for piece in self.pieces))
        return (
            f'<figure class="memory{"" if layers else " strip"}" tabindex="0" role="group" '
            f'aria-label="Memory, {len(report)} slots. Arrow keys move between slots." '
            f'data-memory="{facts}" data-pieces="{texts}">{self._labels()}'
            f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true" '
            f'style="height:{height * (1.5 if layers else 1.6):.0f}px">{backgrounds}{cells}'
            f'<rect class="mark" width="1" height="{height}" x="-9"/></svg>{self._ages()}'
            f"{'' if layers else legend_html(self.zones, selects=self._selects)}"
            '<figcaption class="passage" aria-live="polite">Touch a slot to see the passage behind '
            "it.</figcaption></figure>"
        )

    @property
    def _selects(self) -> bool:
        """Whether compressed slots are those of single tokens, chosen among others."""
        report, old = self.report, self.report.compressions > 0
        return bool(old.any() and (report.stop - report.start)[:, old].max() == 1)

    def _groups(self) -> list[tuple[str, slice, tuple[int, int]]]:
        """Each zone's kind, its slots, and their columns: the past fills up from the right."""
        report, n = self.report, len(self.report)
        segment = report.position % self.zones.segment
        old = int((report.compressions > 0).sum())
        bounds, spans = pairwise([0, old, n - segment, n]), self.zones.spans
        groups = []
        for kind, (first, last), (left, right) in zip(KINDS, bounds, spans, strict=True):
            size = last - first
            columns = (left, left + size) if kind == "segment" else (right - size, right)
            groups.append((kind, slice(first, last), columns))
        return groups

    def _labels(self) -> str:
        shown = zip(self._groups(), self.zones.sizes, strict=True)
        return '<div class="zones">{}</div>'.format(
            "".join(
                f'<span style="flex:{size} 1 0" class="{kind}">{NAMES[kind]}'
                f"<small>{slots.stop - slots.start:,} of {size:,}</small></span>"
                for (kind, slots, _), size in shown
                if size
            )
        )

    def _ages(self) -> str:
        report, parts = self.report, []
        for (_, slots, _), size in zip(self._groups(), self.zones.sizes, strict=True):
            known = report.start[:, slots][:, (report.stop[:, slots] > 0).all(axis=0)]
            age = f"{report.position - int(known.min()):,} ago" if known.size else ""
            parts += [f'<span style="flex:{size} 1 0">{age}</span>'] if size else []
        return f'<div class="ages">{"".join(parts)}<span class="now">now</span></div>'


def legend_html(zones: Zones, *, selects: bool) -> str:
    """What the colours and heights of a strip mean; see `MemoryView._selects`."""
    merged = f"{zones.rate} tokens a slot; the lower, the more was lost"
    about = {
        "compressed": f"one of {zones.rate} tokens was kept" if selects else merged,
        "memory": "a token a slot, nothing lost",
        "segment": "the newest tokens; once full, they move on",
    }
    parts = (
        f'<span class="{kind}"><b>{NAMES[kind]}: </b>{about[kind]}</span>'
        for kind, size in zip(KINDS, zones.sizes, strict=True)
        if size
    )
    return f'<p class="legend">{"".join(parts)}</p>'


def _outline(columns: np.ndarray, heights: np.ndarray) -> str:
    """Cells of one colour as one path."""
    path = [
        f"M{column} {ROW * (row + 1) - 1.5:g}v{-height:.1f}h1v{height:.1f}"
        for row, cells in enumerate(heights)
        for column, height in zip(columns.tolist(), cells.tolist(), strict=True)
        if height
    ]
    return f'<path d="{"".join(path)}"/>'


def _shaded(columns: np.ndarray, heights: np.ndarray, shades: np.ndarray) -> str:
    """Cells with a shade each."""
    return "".join(
        f'<rect x="{column}" y="{ROW * (row + 1) - height - 1.5:.1f}" width="1" '
        f'height="{height:.1f}" style="--a:{shades[row, i]:.2f}"/>'
        for row, cells in enumerate(heights)
        for i, (column, height) in enumerate(zip(columns.tolist(), cells.tolist(), strict=True))
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


def _facts(
    report: MemoryReport,
    attention: np.ndarray | None,
    error: np.ndarray,
    columns: np.ndarray,
    groups: list[tuple[str, slice, tuple[int, int]]],
    zones: Zones,
) -> dict[str, object]:
    """What the page's script shows about each slot; rows as they are drawn."""
    same = (report.start == report.start[0]).all() and (report.stop == report.stop[0]).all()
    rows = slice(0, 1) if same else slice(None)  # one row where every layer has the same spans
    return {
        "position": report.position,
        "first": report.first,
        "columns": columns.tolist(),
        "zones": [(kind, slots.start, slots.stop) for kind, slots, _ in groups],
        "segment": zones.segment,
        "rate": zones.rate,
        "sizes": zones.sizes,
        "start": report.start[rows].tolist(),
        "stop": report.stop[rows].tolist(),
        "attention": None if attention is None else np.round(attention * 100, 2).tolist(),
        "lost": np.round(error, 2).tolist(),
    }
