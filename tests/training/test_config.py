"""TrainConfig: refused settings, and the round trip through JSON."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from streamlm.training.config import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({name: 0}, f"{name} = 0; allowed: an integer of at least 1")
            for name in (
                *("steps", "batch_size", "accumulate", "unroll"),
                *("checkpoint_steps", "eval_steps", "log_steps", "eval_tokens"),
            )
        ),
        (
            {"rows_at_once": -2},
            "rows_at_once = -2; allowed: a number of rows, 0 for all, or -1 for as many as fit "
            "into the device's memory",
        ),
        ({"rows_at_once": "auto"}, "rows_at_once = 'auto'; allowed: a value of type int"),
        ({"warmup_steps": -1}, "warmup_steps = -1; allowed: at least 0"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0; allowed: a number above 0"),
        ({"clip": -1.0}, "clip = -1.0; allowed: a number above 0"),
        (
            {"learning_rate": 0.1, "min_learning_rate": 0.2},
            "min_learning_rate = 0.2; allowed: a number from 0 to learning_rate = 0.1",
        ),
        ({"weight_decay": -0.1}, "weight_decay = -0.1; allowed: at least 0"),
        ({"beta1": 1.0}, "beta1 = 1.0; allowed: a number in [0, 1)"),
        ({"beta2": -0.5}, "beta2 = -0.5; allowed: a number in [0, 1)"),
        ({"precision": "float16"}, "precision = 'float16'; allowed: 'float32' or 'bfloat16'"),
        ({"steps": 1e4}, "steps = 10000.0; allowed: a value of type int"),
    ],
)
def test_training_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainConfig.from_dict(options)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="TrainConfig has no lr; allowed: accumulate, batch_size"):
        TrainConfig.from_dict({"lr": 0.1})


@pytest.mark.parametrize(
    "config",
    [TrainConfig(), TrainConfig(steps=7, learning_rate=1, min_learning_rate=0, compile=True)],
    ids=["default", "changed"],
)
def test_json_round_trip(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert TrainConfig.load(path) == config
    values = json.loads(config.to_json())
    assert set(values) == {field.name for field in fields(config)}
    assert values == config.to_dict()
