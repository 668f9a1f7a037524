"""Configurations: validation, JSON round trips, fingerprints."""

import json
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from streamlm.config import COMPRESSIONS, NEWER, ModelConfig
from streamlm.memory.compression import COMPRESSORS
from streamlm.models.build import build_model, check_config

INTEGERS = ("vocab_size", "n_layers", "d_model", "n_heads", "head_dim", "d_ff", "segment_len")


def model_config(**options: object) -> ModelConfig:
    return ModelConfig.from_dict({"vocab_size": 10, **options})


REFUSED: list[tuple[dict[str, object], str]] = [
    *(({name: 0}, f"{name} = 0; allowed: an integer of at least 1") for name in INTEGERS),
    ({"compression_rate": 0}, "compression_rate = 0; allowed: an integer of at least 1"),
    ({"memory_len": -1}, "memory_len = -1; allowed: an integer of at least 0"),
    ({"compressed_len": -4}, "compressed_len = -4; allowed: an integer of at least 0"),
    ({"d_model": 7}, "d_model = 7; allowed: an even number"),
    (
        {"segment_len": 6, "memory_len": 8},
        "segment_len = 6; allowed: a multiple of compression_rate = 4",
    ),
    ({"memory_len": 130}, "memory_len = 130; allowed: a multiple of compression_rate = 4"),
    (
        {"compression": "median"},
        "compression = 'median'; allowed: 'max' or 'mean' or 'conv' or 'dilated' "
        "or 'most-used' or 'select'",
    ),
    (
        {"compression_loss": "l2"},
        "compression_loss = 'l2'; allowed: 'none' or 'auto-encoding' or "
        "'attention-reconstruction' or 'joint-attention-reconstruction' or 'bptt'",
    ),
    (
        {"compression": "mean", "compression_loss": "bptt"},
        "compression_loss with compression 'mean' = 'bptt'; allowed: 'none'",
    ),
    (
        {"compression": "select"},
        "compression_loss with compression 'select' = 'attention-reconstruction'; "
        "allowed: 'none' or 'joint-attention-reconstruction'",
    ),
    (
        {"compression_loss": "joint-attention-reconstruction", "memory_len": 64},
        "memory_len = 64; allowed: at least segment_len = 128 with "
        "'joint-attention-reconstruction'",
    ),
    (
        {"compression": "most-used", "compression_loss": "none", "memory_len": 64},
        "memory_len = 64; allowed: at least segment_len = 128 with 'most-used'",
    ),
    ({"norm": "rms"}, "norm = 'rms'; allowed: 'post' or 'pre'"),
    ({"dropout": 1.0}, "dropout = 1.0; allowed: a number in [0, 1)"),
    ({"attention_dropout": -0.1}, "attention_dropout = -0.1; allowed: a number in [0, 1)"),
    ({"dropout": float("nan")}, "dropout = nan; allowed: a number in [0, 1)"),
    ({"init_std": 0.0}, "init_std = 0.0; allowed: a number above 0"),
    ({"clamp_len": -1}, "clamp_len = -1; allowed: an integer of at least 0"),
    *(
        (
            {"cutoffs": wrong},
            f"cutoffs = {wrong}; allowed: rising integers from 1 to vocab_size - 1 = 9",
        )
        for wrong in ((3, 3), (5, 4), (0, 4), (4, 10), (2.0, 4), (True, 4), ("3",))
    ),
    ({"cutoffs": 4}, "cutoffs = 4; allowed: a value of type tuple"),
    ({"div_val": 2}, "div_val = 2; allowed: 1 where there are no cutoffs"),
    ({"embed_dim": 8}, "embed_dim = 8; allowed: 0 where there are no cutoffs"),
    ({"cutoffs": (4,), "div_val": 0}, "div_val = 0; allowed: an integer of at least 1"),
    ({"cutoffs": (4,), "embed_dim": -1}, "embed_dim = -1; allowed: an integer of at least 0"),
    (
        {"cutoffs": (4, 6), "div_val": 4, "embed_dim": 15},
        "embed_dim = 15; allowed: at least div_val ** 2 = 16, so that every bin has a width",
    ),
    # Types: booleans and floats are not accepted as integers.
    ({"n_layers": 2.0}, "n_layers = 2.0; allowed: a value of type int"),
    ({"n_layers": True}, "n_layers = True; allowed: a value of type int"),
    ({"n_layers": "2"}, "n_layers = '2'; allowed: a value of type int"),
    ({"n_layers": None}, "n_layers = None; allowed: a value of type int"),
    ({"dropout": "0.1"}, "dropout = '0.1'; allowed: a value of type float"),
    ({"dropout": False}, "dropout = False; allowed: a value of type float"),
    ({"final_norm": 1}, "final_norm = 1; allowed: a value of type bool"),
    ({"norm": 3}, "norm = 3; allowed: a value of type str"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_model_settings_are_refused(options: dict[str, object], message: str) -> None:
    """The message contains the given and the allowed value."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_config(model_config(**options))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build_model(ModelConfig(**{"vocab_size": 10, **options}))  # type: ignore[arg-type]


def test_compression_settings_are_ignored_without_compression() -> None:
    config = model_config(compressed_len=0, segment_len=7, memory_len=5, compression="mean")
    assert (config.past_len, config.evicted_len) == (5, 0)
    assert model_config(compressed_len=0, compression="most-used", memory_len=0).past_len == 0


def test_derived_lengths() -> None:
    config = model_config(
        n_layers=3, segment_len=8, memory_len=12, compressed_len=5, compression_rate=4
    )
    assert config.past_len == 17 and config.evicted_len == 2
    assert config.reach == 3 * (12 + 4 * 5)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="ModelConfig has no layers, width; allowed: attention_dr"):
        model_config(width=3, layers=2)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match=r"^ModelConfig needs vocab_size$"):
        ModelConfig.from_dict({"n_layers": 2})


@pytest.mark.parametrize(
    "config",
    [
        model_config(),
        model_config(
            norm="pre", final_norm=True, dropout=0.25, compression="max", compression_loss="none"
        ),
        model_config(cutoffs=[3, 7], div_val=2, embed_dim=16, clamp_len=100),
    ],
    ids=["model", "another model", "adaptive model"],
)
def test_json_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert ModelConfig.load(path) == config
    values = json.loads(config.to_json())
    assert set(values) == {field.name for field in fields(config)}
    assert values == config.to_dict()


def test_cutoffs_may_be_given_as_a_list() -> None:
    config = model_config(cutoffs=[3, 7])
    assert config == model_config(cutoffs=(3, 7)) and hash(config) is not None
    assert config.cutoffs == (3, 7) and config.to_dict()["cutoffs"] == [3, 7]


def test_newer_settings_are_in_the_architecture_only_if_used() -> None:
    """Otherwise, the fingerprints of older checkpoints would change."""
    plain, adaptive = model_config(), model_config(cutoffs=(3,), div_val=2)
    assert set(plain.to_dict()) - set(plain.architecture) == NEWER
    assert set(adaptive.architecture) - set(plain.architecture) == {"cutoffs", "div_val"}
    assert plain.architecture.items() <= plain.to_dict().items()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"vocab_size": }'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        ModelConfig.load(path)


def test_configurations_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        model_config().n_layers = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig(10)  # type: ignore[call-arg,misc]


def test_every_compression_has_a_module() -> None:
    assert tuple(COMPRESSORS) == COMPRESSIONS
