"""The picture of `benchmarks.speculative`: how much faster, and how much the drafter knows."""

from pathlib import Path
from typing import Any

from streamlm.plots.style import BLUE, DARK, GREY, ORANGE, panels, save


def draw(figures: dict[str, Any], path: Path) -> None:
    figure, (left, right) = panels(2, size=(9.2, 3.3), widths=[1.4, 1])
    runs = figures["runs"]
    for row, run in enumerate(runs):
        found = run["speedup"]
        left.plot([found["low"], found["high"]], [row, row], color=BLUE, linewidth=2.2)
        left.plot([found["median"]], [row], "o", color=BLUE, markersize=6)
        left.text(found["median"], row - 0.22, f"{found['median']:.2f}", ha="center", color=DARK)
    labels = [
        f"temperature {run['temperature']:g}, {run['drafted']} drafted,\n"
        f"{run['tokens_per_pass']:.2f} tokens for the price of "
        f"{run['cost_of_a_pass_in_plain_tokens']:.2f}"
        for run in runs
    ]
    left.set_yticks(range(len(runs)), labels)
    left.set_ylim(len(runs) - 0.5, -0.75)
    edges = [figures["target"], 1.0]
    edges += [run["speedup"][end] for run in runs for end in ("low", "high")]
    left.set_xlim(min(edges) - 0.05, max(edges) + 0.05)
    left.axvline(1, color=GREY, linewidth=0.8)
    target = figures["target"]
    left.axvline(target, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    left.text(target, -0.6, f" target {target:g}", color=ORANGE, va="center")
    left.set_xlabel("tokens per second, with a drafter ÷ without")
    left.set_title("Writing with a drafter beside without")
    left.grid(axis="y", visible=False)
    nats = figures["conditionally_independent_nats_by_offset"]
    offsets = range(1, len(nats) + 1)
    right.plot(offsets, nats, "o-", color=BLUE, linewidth=1.6)
    for offset, value in zip(offsets, nats, strict=True):
        right.annotate(
            f"{value:.2f}", (offset, value), (0, 7), textcoords="offset points", ha="center"
        )
    right.set_xticks(list(offsets))
    right.set_xlim(0.7, len(nats) + 0.3)
    right.set_ylim(0, 1.25 * max(nats))
    right.set_xlabel("tokens ahead of what is known")
    right.set_ylabel("nats, conditionally independent")
    right.set_title("The drafter alone")
    save(figure, path)
