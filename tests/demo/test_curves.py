"""Comparison curves embed their values, and nothing in a file becomes markup."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from apps.demo.render.curves import comparison_curves

ROOT = Path(__file__).resolve().parents[2]


def figures(drawn: str) -> list[Any]:
    """The data of each figure: lines of (name, points with text, colour)."""
    return [json.loads(html.unescape(found)) for found in re.findall(r'data-curves="(.*?)"', drawn)]


def test_curves_of_a_comparison() -> None:
    path = ROOT / "benchmarks/results/heads-compare-small.json"
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    differences, recall, loss, size = figures(comparison_curves(path))
    assert [name for name, *_ in differences] == [row["variant"] for row in found["summary"]]
    for lines in (recall, loss, size):
        assert {name for name, *_ in lines} == {run["variant"] for run in found["runs"]}
    first = found["runs"][0]["variant"]
    seeds = [run["measures"] for run in found["runs"] if run["variant"] == first]
    mean = sum(seed["recall"][0]["gain"] for seed in seeds) / len(seeds)
    _, points, _ = next(line for line in recall if line[0] == first)
    assert points[0][2] == f"0 segments between cue and query: {mean:.3f}"
    all_points = [
        point for lines in (recall, loss, size) for _, points, _ in lines for point in points
    ]
    for x, y, _ in all_points:
        assert 0 <= x <= 400 and 0 <= y <= 210


def test_bold_names_are_sure() -> None:
    """Bold: the 95 % interval of a difference excludes zero."""
    path = ROOT / "benchmarks/results/heads-compare-small.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["figures"]["summary"]
    first, *others = comparison_curves(path).split("</figure>")[:4]
    sure = {row["variant"] for row in summary if abs(row["difference"]) > row["half_interval"]}
    assert set(re.findall(r"<span [^>]*><b>(.*?)</b></span>", first)) == sure
    assert 0 < len(sure) < len(summary)
    assert not any(re.search("<span [^>]*><b>", other) for other in others)
    sizes = others[-1]  # memory by tokens read
    assert re.findall(r'text-anchor="(?:start|end)">([\d.]+[kM]?)</text>', sizes)


def test_results_without_comparison_curves(tmp_path: Path) -> None:
    path = ROOT / "benchmarks/results/ablation-small-books.json"
    assert len(figures(comparison_curves(path))) == 1  # only the differences
    for text in ("", "<b>", "[]", "{}", '{"figures": 1}', '{"figures": {"summary": [{}]}}'):
        (tmp_path / "x.json").write_text(text)
        assert comparison_curves(tmp_path / "x.json") == ""
    assert comparison_curves(tmp_path / "none.json") == ""


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img>', "{{this}}", "${x}"])
def test_names_are_escaped(tmp_path: Path, name: str) -> None:
    row = {"variant": name, "bits_per_byte": 2.0, "difference": 0.1, "half_interval": None}
    points = [{"distance": 1, "gain": 0.5}]
    results = {"summary": [row], "runs": [{"variant": name, "measures": {"recall": points}}]}
    (tmp_path / "x.json").write_text(json.dumps({"figures": results}))
    drawn = comparison_curves(tmp_path / "x.json")
    assert [lines[0][0] for lines in figures(drawn)] == [name, name]
    assert not re.search(r"<script|<img|[{}$]", drawn)
