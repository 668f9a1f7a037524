"""The style of all plots, with colours that colour-blind readers can distinguish."""

from pathlib import Path
from typing import Any

from streamlm.units import tokens_text as tokens_text

try:
    import matplotlib
except ImportError:
    raise ValueError("pictures need matplotlib: pip install 'streamlm[plots]'") from None

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe & Ito (2008).
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
GREY, DARK = "#999999", "#333333"

STYLE: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "text.color": DARK,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
}
matplotlib.rcParams.update(STYLE)


def panels(n: int, *, size: tuple[float, float], widths: list[float]) -> tuple[Any, list[Any]]:
    """A figure with n panels in a row; size in inches."""
    figure, axes = plt.subplots(
        1, n, figsize=size, gridspec_kw={"width_ratios": widths}, squeeze=False
    )
    return figure, list(axes[0])


def panels_of(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure with a grid of panels [rows, columns] that share x by column; size in inches."""
    return plt.subplots(rows, columns, figsize=size, squeeze=False, sharex="col")


def save(figure: Any, path: Path) -> None:
    """Write a figure to a file and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's version, equal figures give equal files.
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
