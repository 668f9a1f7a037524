"""Event files have what the log has, also of a run that is resumed."""

import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlm.training.tensorboard import TAGS
from streamlm.training.trainer import Trainer
from tests.support.training import MakeTrainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def logging(make: MakeTrainer, folder: Path) -> Callable[..., Trainer]:
    """Makes trainers that write event files."""

    def logging(**options: object) -> Trainer:
        return make(tensorboard=folder, **options)

    return logging


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The values of each curve by step, as TensorBoard shows them."""
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    return {
        tag: {event.step: event.value for event in read.Scalars(tag)}
        for tag in read.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_events_are_those_of_the_log(logging: Callable[..., Trainer], folder: Path) -> None:
    pytest.importorskip("tensorboard")
    run = logging(steps=5, checkpoint_steps=3, eval_steps=2, log_steps=1).run()
    for _ in range(4):
        next(run)
    run.close()  # interrupted after its fourth step; the third was saved
    assert max(scalars(folder)["train/bits_per_byte"]) == 4
    again = logging(steps=5, checkpoint_steps=3, eval_steps=2, log_steps=1)
    again.resume()
    list(again.run())
    shown = scalars(folder)
    assert set(shown) == set(TAGS.values())
    lines = (again.folder / "log.jsonl").read_text().splitlines()
    logged = {line["step"]: line for line in map(json.loads, lines)}  # the newest of each step
    for name, tag in TAGS.items():
        wanted = {step: line[name] for step, line in logged.items() if line[name] is not None}
        assert shown[tag] == pytest.approx(wanted, rel=1e-6)
    assert list(shown["valid/bits_per_byte"]) == [2, 4, 5]


def test_without_the_package(
    logging: Callable[..., Trainer], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is trained."""
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "tensorboard":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **named)

    for name in [name for name in sys.modules if "tensorboard" in name.split(".")]:
        if name != "streamlm.training.tensorboard":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'streamlm\[tensorboard\]'"):
        logging()
    assert not folder.exists()
