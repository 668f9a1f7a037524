"""The table and the picture of `benchmarks.books`."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.tools.positions import ENOUGH
from benchmarks.tools.reads import NONE, RECENT, WHOLE
from streamlm.cli.display import output
from streamlm.plots.style import BLUE, DARK, GREEN, GREY, ORANGE, panels, save

COLOURS = {WHOLE: BLUE, RECENT: GREEN, NONE: ORANGE}


def show(figures: dict[str, Any]) -> None:
    """Print bits per byte, and the differences by position."""
    table = Table(title="bits per byte")
    for column in ("", "bits per byte", "95 % over books", "word perplexity"):
        table.add_column(column, justify="right" if column else "left")
    for name, model in figures["models"].items():
        between = "" if model["low"] is None else f"{model['low']:.3f} – {model['high']:.3f}"
        bits, words = model["bits_per_byte"], model["word_perplexity"]
        table.add_row(f"model, {name}", f"{bits:.4f}", between, f"{words:.2f}")
    for found in figures["compressors"]:
        table.add_row(found["name"], f"{found['bits_per_byte']:.4f}", "", "")
    output.print(table)
    for comparison in dict.fromkeys(row["comparison"] for row in figures["differences"]):
        table = Table(title=f"{comparison}: nats per token over the same tokens")
        for column in ("position in the book", "books", "difference", "95 %", "books better"):
            table.add_column(column, justify="right")
        for row in figures["differences"]:
            if row["comparison"] != comparison:
                continue
            table.add_row(
                f"{row['from']:,} – {row['to']:,}",
                str(row["books"]),
                f"{row['difference']:+.4f}",
                "" if row["low"] is None else f"{row['low']:+.4f} – {row['high']:+.4f}",
                f"{row['books_better']} of {row['books']}",
            )
        output.print(table)


def draw(figures: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    figure, (left, right) = panels(2, size=(10.4, 3.9), widths=[0.8, 1.1])
    _bars(left, figures)
    _positions(right, figures, settings)
    save(figure, path)


def _bars(axis: Any, figures: dict[str, Any]) -> None:
    rows = [(found["name"], found["bits_per_byte"], GREY) for found in figures["compressors"]]
    rows += [
        (f"this model, {name}", model["bits_per_byte"], COLOURS[name])
        for name, model in figures["models"].items()
    ]
    rows.sort(key=lambda row: -row[1])
    places = range(len(rows))
    axis.barh(places, [bits for _, bits, _ in rows], color=[c for *_, c in rows], height=0.68)
    for place, (_, bits, _) in zip(places, rows, strict=True):
        axis.text(bits + 0.03, place, f"{bits:.3f}", va="center", color=DARK)
    axis.set_yticks(places, [name for name, _, _ in rows])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.18 * max(bits for _, bits, _ in rows))
    axis.set_xlabel("bits per byte (less is better)")
    axis.set_title("Books the model never saw")
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)


def _positions(axis: Any, figures: dict[str, Any], settings: dict[str, Any]) -> None:
    ends = []
    for name, curve in figures["curves"]["log"].items():
        start, stop = np.array(curve["from"]), np.array(curve["to"])
        # Before the middle of the first segment, all ways of reading are one, and tokens are few.
        first = settings["config"]["segment_len"] // 2
        good = (start >= first) & (np.array(curve["books"]) >= ENOUGH)
        if not good.any():
            continue
        place = np.sqrt(start[good] * stop[good])
        nats = np.array(curve["nats"])[good]
        axis.plot(place, nats, "o-", color=COLOURS[name], markersize=3.5, linewidth=1.6)
        ends.append((nats[-1], place[-1], name))
    if not ends:
        return
    axis.set_xscale("log", base=2)
    # Labels stand at the ends of their lines, moved apart where the lines are close.
    low, high = axis.get_ylim()
    gap, last = 0.065 * (high - low), -np.inf
    for nats, place, name in sorted(ends):
        height = last = max(nats, last + gap)
        axis.annotate(
            name, (place, height), (7, 0), textcoords="offset points", va="center",
            color=COLOURS[name],
        )  # fmt: skip
    first, final = axis.get_xlim()
    axis.set_xlim(first, final * (final / first) ** 0.42)
    reach = settings["reach"]
    axis.axvline(reach, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axis.text(reach, axis.get_ylim()[1], f" reach: {reach:,} tokens", color=DARK, va="top")
    ticks = [2**n for n in range(5, 22, 2) if first <= 2**n <= final]
    axis.set_xticks(ticks, [f"{t // 1024}k" if t >= 1024 else str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("position in the book, tokens")
    axis.set_ylabel("nats per token")
    axis.set_title("Loss by position in the book")
