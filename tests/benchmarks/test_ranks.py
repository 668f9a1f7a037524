"""The benchmark of ranks, small: all three arrangements, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import ranks


@pytest.mark.slow
def test_all_arrangements_are_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    out = tmp_path / "ranks.json"
    sizes = ["--rows", "2", "--warmup", "1", "--steps", "2", "--rounds", "1"]
    ranks.main(["--model", str(model / "config.json"), *sizes, "--out", str(out)])
    figures = json.loads(out.read_text())["figures"]
    assert set(figures["tokens_per_second"]) == set(ranks.ARRANGEMENTS)
    assert all(len(each) == 1 and each[0] > 0 for each in figures["tokens_per_second"].values())
    assert set(figures["efficiency"]) == {"of one rank", "of two apart"}
