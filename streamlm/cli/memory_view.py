"""The memory report for people: a table in the terminal, and a picture."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from streamlm.cli.display import output, show_table
from streamlm.runtime.memory_report import MemoryReport
from streamlm.units import size_text

ROWS = 24
BLOCKS = " ▁▂▃▄▅▆▇█"
KINDS = ("memory", "compressed")


def show_memory(report: MemoryReport, decode: Callable[[np.ndarray], str]) -> None:
    """Print what is remembered, oldest first: a row for some consecutive slots.

    Args:
        decode: tokens to text.
    """
    rows = list(_rows(report))
    received = np.array([report.attention[:, :, row].mean(axis=1).sum(axis=1) for row in rows])
    most = np.maximum(received.max(axis=0), 1e-30)  # [L]
    columns = ("tokens ago", "kind", "slots", "bytes a token", "lost", "attention")
    cells, texts = [], []
    for row, attention in zip(rows, received, strict=True):
        start, stop = int(report.start[:, row].min()), int(report.stop[:, row].max())
        covered = (report.stop[:, row] - report.start[:, row]).sum(axis=1).mean()
        kind = int(report.compressions[row[0]])
        levels = np.ceil(attention / most * (len(BLOCKS) - 1)).astype(int)
        ids = report.ids[max(0, start - report.first) : max(0, stop - report.first)]
        texts.append(" ".join(decode(ids).split()))
        cells.append(
            (
                f"{report.position - start:,} – {report.position - stop:,}",
                KINDS[kind],
                str(len(row)),
                f"{len(row) * report.slot_bytes / max(covered, 1):,.0f}",
                f"{report.error[:, row].mean():.0%}" if kind else "",
                "".join(BLOCKS[level] for level in levels),
            )
        )
    used = sum(max(map(len, column)) + 2 for column in zip(columns, *cells, strict=True))
    left = max(12, output.width - used)
    show_table(
        (*columns, "text"),
        [(*row, _shortened(text, left)) for row, text in zip(cells, texts, strict=True)],
        right=("tokens ago", "slots", "bytes a token", "lost"),
    )
    output.print(
        f"{len(report):,} slots, {size_text(len(report) * report.slot_bytes)}. Attention: by "
        "layer, first to last, as a share of the row that gets most of it."
    )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _rows(report: MemoryReport) -> Iterator[list[int]]:
    """Consecutive slots of one kind, in about ROWS groups."""
    size = -(-len(report) // ROWS)
    for kind in (1, 0):
        slots = np.flatnonzero(report.compressions == kind).tolist()
        for at in range(0, len(slots), size):
            yield slots[at : at + size]


def draw_memory(report: MemoryReport, path: Path, *, name: str) -> None:
    """A picture: age on one axis, layers on the other; attention above, and what was lost below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter

    from streamlm.plots.style import DARK, GREY, panels, save

    n_layers = len(report.start)
    figure, (left, right) = panels(2, size=(10.4, 1.6 + 0.34 * n_layers), widths=[1, 1])
    attention = report.attention.mean(axis=1)  # [L, n]
    positive = attention[attention > 0]
    low = float(np.quantile(positive, 0.05)) if len(positive) else 1e-6
    high = max(float(attention.max()), 2 * low)
    old = report.compressions == 1
    panels_ = (
        (left, attention, LogNorm(low, high), "viridis", "attention a query gave each slot"),
        (right, report.error, Normalize(0, 1), "magma_r", "lost in compression"),
    )
    oldest = report.position - int(report.start.min())
    for axis, values, norm, colours, title in panels_:
        shades = ScalarMappable(norm, colours)
        for layer in range(n_layers):
            spans = [
                (report.position - stop + 0.5, stop - start)
                for start, stop in zip(report.start[layer], report.stop[layer], strict=True)
            ]
            fill = shades.to_rgba(np.maximum(values[layer], low if axis is left else 0.0))
            axis.broken_barh(spans, (layer + 0.55, 0.9), facecolors=fill, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xlim(max(oldest, 2) * 1.05, 1)  # time runs to the right
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_ylim(0.5, n_layers + 0.5)
        axis.set_yticks(range(1, n_layers + 1))
        axis.set_xlabel("age, tokens")
        axis.set_ylabel("layer")
        axis.grid(visible=False)
        axis.set_title(title, pad=14)
        if old.any():
            border = report.position - int(report.stop[:, old].max()) + 0.5
            axis.axvline(border, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            axis.annotate(
                "compressed ", (border, 1.0), (-2, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right", color=DARK, fontsize=8,
            )  # fmt: skip
        figure.colorbar(shades, ax=axis, pad=0.02)
    figure.suptitle(f"{name}: {report.position:,} tokens read", x=0.01, ha="left")
    save(figure, path)
