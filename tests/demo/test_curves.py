"""Curves of comparisons: values travel with them, and nothing in a file becomes markup."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from apps.demo.render.curves import curves

ROOT = Path(__file__).resolve().parents[2]


def figures(drawn: str) -> list[Any]:
    """What each figure can tell: lines of (name, points with words, colour)."""
    return [json.loads(html.unescape(found)) for found in re.findall(r'data-curves="(.*?)"', drawn)]


def test_a_comparison_of_heads() -> None:
    path = ROOT / "benchmarks/results/heads-compare-small.json"
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    differences, recall, loss, size = figures(curves(path))
    assert [name for name, *_ in differences] == [row["variant"] for row in found["summary"]]
    for lines in (recall, loss, size):
        assert {name for name, *_ in lines} == {run["variant"] for run in found["runs"]}
    first = found["runs"][0]["variant"]
    seeds = [run["measures"] for run in found["runs"] if run["variant"] == first]
    mean = sum(seed["recall"][0]["gain"] for seed in seeds) / len(seeds)
    _, points, _ = next(line for line in recall if line[0] == first)
    assert points[0][2] == f"0 segments between telling and asking: {mean:.3f}"
    every = [point for lines in (recall, loss, size) for _, points, _ in lines for point in points]
    for x, y, _ in every:
        assert 0 <= x <= 400 and 0 <= y <= 210


def test_results_without_curves(tmp_path: Path) -> None:
    path = ROOT / "benchmarks/results/ablation-small-books.json"
    assert len(figures(curves(path))) == 1  # differences alone
    for text in ("", "<b>", "[]", "{}", '{"figures": 1}', '{"figures": {"summary": [{}]}}'):
        (tmp_path / "x.json").write_text(text)
        assert curves(tmp_path / "x.json") == ""
    assert curves(tmp_path / "none.json") == ""


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img>', "{{this}}", "${x}"])
def test_names_are_text(tmp_path: Path, name: str) -> None:
    row = {"variant": name, "bits_per_byte": 2.0, "difference": 0.1, "half_interval": None}
    points = [{"distance": 1, "gain": 0.5}]
    results = {"summary": [row], "runs": [{"variant": name, "measures": {"recall": points}}]}
    (tmp_path / "x.json").write_text(json.dumps({"figures": results}))
    drawn = curves(tmp_path / "x.json")
    assert [lines[0][0] for lines in figures(drawn)] == [name, name]
    assert not re.search(r"<script|<img|[{}$]", drawn)
