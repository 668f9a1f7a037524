"""The memory of a session beside that of every token's keys and values, as a picture.

    python -m benchmarks.session_memory

The session is the one that `benchmarks.stream` measured: its state, and the keys and values of the
state's slots, which an open session keeps. The other curve is computed from the model's shape: a
Transformer that forgets nothing keeps 2 · L · H · E numbers for every token.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from streamlm.plots.style import BLUE, ORANGE, panels, save, tokens_text
from streamlm.units import size_text

FLOAT32 = 4  # bytes
TICKS = [10.0**exponent for exponent in range(3, 7)]


def key_value_bytes(config: dict[str, Any]) -> int:
    """Bytes of one token's keys and values in all layers, in float32."""
    return 2 * config["n_layers"] * config["n_heads"] * config["head_dim"] * FLOAT32


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the picture of a result file of `benchmarks.stream`."""
    marks = results["figures"]["state"]
    tokens = [mark["position"] for mark in marks]
    session = [mark["state_bytes"] + mark["derived_bytes"] for mark in marks]
    states = [mark["state_bytes"] for mark in marks]
    per_token = key_value_bytes(results["settings"]["config"])
    everything = [per_token * n for n in tokens]
    figure, (axis,) = panels(1, size=(7.6, 3.5), widths=[1])
    axis.plot(tokens, everything, color=ORANGE, linewidth=2.0)
    axis.plot(tokens, session, "o-", color=BLUE, linewidth=2.0, markersize=6)
    axis.plot(tokens, states, "o--", color=BLUE, linewidth=1.2, markersize=4)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(tokens[0] / 1.2, tokens[-1] * 1.1)
    axis.set_ylim(4e5, 3e10)
    axis.set_xticks(TICKS, [tokens_text(tick) for tick in TICKS])
    axis.yaxis.set_major_formatter(lambda size, _: size_text(size).replace(".0 ", " "))
    axis.minorticks_off()
    label = "every token's keys and values (computed)"
    axis.annotate(
        label, (tokens[2], everything[2]), xytext=(-14, 6), textcoords="offset points",
        color=ORANGE, ha="right",
    )  # fmt: skip
    _label(axis, tokens[1], session[0], "an open session with its keys and values", 7)
    _label(axis, tokens[1], states[0], "its state, which is what is saved", -16)
    for sizes, colour in ((everything, ORANGE), (session, BLUE), (states, BLUE)):
        axis.annotate(
            size_text(sizes[-1]), (tokens[-1], sizes[-1]), xytext=(7, 0), va="center",
            textcoords="offset points", color=colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    axis.set_xlabel("tokens read")
    axis.set_ylabel("bytes in memory")
    axis.set_title("Memory of a stream, by the tokens it has read")
    save(figure, path)


def _label(axis: Any, x: float, y: float, text: str, above: int) -> None:
    """Text that begins so many points above a point of a measured curve."""
    at = (0, above)
    axis.annotate(f"{text} (measured)", (x, y), xytext=at, textcoords="offset points", color=BLUE)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.session_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/stream.json"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    draw(results, options.out / "session-memory.png")


if __name__ == "__main__":
    main()
