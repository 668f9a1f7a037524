"""The plot of `streamlm compare`: the difference of each variant from the reference."""

from pathlib import Path
from typing import Any

from streamlm.plots.style import BLUE, DARK, GREEN, GREY, ORANGE, panels, save


def draw(
    rows: list[dict[str, Any]], settings: dict[str, Any], path: Path, *, reference: str
) -> None:
    """Draw one line per variant, best at the top; left of zero is better than the reference."""
    shown = [row for row in rows if row["difference"] is not None]
    if not shown:
        return
    figure, (axis,) = panels(1, size=(7.2, 1.2 + 0.27 * len(shown)), widths=[1])
    for place, row in enumerate(shown):
        colour = _colour(row["variant"])
        error = row["half_interval"] or 0.0
        axis.errorbar(row["difference"], place, xerr=error, fmt="o", color=colour, capsize=2.5)
        seeds = row["differences"]
        axis.plot(seeds, [place] * len(seeds), "|", color=colour, markersize=8, alpha=0.7)
        axis.annotate(
            f"{row['bits_per_byte']:.4f}", (1.01, place), xycoords=("axes fraction", "data"),
            va="center", color=DARK,
        )  # fmt: skip
    # The seeds determine the range, so that one wide interval does not.
    widest = max((abs(value) for row in shown for value in row["differences"]), default=0.0)
    if widest:
        axis.set_xlim(-1.3 * widest, 1.3 * widest)
    axis.locator_params(axis="x", nbins=7)
    axis.set_yticks(range(len(shown)), [row["variant"] for row in shown])
    axis.invert_yaxis()
    axis.axvline(0, color=GREY, linewidth=1)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(
        f"bits per byte against “{reference}” (less is better)\n"
        "each seed, their mean, and its 95 % interval"
    )
    model = settings["model"]
    axis.set_title(
        f"{Path(settings['recipe']).stem}: memory {model['memory_len']}, "
        f"{model['compressed_len']} compressed at rate {model['compression_rate']}"
    )
    save(figure, path)


def _colour(variant: str) -> str:
    if variant.startswith(("drop", "not")):
        return GREY
    if variant.startswith("select"):
        return GREEN
    return BLUE if "," in variant else ORANGE
