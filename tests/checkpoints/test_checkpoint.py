"""Checkpoints: round trips, error messages, memory mapping, no unpickling."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamlm.checkpoints.checkpoint import (
    Checkpoint,
    choose_device,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from streamlm.models.build import HEADS
from tests.support.invariants import random_tokens, read, tiny_model
from tokenizer import Tokenizer

FILES = ("config.json", "model.safetensors", "tokenizer.model")


@pytest.fixture
def folder(tiny_folder: Callable[..., Path]) -> Path:
    """A checkpoint for tests to damage."""
    return tiny_folder()


def test_round_trip(tiny: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "copy", tiny.model, tiny.tokenizer)
    copy = load_checkpoint(tmp_path / "new" / "copy", device="cpu")
    assert sorted(path.name for path in (tmp_path / "new" / "copy").iterdir()) == sorted(FILES)
    assert copy.model.config == tiny.model.config
    assert copy.tokenizer.model_bytes == tiny.tokenizer.model_bytes
    weights, wanted = copy.model.state_dict(), tiny.model.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert copy.fingerprints == tiny.fingerprints
    assert copy.name == "copy"
    assert not copy.model.training
    assert not any(weight.requires_grad for weight in copy.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_loaded_as_float32(
    tiny: Checkpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_checkpoint(tmp_path / "half", tiny.model, tiny.tokenizer, dtype=dtype)
    save_checkpoint(tmp_path / "full", tiny.model, tiny.tokenizer)
    half, full = (tmp_path / name / "model.safetensors" for name in ("half", "full"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    loaded = load_checkpoint(tmp_path / "half", device="cpu")
    wanted = tiny.model.state_dict()
    for name, weight in loaded.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted[name].to(dtype).float()), name
    # Sessions of one checkpoint cannot be resumed with the other.
    assert loaded.fingerprints["weights"] != tiny.fingerprints["weights"]
    assert loaded.fingerprints["architecture"] == tiny.fingerprints["architecture"]


def test_saving_does_not_change_the_model(tiny: Checkpoint, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    save_checkpoint(tmp_path, tiny.model, tiny.tokenizer, dtype=torch.bfloat16)
    assert all(
        weight.dtype == torch.float32 and torch.equal(weight, before[name])
        for name, weight in tiny.model.state_dict().items()
    )


def test_fingerprints_distinguish_weights_architecture_and_tokenizer(
    tiny_folder: Callable[..., Path], tiny: Checkpoint
) -> None:
    weights = load_checkpoint(tiny_folder(seed=2), device="cpu").fingerprints
    assert [name for name in weights if weights[name] != tiny.fingerprints[name]] == ["weights"]
    longer = load_checkpoint(tiny_folder(memory_len=32), device="cpu").fingerprints
    assert longer["architecture"] != tiny.fingerprints["architecture"]
    # A model without a file is identified by a digest of its weights.
    bare = Checkpoint(tiny.model, tiny.tokenizer).fingerprints
    assert bare == Checkpoint(tiny.model, tiny.tokenizer).fingerprints
    other = load_checkpoint(tiny_folder(seed=2), device="cpu").model
    assert Checkpoint(other, tiny.tokenizer).fingerprints["weights"] != bare["weights"]


def test_a_model_without_a_tokenizer_reads_ids_only(tiny: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny.model, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    model = load_model(tmp_path, device="cpu")
    wanted = tiny.model.state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in model.state_dict().items())
    assert not model.training and model.config == tiny.model.config
    with pytest.raises(FileNotFoundError, match=r"reads ids, not text: .*load_model loads it"):
        load_checkpoint(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint: model\.safetensors is missing"):
        load_model(tmp_path, device="cpu")


def test_control_tokens_and_unused_ids_are_suppressed(
    tiny_folder: Callable[..., Path], books_tokenizer: Tokenizer
) -> None:
    size = books_tokenizer.vocab_size
    padded = load_checkpoint(tiny_folder(vocab_size=size + 8), device="cpu")
    suppressed = padded.suppressed
    assert suppressed.shape == (size + 8,) and bool(suppressed[size:].all())
    assert bool(suppressed[books_tokenizer.bos_id])
    assert suppressed[:size].tolist() == [not n for n in books_tokenizer.token_lengths]
    assert int((~suppressed).sum()) > size - 10


# -- refusals ---------------------------------------------------------------------------------


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing.*bundled one: books"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_reported(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"is no checkpoint: {name} is missing"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("damage", ["empty", "cut", "header"])
def test_damaged_weights_are_refused(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[:-100], "header": b"\xff" * 8 + data[8:]}[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("name", ["pickle", "torch.save"])
def test_weights_are_never_unpickled(folder: Path, tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    trap = tmp_path / "trap.pt"
    if name == "pickle":
        trap.write_bytes(pickle.dumps(Trap()))
        pickle.loads(trap.read_bytes())
    else:
        torch.save(Trap(), trap)
        torch.load(trap, weights_only=False)
    (tmp_path / "sprung").rmdir()  # the trap works
    shutil.copy(trap, folder / "model.safetensors")
    shutil.copy(trap, folder / "training.pt")  # other files are ignored
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(folder, device="cpu")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_layers", 3, "weights and config.json do not agree"),
        ("d_ff", 65, "weights and config.json do not agree"),
        ("vocab_size", 100, "the tokenizer has 8192 tokens, the model's vocab_size is 100"),
        ("compression", "dilated", "weights and config.json do not agree"),
        ("compression", "zip", "compression = 'zip'; allowed: "),
        ("n_layers", "two", "n_layers = 'two'; allowed: a value of type int"),
        ("flavour", 1, "ModelConfig has no flavour; allowed: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    folder: Path, name: str, value: object, message: str
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("content", ['{"vocab_size": ', "", "[1, 2]", "3"])
def test_a_damaged_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_checkpoint(folder, device="cpu")


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no SentencePiece model"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("device", ["tpu9000", "", "cuda:x"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="allowed: auto, cpu, cuda or cuda:N"):
        choose_device(device)


def test_cuda_is_refused_where_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(ValueError, match="CUDA is not usable here; allowed: auto, cpu"):
            load_checkpoint(folder, device=device)


# -- memory mapping ---------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_weights_are_memory_mapped(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(vocab_size=9000)
    model = load_checkpoint(folder, device="cpu").model
    name, mapped = str((folder / "model.safetensors").resolve()), []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(name):
            start, _, stop = line.split()[0].partition("-")
            mapped.append((int(start, 16), int(stop, 16)))
    assert mapped
    for name, weight in model.named_parameters():
        assert any(start <= weight.data_ptr() < stop for start, stop in mapped), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_can_keep_their_own_precision(
    tiny: Checkpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_checkpoint(tmp_path / "own", tiny.model, tiny.tokenizer, dtype=dtype)
    kept = load_checkpoint(tmp_path / "own", device="cpu", dtype=None)
    assert {weight.dtype for weight in kept.model.parameters()} == {dtype}
    assert kept.fingerprints == load_checkpoint(tmp_path / "own", device="cpu").fingerprints
    state = kept.model.init_state(1)
    logits, state = kept.model(torch.tensor([[1, 2, 3]]), state)
    assert logits.dtype == state.past.dtype == dtype and bool(logits.isfinite().all())


@pytest.mark.parametrize("head", HEADS)
def test_every_head_loads_onto_a_meta_model(head: str, tmp_path: Path) -> None:
    """Tables that are not in the file are computed."""
    lengths = {"memory_len": 0 if head in ("recurrent", "full") else 8, "compressed_len": 0}
    lengths["projected_len"] = 2
    model = tiny_model(head=head, dtype=torch.float32, **lengths)
    save_checkpoint(tmp_path, model, None)
    loaded = load_model(tmp_path, device="cpu")
    tokens = random_tokens(model, 11)
    wanted, _ = read(model, tokens, model.init_state(1))
    found, _ = read(loaded, tokens, loaded.init_state(1))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(
    folder: Path, value: float, dtype: torch.dtype
) -> None:
    """One of them is enough: a session must not read with it."""
    file = folder / "model.safetensors"
    weights = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    name = sorted(weights)[len(weights) // 2]
    weights[name].view(-1)[-1] = value
    save_file(weights, file)
    with pytest.raises(ValueError, match=f"weights are NaN or infinite in {name}"):
        load_checkpoint(folder, device="cpu")
