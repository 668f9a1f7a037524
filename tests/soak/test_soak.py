"""A short form of each soak test; `make soak` runs them at full length."""

from pathlib import Path

import pytest

from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tests.soak.commands import Tally, tiny_model
from tests.soak.crafted import crafted
from tests.soak.damage import damages
from tests.soak.inputs import inputs
from tests.soak.kills import kills
from tests.soak.races import races
from tests.soak.requests import requests


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("soak") / "model")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Checkpoint:
    return load_checkpoint(model_folder, device="cpu")


def assert_sound(tally: Tally) -> None:
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.counts


def test_kills(model: Checkpoint, tmp_path: Path) -> None:
    assert_sound(kills(tmp_path, model, 8, seed=1))


def test_races(model: Checkpoint, tmp_path: Path) -> None:
    tally = races(tmp_path, model, 6)
    assert_sound(tally)
    assert tally.counts["ok"] >= 6


def test_damage(model: Checkpoint, tmp_path: Path) -> None:
    tally = damages(tmp_path, model, 15, seed=1)
    assert_sound(tally)
    assert tally.counts["verify notices"] > 5


def test_crafted_stores(model: Checkpoint, model_folder: Path, tmp_path: Path) -> None:
    tally = crafted(tmp_path, model, model_folder, 2, seed=1)
    assert_sound(tally)


def test_inputs(model_folder: Path, tmp_path: Path) -> None:
    assert_sound(inputs(tmp_path, model_folder, 15, seed=1))


def test_requests(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")
    pytest.importorskip("pypdf", reason="needs pypdf: pip install 'streamlm[documents]'")
    assert_sound(requests(tmp_path, model_folder, 25, seed=1))
