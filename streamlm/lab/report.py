"""The report of `streamlm compare heads`: a table and plots in one HTML file."""

import base64
import html
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from streamlm.lab.compare import Run
from streamlm.lab.costs import mean_of
from streamlm.lab.statistics import mean_interval
from streamlm.plots.style import BLUE, DARK, GREEN, GREY, ORANGE, SKY, panels, save, tokens_text
from streamlm.units import size_text

COLOURS = (BLUE, GREY, ORANGE, GREEN, SKY, DARK)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
td.better { font-weight: 700; color: #0072B2; }
td.worse { font-weight: 700; color: #D55E00; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
small { color: #555; }
"""


def write_report(
    path: Path,
    rows: Sequence[dict[str, Any]],
    runs: Sequence[Run],
    settings: dict[str, Any],
    *,
    reference: str,
    picture: Path,
    refused: Mapping[str, str],
) -> None:
    """Write the report.

    Args:
        rows: of `statistics.summary`; runs: all runs, of which only measured ones are shown.
        reference: the variant that differences are taken from.
        picture: the plot of differences in loss, which is embedded.
        refused: variants that look ahead, and their leak, by name.
    """
    measured_runs = {row["variant"]: _measured(row["variant"], runs) for row in rows}
    measured_runs = {name: each for name, each in measured_runs.items() if each}
    measures = {
        name: mean_of([run.measures for run in each if run.measures is not None])
        for name, each in measured_runs.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "measures.png"
        _draw(measures, drawn)
        pictures = [_embedded(each) for each in (picture, drawn) if each.exists()]
    title = f"Comparison of heads: {Path(str(settings['recipe'])).stem}"
    train = settings["train"]
    n_tokens = train["steps"] * train["batch_size"] * settings["model"]["segment_len"]
    seeds = max(row["seeds"] for row in rows)
    about = (
        f"All heads were trained on the same {n_tokens:,} tokens, with {seeds} seed(s), and have "
        "equal parameters (within 2 %) and equal bytes of state, except that the state of “full” "
        "grows with the stream. Below bits per byte: the difference from the reference with its "
        "95 % interval over seeds. Below other figures: the lowest and highest seed. Bold: the "
        f"95 % interval of the difference from “{reference}”, by seed, excludes zero; blue is "
        "better, orange worse. State is the bytes saved. Times depend on this machine and its load."
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(about)}</p>",
        f'<div class="wide">{_table(rows, measured_runs, reference)}</div>',
        *(
            f"<p>{html.escape(name)} looks ahead and was not measured: {html.escape(leak)}.</p>"
            for name, leak in refused.items()
        ),
        *(f'<p><img alt="{html.escape(title)}" src="{source}"></p>' for source in pictures),
        f"<p><small>{html.escape(str(settings['recipe']))}, {len(runs)} runs</small></p>",
    ]
    document = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    path.write_text(document, encoding="utf-8")


def _measured(name: str, runs: Sequence[Run]) -> list[Run]:
    """The measured runs of one variant, by seed."""
    measured = [run for run in runs if run.variant == name and run.measures is not None]
    return sorted(measured, key=lambda run: run.seed)


def _at_last(name: str) -> Callable[[Run], float]:
    """A measure at the end of the stream."""
    return lambda run: (run.measures or {})["stream"][-1][name]


Column = tuple[str, Callable[[Run], float], Callable[[float], str], int]
# Name, value of a run, its text, and whether more (1) or less (-1) is better.
COLUMNS: list[Column] = [
    ("bits per byte", lambda run: run.bits_per_byte, lambda v: f"{v:.4f}", -1),
    ("recall gain, nats", lambda run: _gain(run, 1), lambda v: f"{round(v, 3) + 0.0:.3f}", 1),
    ("… beyond 4 segments", lambda run: _gain(run, 5), lambda v: f"{round(v, 3) + 0.0:.3f}", 1),
    ("tokens/s read", _at_last("reading"), lambda v: f"{v:,.0f}", 1),
    ("written", _at_last("writing"), lambda v: f"{v:,.0f}", 1),
    ("state", _at_last("state_bytes"), size_text, -1),
    ("peak, reading", _at_last("peak_bytes"), size_text, -1),
    ("save, ms", _at_last("save_ms"), lambda v: f"{v:.1f}", -1),
    ("resume, ms", _at_last("resume_ms"), lambda v: f"{v:.1f}", -1),
]


def _gain(run: Run, nearest: int) -> float:
    """The mean counterfactual gain of recall over all distances from `nearest` on."""
    recall = (run.measures or {})["recall"]
    rows = [row["gain"] for row in recall if row["distance"] >= nearest]
    return sum(rows) / len(rows)


def _table(rows: Sequence[dict[str, Any]], measured: dict[str, list[Run]], reference: str) -> str:
    shown = [row["variant"] for row in rows if row["variant"] in measured]
    head = "".join(f"<th>{html.escape(name)}</th>" for name, *_ in COLUMNS)
    of_row = {row["variant"]: row for row in rows}
    lines = []
    for name in shown:
        runs = measured[name]
        parts = [f"<td>{html.escape(name)}</td>"]
        for at, (_, value, text, sign) in enumerate(COLUMNS):
            values = [value(run) for run in runs]
            mark = _mark([sign * each for each in _differences(runs, measured, reference, value)])
            small = _spread(values, text) if at else _difference(of_row[name])
            parts.append(f"<td{mark}>{html.escape(text(fmean(values)))}{small}</td>")
        lines.append(f"<tr>{''.join(parts)}</tr>")
    return f"<table><tr><th>head</th>{head}</tr>{''.join(lines)}</table>"


def _differences(
    runs: Sequence[Run],
    measured: Mapping[str, Sequence[Run]],
    reference: str,
    value: Callable[[Run], float],
) -> list[float]:
    """The differences of a value from the reference's, by seed."""
    base = {run.seed: value(run) for run in measured.get(reference, ())}
    return [value(run) - base[run.seed] for run in runs if run.seed in base]


def _mark(gains: Sequence[float]) -> str:
    """The class of a cell whose gains over the reference are surely above or below zero."""
    mean, half = mean_interval(gains)
    if mean is None or half is None or abs(mean) <= half:
        return ""
    return f' class="{"better" if mean > 0 else "worse"}"'


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return ""
    spread = f" ± {row['half_interval']:.4f}" if row["half_interval"] is not None else ""
    return f"<br><small>{row['difference']:+.4f}{spread}</small>"


def _spread(seeds: list[float], text: Callable[[float], str]) -> str:
    low, high = text(min(seeds)), text(max(seeds))
    return f"<br><small>{html.escape(low)} – {html.escape(high)}</small>" if low != high else ""


def _draw(of_head: dict[str, dict[str, Any]], path: Path) -> None:
    """Recall by distance, loss by position, peak bytes along the stream."""
    figure, (recall, loss, size) = panels(3, size=(12, 3.4), widths=[1, 1, 1])
    for at, (name, measures) in enumerate(of_head.items()):
        # More heads than distinguishable colours: the rest are dashed.
        colour, line = COLOURS[at % len(COLOURS)], "-" if at < len(COLOURS) else "--"
        distances = [row["distance"] for row in measures["recall"]]
        gains = [row["gain"] for row in measures["recall"]]
        recall.plot(distances, gains, f"o{line}", color=colour)
        places = [max(1.0, row["place"]) for row in measures["loss_by_position"]]
        loss.plot(places, [row["nats"] for row in measures["loss_by_position"]], line, color=colour)
        tokens = [row["tokens"] for row in measures["stream"]]
        size.plot(
            tokens,
            [row["peak_bytes"] / 1e6 for row in measures["stream"]],
            f"o{line}",
            color=colour,
            label=name,
        )
    recall.set_xlabel("segments from cue to query")
    recall.set_title("Counterfactual gain of recall, nats")
    loss.set_xscale("log", base=2)
    loss.xaxis.set_major_formatter(lambda value, _: tokens_text(value))
    loss.set_xlabel("tokens from the start of the document")
    loss.set_title("Loss by position, nats per token")
    size.set_xscale("log", base=2)
    size.set_yscale("log")
    for which in (size.yaxis.set_major_formatter, size.yaxis.set_minor_formatter):
        which("{x:g}")  # not powers of ten
    size.xaxis.set_major_formatter(lambda value, _: tokens_text(value))
    size.set_xlabel("tokens read")
    size.set_title("Peak of tensors while reading, MB")
    size.legend(frameon=False, fontsize=8)
    save(figure, path)


def _embedded(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f"data:image/png;base64,{data}"
