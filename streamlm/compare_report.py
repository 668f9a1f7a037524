"""The report of `streamlm compare heads`: one HTML file that says who wins where."""

import base64
import html
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from streamlm.compare import Run
from streamlm.display import size_text
from streamlm.laboratory import mean_of
from streamlm.plots import BLUE, DARK, GREEN, GREY, ORANGE, SKY, panels, save, tokens_text

COLOURS = (BLUE, GREY, ORANGE, GREEN, SKY, DARK)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; color: #0072B2; }
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
    picture: Path,
    refused: Mapping[str, str],
) -> None:
    """Write the report.

    Args:
        rows: of `compare.summary`; runs: those that were measured.
        picture: of the differences in loss, which becomes part of the report.
        refused: by name, why a variant was not measured.
    """
    every = {row["variant"]: _measures(row["variant"], runs) for row in rows}
    every = {name: found for name, found in every.items() if found}
    measured = {name: mean_of(found) for name, found in every.items()}
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "measures.png"
        _draw(measured, drawn)
        pictures = [_embedded(each) for each in (picture, drawn) if each.exists()]
    title = f"Heads beside each other: {Path(str(settings['recipe'])).stem}"
    train = settings["train"]
    n_tokens = train["steps"] * train["batch_size"] * settings["model"]["segment_len"]
    seeds = max(row["seeds"] for row in rows)
    about = (
        f"Each was trained on the same {n_tokens:,} tokens, with {seeds} seed(s), as many "
        "parameters (within 2 %) and as many bytes of state; “full” has as many as it reads. "
        "Below bits per byte stands the difference from the reference with its 95 % interval over "
        "seeds, below the others their lowest and highest seed. The best of each column is bold. "
        "State counts the bytes that are saved; times are of this machine, on which other work may "
        "have run."
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(about)}</p>",
        f'<div class="wide">{_table(rows, every)}</div>',
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


def _measures(name: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [run.measures for run in runs if run.variant == name and run.measures is not None]


Column = tuple[str, Callable[[dict[str, Any], dict[str, Any]], float], Callable[[float], str], int]
# Name, value of (row, measures), how it is shown, and whether more (1) or less (-1) is better.
COLUMNS: list[Column] = [
    ("bits per byte", lambda row, _: row["bits_per_byte"], lambda v: f"{v:.4f}", -1),
    ("recall gain, nats", lambda _, m: _gain(m, 1), lambda v: f"{v:.2f}", 1),
    ("… beyond 4 segments", lambda _, m: _gain(m, 5), lambda v: f"{v:.2f}", 1),
    ("tokens/s read", lambda _, m: m["stream"][-1]["reading"], lambda v: f"{v:,.0f}", 1),
    ("written", lambda _, m: m["stream"][-1]["writing"], lambda v: f"{v:,.0f}", 1),
    ("state", lambda _, m: m["stream"][-1]["state_bytes"], size_text, -1),
    ("save, ms", lambda _, m: m["stream"][-1]["save_ms"], lambda v: f"{v:.1f}", -1),
    ("resume, ms", lambda _, m: m["stream"][-1]["resume_ms"], lambda v: f"{v:.1f}", -1),
]


def _gain(measures: dict[str, Any], nearest: int) -> float:
    """What having been told adds to the log-probability of an answer, from a distance on."""
    rows = [row["gain"] for row in measures["recall"] if row["distance"] >= nearest]
    return sum(rows) / len(rows)


def _table(rows: Sequence[dict[str, Any]], measured: dict[str, list[dict[str, Any]]]) -> str:
    shown = [row for row in rows if row["variant"] in measured]
    head = "".join(f"<th>{html.escape(name)}</th>" for name, *_ in COLUMNS)
    found = [
        [[value(row, each) for each in measured[row["variant"]]] for _, value, *_ in COLUMNS]
        for row in shown
    ]
    lines = []
    for row, cells in zip(shown, found, strict=True):
        parts = [f"<td>{html.escape(row['variant'])}</td>"]
        for at, (_, _, text, sign) in enumerate(COLUMNS):
            best = max(sign * fmean(others[at]) for others in found)
            mark = ' class="best"' if sign * fmean(cells[at]) == best else ""
            small = _spread(cells[at], text) if at else _difference(row)
            parts.append(f"<td{mark}>{html.escape(text(fmean(cells[at])))}{small}</td>")
        lines.append(f"<tr>{''.join(parts)}</tr>")
    return f"<table><tr><th>head</th>{head}</tr>{''.join(lines)}</table>"


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return ""
    spread = f" ± {row['half_interval']:.4f}" if row["half_interval"] is not None else ""
    return f"<br><small>{row['difference']:+.4f}{spread}</small>"


def _spread(seeds: list[float], text: Callable[[float], str]) -> str:
    low, high = text(min(seeds)), text(max(seeds))
    return f"<br><small>{html.escape(low)} – {html.escape(high)}</small>" if low != high else ""


def _draw(measured: dict[str, dict[str, Any]], path: Path) -> None:
    """Recall by distance, loss by position, bytes along the stream."""
    figure, (recall, loss, size) = panels(3, size=(12, 3.4), widths=[1, 1, 1])
    for (name, found), colour in zip(measured.items(), COLOURS * 4, strict=False):
        distances = [row["distance"] for row in found["recall"]]
        recall.plot(distances, [row["gain"] for row in found["recall"]], "o-", color=colour)
        places = [max(1.0, row["place"]) for row in found["loss_by_position"]]
        loss.plot(places, [row["nats"] for row in found["loss_by_position"]], color=colour)
        tokens = [row["tokens"] for row in found["stream"]]
        size.plot(
            tokens,
            [(row["state_bytes"] + row["derived_bytes"]) / 1e6 for row in found["stream"]],
            "o-",
            color=colour,
            label=name,
        )
    recall.set_xlabel("segments between telling and asking")
    recall.set_title("Gain of having been told, nats")
    loss.set_xscale("log", base=2)
    loss.xaxis.set_major_formatter(lambda value, _: tokens_text(value))
    loss.set_xlabel("tokens from the document's beginning")
    loss.set_title("Loss by position, nats a token")
    size.set_xscale("log", base=2)
    size.set_yscale("log")
    size.xaxis.set_major_formatter(lambda value, _: tokens_text(value))
    size.set_xlabel("tokens read")
    size.set_title("State and what is derived, MB")
    size.legend(frameon=False, fontsize=8)
    save(figure, path)


def _embedded(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f"data:image/png;base64,{data}"
