"""The load test of the server, small: killed once among a few sessions."""

import json
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="needs it: pip install 'streamlm[server]'")

from benchmarks import load


@pytest.mark.slow
def test_nothing_that_was_answered_is_lost(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    sizes = ["--sessions", "6", "--steps", "5", "--clients", "4", "--rows", "3", "--kills", "1"]
    load.main(["--model", str(model), *sizes, "--out", str(out)])
    figures = json.loads(out.read_text())["figures"]
    assert figures["kills"] == 1 and figures["exit_status"] == 0
    assert figures["answered"] > 6 and figures["undone"] > 0
    assert (figures["lost_commits"], figures["crossed"], figures["unequal"]) == (0, 0, [])


def test_steps_are_drawn_by_a_seed() -> None:
    plans = {str(load.planned(index, 8, seed)) for index in range(3) for seed in range(3)}
    assert len(plans) == 9 and load.planned(1, 8, 2) == load.planned(1, 8, 2)
    kinds = {kind for index in range(50) for kind, _ in load.planned(index, 8, 1)}
    assert kinds == set(load.KINDS)
    assert all(load.planned(index, 3, 1)[0][0] == "feed" for index in range(9))
