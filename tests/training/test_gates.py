"""The gates of learned selection, trained apart from the model: what changes, what is saved."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.checkpoints.gates import GATES_FILE
from streamlm.config import JOINT
from streamlm.training.from_recipe import trainer_for
from streamlm.training.recipe import Recipe
from streamlm.training.trainer import Trainer

RECIPE = """
[data]
train = ["{text}"]
valid_share = 0.2
cut_bytes = 400
[model]
from = "{folder}"
compression = "select"
compression_loss = "{loss}"
[train]
only = "compression"
steps = 12
batch_size = 2
learning_rate = 1e-2
warmup_steps = 0
eval_steps = 12
checkpoint_steps = 6
eval_tokens = 100
"""


@pytest.fixture
def make(
    tiny_folder: Callable[..., Path], prose: Callable[..., str], tmp_path: Path
) -> Callable[..., Trainer]:
    text = tmp_path / "text.txt"
    text.write_text("\n\f\n".join(prose(400)[i:] for i in (0, 7)), encoding="utf-8")
    base = tiny_folder(head="llama", segment_len=8, slots="float32")

    def make(folder: str = "run", *, loss: str = JOINT) -> Trainer:
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(text=text, folder=base, loss=loss), encoding="utf-8")
        return trainer_for(Recipe.load(path), tmp_path / folder, device="cpu")

    return make


def parts(model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copies of the gates and of all other weights."""
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    gates = {name: each for name, each in weights.items() if name.startswith("compressors.")}
    return gates, {name: each for name, each in weights.items() if name not in gates}


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_only_gates_change_and_only_gates_are_saved(make: Callable[..., Trainer]) -> None:
    trainer = make()
    gates, others = parts(trainer.model)
    steps = list(trainer.run())
    new_gates, same = parts(trainer.model)
    assert equal(same, others)
    assert all(not torch.equal(new_gates[name], each) for name, each in gates.items())
    losses = [step.compression_loss for step in steps if step.compression_loss]
    assert len(losses) > 8 and losses[-1] < losses[0]
    saved = trainer.folder / "model" / GATES_FILE
    assert equal(load_file(saved), new_gates)
    assert not (trainer.folder / "model" / "model.safetensors").exists()


def test_gates_are_loaded_with_the_windows_that_they_were_trained_with(
    make: Callable[..., Trainer], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = make()
    list(trainer.run())
    path = trainer.folder / "model" / GATES_FILE
    base = tiny_folder(head="llama", segment_len=16, compression="most-used")
    plain = load_checkpoint(base, device="cpu", dtype=torch.float32)
    loaded = load_checkpoint(base, device="cpu", dtype=torch.float32, settings={"gates": path})
    assert equal(parts(loaded.model)[0], parts(trainer.model)[0])
    assert loaded.model.config.segment_len == 8 and loaded.model.config.compression == "select"
    assert loaded.model.config.compression_loss == "none"
    assert loaded.fingerprints["weights"] != plain.fingerprints["weights"]
    other = load_checkpoint(
        base, device="cpu", dtype=torch.float32, settings={"gates": path, "memory_len": 32}
    )
    assert (other.model.config.segment_len, other.model.config.memory_len) == (8, 32)


def test_a_resumed_run_ends_with_the_same_gates(make: Callable[..., Trainer]) -> None:
    whole = make("whole")
    list(whole.run())
    begun = make("begun")
    for step in begun.run():
        if step.step == 6:
            break
    resumed = make("begun")
    resumed.resume()
    assert resumed.step == 6
    list(resumed.run())
    assert equal(parts(resumed.model)[0], parts(whole.model)[0])


def test_gates_that_are_not_trained_are_refused(make: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match=r"only = .compression. with .*.none.; allowed: a comp"):
        make(loss="none")


def test_damaged_and_foreign_gates_are_refused(
    make: Callable[..., Trainer], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = make()
    list(trainer.run())
    good = trainer.folder / "model" / GATES_FILE
    base = tiny_folder(head="llama")

    def load(path: Path, folder: Path = base) -> None:
        load_checkpoint(folder, device="cpu", settings={"gates": path})

    cut = tmp_path / "cut.safetensors"
    shutil.copy(good, cut)
    with open(cut, "rb+") as file:
        file.truncate(good.stat().st_size - 4)
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged"):
        load(cut)
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(good), bare)
    with pytest.raises(ValueError, match="holds no gates of this model: its metadata lack"):
        load(bare)
    with pytest.raises(ValueError, match=r"holds gates of another model: compressors\.2.* None"):
        load(good, tiny_folder(head="llama", n_layers=3))
    with pytest.raises(ValueError, match="head 'relative'; allowed: Llama-family models"):
        load(good, tiny_folder())
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.safetensors")
