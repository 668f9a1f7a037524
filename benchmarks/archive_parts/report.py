"""What the outcomes of asking say: shares with intervals, by task and distance, and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.archive_parts.stream import BANDS
from streamlm.cli.display import output
from streamlm.lab.tasks.scoring import binomial_interval
from streamlm.plots.style import BLUE, DARK, GREEN, GREY, ORANGE, SKY, panels, save

COLORS = {
    "recall": BLUE,
    "heads alone": SKY,
    "without heads": GREEN,
    "BM25": ORANGE,
    "no recall": GREY,
    "in plain sight": DARK,
}
SHOWN = ("no recall", "in plain sight", "another's passage")  # nothing is looked for


def read_outcomes(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The outcomes that `ask` wrote."""
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [json.loads(line) for line in lines]


def shares(outcomes: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Counts and shares of outcomes that agree in `names`, with 95 % intervals (Wilson)."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for each in outcomes:
        groups.setdefault(tuple(each[name] for name in names), []).append(each)
    rows = []
    for key, some in groups.items():
        row: dict[str, Any] = dict(zip(names, key, strict=True)) | {"cases": len(some)}
        for what in ("found", "answered", "sure"):
            values = [each[what] for each in some if each[what] is not None]
            if values:
                low, high = binomial_interval(sum(values), len(values))
                row[what] = {"n": sum(values), "share": sum(values) / len(values)}
                row[what] |= {"low": low, "high": high}
        nats = [each["nats"] for each in some if each.get("nats") is not None]
        if nats:
            row["nats"] = float(np.mean(nats))
        row["seconds"] = sorted(each["seconds"] for each in some)[len(some) // 2]
        rows.append(row)
    return rows


def figures_of(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All figures; JSON."""
    return {
        "by task and distance": shares(outcomes, "task", "form", "way", "band"),
        "by distance": shares(outcomes, "form", "way", "band"),
        "by task": shares(outcomes, "task", "form", "way"),
        "all": shares(outcomes, "form", "way"),
    }


def show(figures: dict[str, Any]) -> None:
    """Tables of what is found and answered, by distance."""
    rows = figures["by distance"]
    bands = [band for band in BANDS if any(row["band"] == band for row in rows)]
    for what in ("found", "answered"):
        table = Table(title=f"{what}, of all cases, by tokens from the end")
        for column in ("asked by", "with", *bands):
            table.add_column(column, justify="right" if column in bands else "left")
        keys = dict.fromkeys((row["form"], row["way"]) for row in rows if what in row)
        for form, way in keys:
            if what == "found" and way in SHOWN:
                continue
            here = {r["band"]: r for r in rows if (r["form"], r["way"]) == (form, way)}
            cells = [f"{here[b][what]['n']}/{here[b]['cases']}" if b in here else "" for b in bands]
            table.add_row(form, way, *cells)
        output.print(table)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Found by distance, one panel for each way to ask; answered, one for each too."""
    rows = figures["by distance"]
    bands = [band for band in BANDS if any(row["band"] == band for row in rows)]
    wanted = (
        ("found", "cue", "found: the sentence's beginning"),
        ("found", "question", "found: a question"),
        ("found", "told", "found: other words"),
        ("answered", "cue", "answered: the sentence's end"),
        ("answered", "question", "answered: in a chat"),
    )
    figure, axes = panels(len(wanted), size=(14.5, 3.4), widths=[1] * len(wanted))
    for axis, (what, form, title) in zip(axes, wanted, strict=True):
        for way in COLORS:
            here = {r["band"]: r for r in rows if (r["form"], r["way"]) == (form, way)}
            if what == "found" and way in SHOWN:
                continue
            at = [n for n, band in enumerate(bands) if band in here and what in here[band]]
            if not at:
                continue
            found = [here[bands[n]][what] for n in at]
            middle = [each["share"] for each in found]
            axis.fill_between(
                at,
                [each["low"] for each in found],
                [each["high"] for each in found],
                color=COLORS[way],
                alpha=0.15,
                linewidth=0,
            )
            axis.plot(at, middle, "o-", color=COLORS[way], label=way, markersize=4)
        axis.set_xticks(range(len(bands)), bands)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(title)
    axes[0].set_ylabel("share of the cases", color=DARK)
    axes[2].set_xlabel("tokens read since")
    axes[3].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.35))
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, path)
