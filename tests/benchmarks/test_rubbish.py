"""The rubbish that is timed: as many bytes of each kind, and figures for each."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import rubbish


def test_every_kind_has_its_bytes() -> None:
    made = rubbish.kinds(200)
    assert len(made) == 31
    for kind, text in made.items():
        assert 190 <= len(text.encode()) <= 200, kind


def test_every_kind_has_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(rubbish, "REPEATS", 1)
    command = ["rubbish", "--bytes", "8", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    rubbish.main()
    found = json.loads((tmp_path / "rubbish.json").read_text())["figures"]
    for rows in (found["alone"], found["beside"]):
        assert [*rows] == [*rubbish.kinds(8)]
        assert all(row["read_us"] > 0 and row["tokens_per_byte"] > 0 for row in rows.values())
    assert set(found["worst"]) == {"alone", "beside"}
