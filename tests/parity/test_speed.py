"""benchmarks.peers runs, in small: every ratio that has a goal is measured."""

import json
from pathlib import Path

import pytest

from benchmarks import peers
from tests.parity.peers import peer

peer("transformers.models.transfo_xl.modeling_transfo_xl", "transformers 4.35.2")
peer(
    "compressive_transformer_pytorch.compressive_transformer_pytorch",
    "compressive-transformer-pytorch 0.4.0",
)
pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {
    **{"LAYERS": 1, "WIDTH": 32, "HEADS": 2, "INNER": 16, "VOCABULARY": 11},
    **{"SEGMENT": 8, "MEMORY": 16, "COMPRESSED": 4, "ROWS": 2, "SEGMENTS": 2, "WRITTEN": 3},
}


def test_every_goal_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(peers, name, value)
    peers.main(["--rounds", "2", "--out", str(tmp_path / "peers.json")])
    figures = json.loads((tmp_path / "peers.json").read_text())["figures"]
    assert set(peers.GOALS) <= set(figures)
    assert all(row["median"] > 0 and row["pairs"] == 2 for row in figures.values())
