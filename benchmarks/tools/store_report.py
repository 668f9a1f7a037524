"""The table and the picture of `benchmarks.store`."""

from pathlib import Path
from typing import Any

from rich.table import Table

from streamlm.cli.display import output
from streamlm.plots.style import BLUE, GREEN, GREY, ORANGE, panels, save, tokens_text

TARGETS = {"commit": 2.5, "resume": 2.0}
FORKS = 100
TOKENS = 16_384  # a commit, as `streamlm feed` saves


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table(title="a store beside the least a disk can do")
    kinds = {"commit": "commit", "resume": "resume", "resume_into_used_memory": "resume again"}
    for column in ("state", "added"):
        table.add_column(column, justify="right")
    for kind in kinds.values():
        table.add_column(f"{kind}, ms", justify="right")
        table.add_column("× floor", justify="right")
    for name, found in figures.get("costs", {}).items():
        cells = []
        for what in kinds:
            times = found[what]["to_floor"]
            cells += [
                f"{found[what]['ms']['median']:.1f}",
                f"{times['median']:.1f} ({times['low']:.1f} – {times['high']:.1f})",
            ]
        table.add_row(name, f"{found['added_bytes'] / 1e6:.1f} MB", *cells)
    output.print(table)
    if "forks" in figures:
        found = figures["forks"]
        output.print(
            f"{FORKS} forks add {found['share_of_bytes']:.2%} to the bytes of a session of two "
            f"commits, {found['share']:.2%} to its blocks on the disk"
        )
    for name, found in figures.get("feeding", {}).items():
        costs = found["to_none"]
        output.print(
            f"reading with a commit each segment takes {costs['median']:.3f} "
            f"({costs['low']:.3f} – {costs['high']:.3f}) of the time without: {name} model, "
            f"{found['segment_ms']['median']:.0f} ms a segment"
        )
    for name, found in figures.get("years", {}).items():
        output.print(
            f"keep {name}: {found['bytes_a_token']:.2f} bytes a token on disk, "
            f"{found['bytes_a_token_late']:.2f} in the later half; collecting took "
            f"{found['collecting_seconds']:.0f} s"
        )


def draw(figures: dict[str, Any], path: Path) -> None:
    """Ratios to the floor, and disk along many commits."""
    figure, (ratios, disk) = panels(2, size=(9, 3.2), widths=[1, 1.2])
    names = list(figures["costs"])
    for offset, (what, colour) in zip(
        (-0.12, 0.12), (("commit", BLUE), ("resume", GREEN)), strict=True
    ):
        for place, name in enumerate(names):
            found = figures["costs"][name][what]["to_floor"]
            ratios.plot([found["low"], found["high"]], [place + offset] * 2, color=colour)
            ratios.plot(found["median"], place + offset, "o", color=colour)
        ratios.axvline(TARGETS[what], color=colour, linestyle="--", linewidth=1)
        ratios.annotate(
            f"{what} ≤ {TARGETS[what]:g}", (TARGETS[what], 0.98), color=colour, rotation=90,
            xycoords=("data", "axes fraction"), ha="right", va="top",
        )  # fmt: skip
    ratios.set_yticks(range(len(names)), names)
    ratios.set_ylim(len(names) - 0.5, -0.5)
    ratios.set_xlim(left=0)
    ratios.set_xlabel("times np.save + fsync, np.load")
    ratios.set_title("Commit and resume beside the floor")
    for (name, found), colour in zip(
        figures["years"].items(), (GREY, BLUE, ORANGE, GREEN), strict=True
    ):
        x, y = zip(*found["curve"], strict=True)
        disk.plot(x, [value / 1e6 for value in y], color=colour, label=f"keep {name}")
    disk.legend(loc="upper left", frameon=False)
    disk.set_xlabel(f"commits, of {TOKENS:,} tokens each")
    disk.set_ylabel("MB on disk")
    disk.xaxis.set_major_formatter(lambda value, _: tokens_text(value))
    disk.set_title("A small session for ever")
    save(figure, path)
