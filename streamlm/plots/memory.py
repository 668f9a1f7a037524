"""A memory report as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter

from streamlm.plots.style import DARK, GREY, panels, save, tokens_text
from streamlm.runtime.memory_report import MemoryReport


def draw_memory(report: MemoryReport, path: Path, *, name: str) -> None:
    """Plot slots by age and layer: their attention on the left, their error on the right."""
    n_layers = len(report.start)
    figure, (left, right) = panels(2, size=(10.4, 1.6 + 0.34 * n_layers), widths=[1, 1])
    attention = report.attention.mean(axis=1)  # [L, n]
    positive = attention[attention > 0]
    low = float(np.quantile(positive, 0.05)) if len(positive) else 1e-6
    high = max(float(attention.max()), 2 * low)
    old = report.compressions == 1
    panels_ = (
        (left, attention, LogNorm(low, high), "viridis", "attention per query and slot"),
        (right, report.error, Normalize(0, 1), "magma_r", "compression error"),
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
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens_text(value)))
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
