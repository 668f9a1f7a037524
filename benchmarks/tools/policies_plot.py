"""The picture of `benchmarks.policies`: differences from the plain window, with intervals."""

from pathlib import Path
from typing import Any

from streamlm.plots.style import BLUE, DARK, GREY, ORANGE, panels, save


def draw(figures: dict[str, Any], path: Path, *, reference: str) -> None:
    """A row for each policy but the reference, in the order given; better is to the left."""
    names = [name for name in figures if name != reference]
    figure, (axis,) = panels(1, size=(7.6, 0.42 * len(names) + 1.3), widths=[1])
    for row, name in enumerate(reversed(names)):
        found = figures[name]["against_window"]["nats_per_token"]
        middle, low, high = found["difference"], found["low"], found["high"]
        color = BLUE if high < 0 else ORANGE if low > 0 else GREY
        axis.plot([low, high], [row, row], color=color, linewidth=2.4)
        axis.plot([middle], [row], "o", color=color, markersize=6)
        axis.annotate(
            f"{middle:+.3f}", (high, row), xytext=(7, -3.5), textcoords="offset points", color=DARK
        )
    axis.axvline(0, color=DARK, linewidth=0.9)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_xscale("symlog", linthresh=0.05)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("nats per token, minus those of a window with pinned tokens (left is better)")
    axis.set_title("What a model of the Llama family loses by bounded memory")
    save(figure, path)
