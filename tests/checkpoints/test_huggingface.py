"""Checkpoints of Hugging Face: what is loaded."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import streamlm
from streamlm.checkpoints.checkpoint import load_checkpoint, load_model, save_checkpoint
from streamlm.checkpoints.huggingface_config import llama_config
from streamlm.checkpoints.llama_tensors import their_name
from streamlm.checkpoints.sources import find_model
from streamlm.models.llama_config import LlamaConfig
from tests.support.pretrained import (
    LLAMA3,
    ORIGINAL,
    SHAPES,
    settings,
    weights,
    write_huggingface,
)

Folder = Callable[..., Path]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_those_of_the_files(folder: Folder, shape: str, shards: int) -> None:
    model = load_model(folder(shape, shards=shards), device="cpu", dtype=None)
    wanted = weights(settings(shape))
    found = model.state_dict()
    assert {their_name(name, "huggingface") for name in found} == set(wanted)
    for name, weight in found.items():
        assert torch.equal(weight, wanted[their_name(name, "huggingface")]), name
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_checkpoint_reads_writes_and_is_resumed(folder: Folder, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(folder(), device="cpu")
    assert checkpoint.name == "model"
    with streamlm.open(tmp_path / "s.zarr", checkpoint) as session:
        session.feed("It was a dark and stormy night. " * 40)
        position = session.position
        wanted = "".join(session.fork().generate(max_tokens=20, seed=3))
    again = load_checkpoint(tmp_path / "model", device="cpu")
    assert again.fingerprints == checkpoint.fingerprints
    with streamlm.open(tmp_path / "s.zarr", again) as session:
        assert session.position == position
        assert "".join(session.fork().generate(max_tokens=20, seed=3)) == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision_is_that_of_the_file_unless_another_is_wanted(
    folder: Folder, dtype: torch.dtype
) -> None:
    path = folder(dtype=dtype)
    for wanted in (None, torch.float32, torch.bfloat16):
        model = load_model(path, device="cpu", dtype=wanted)
        expected = wanted if isinstance(wanted, torch.dtype) else dtype
        assert {weight.dtype for weight in model.parameters()} == {expected}
    with pytest.raises(ValueError, match="dtype = 'half'; allowed: 'auto', None or"):
        load_model(path, device="cpu", dtype="half")  # type: ignore[arg-type]


def test_norms_in_float32_become_as_the_matrices(tmp_path: Path) -> None:
    values = settings()
    given = weights(values, dtype=torch.bfloat16)
    mixed = {name: w.float() if w.ndim == 1 else w for name, w in given.items()}
    model = load_model(write_huggingface(tmp_path, values, mixed), device="cpu", dtype=None)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.state_dict()["final_norm.weight"], given["model.norm.weight"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("shards", [1, 2])
def test_weights_are_memory_mapped(folder: Folder, shards: int) -> None:
    path = folder(dtype=torch.bfloat16, vocab_size=9000, shards=shards)
    model = load_model(path, device="cpu", dtype=None)
    files, mapped = {str(file.resolve()) for file in path.glob("*.safetensors")}, []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.split(maxsplit=5)[-1] in files:
            start, _, stop = line.split()[0].partition("-")
            mapped.append((int(start, 16), int(stop, 16)))
    for name, weight in model.named_parameters():
        assert any(start <= weight.data_ptr() < stop for start, stop in mapped), name


def test_settings_change_the_windows_alone(folder: Folder) -> None:
    path = folder()
    config = find_model(path).config
    assert isinstance(config, LlamaConfig)
    other = {"memory_len": config.memory_len - 4, "pinned_len": 2}
    checkpoint = load_checkpoint(path, device="cpu", settings=other)
    assert checkpoint.model.config == LlamaConfig.from_dict(config.to_dict() | other)
    plain = load_checkpoint(path, device="cpu").fingerprints
    differing = [name for name in plain if plain[name] != checkpoint.fingerprints[name]]
    assert differing == ["architecture"]
    for given, message in (
        ({"n_layers": 1}, "setting = 'n_layers'; allowed: 'segment_len' or "),
        ({"memory_len": 4096}, "allowed: at most context_len = 512"),
        ({"slots": "int4"}, "slots = 'int4'; allowed: "),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, device="cpu", settings=given)
    with pytest.raises(ValueError, match="settings = 'memory_len'; allowed: none but for Llama"):
        load_checkpoint("books", device="cpu", settings={"memory_len": 64})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["llama", "qwen2, untied, yarn", "qwen3"])
@pytest.mark.parametrize("compression", ["most-used", "select"])
def test_saved_checkpoints_are_equal(
    folder: Folder, tmp_path: Path, shape: str, compression: str, dtype: torch.dtype
) -> None:
    path = folder(shape, dtype=dtype)
    loaded = load_checkpoint(path, device="cpu", dtype=None, settings={"compression": compression})
    save_checkpoint(tmp_path / "own", loaded.model, loaded.tokenizer)
    copy = load_checkpoint(tmp_path / "own", device="cpu", dtype=None)
    assert copy.model.config == loaded.model.config
    weights, wanted = copy.model.state_dict(), loaded.model.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    for name, weight in weights.items():  # gates are always float32
        assert weight.dtype == (torch.float32 if name.startswith("compressors.") else dtype)
    for name in ("architecture", "tokenizer"):
        assert copy.fingerprints[name] == loaded.fingerprints[name]


def test_untrained_gates_are_the_same_every_time(folder: Folder, tmp_path: Path) -> None:
    path, select = folder(), {"compression": "select"}
    one, other = (load_model(path, device="cpu", dtype=None, settings=select) for _ in range(2))
    weights = one.state_dict()
    assert sum(name.startswith("compressors.") for name in weights) == 4
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in weights.items())
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    # Gates in a file are left out with another compression.
    save_checkpoint(tmp_path / "own", one, None)
    without = load_model(
        tmp_path / "own", device="cpu", dtype=None, settings={"compression": "mean"}
    )
    assert not any(name.startswith("compressors.") for name in without.state_dict())


def test_short_contexts_get_short_windows(folder: Folder) -> None:
    lengths = []
    for context in (1 << 17, 8192, 2048, 1028, 1027, 100, 36):
        config = llama_config(settings(max_position_embeddings=context))
        assert 0.5 * min(context, 1028) < config.columns <= context
        lengths.append(config.segment_len)
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == lengths[1] > lengths[-1]
    with pytest.raises(ValueError, match=r"context length = 9; allowed: at least \d\d tokens"):
        llama_config(settings(max_position_embeddings=9))


def test_configurations_of_transformers_5_are_read() -> None:
    scaling = {"rope_theta": 500000.0, **LLAMA3, **ORIGINAL}
    old = settings("llama 3.1")
    new = {name: value for name, value in old.items() if not name.startswith("rope")}
    assert llama_config({**new, "rope_parameters": scaling}) == llama_config(old)
    plain = {**new, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    assert llama_config(plain) == llama_config({**new, "rope_theta": 500000.0})
    # Without it, the length of the original context is that of the model.
    del scaling["original_max_position_embeddings"]
    found = llama_config({**new, "rope_parameters": scaling}).rope_scaling
    assert found["original_max_position_embeddings"] == 512


def test_output_layers_of_tied_models_must_be_the_embedding(tmp_path: Path) -> None:
    values = settings()
    given = weights(values)
    same = {**given, "lm_head.weight": given["model.embed_tokens.weight"].clone()}
    model = load_model(write_huggingface(tmp_path / "same", values, same), device="cpu", dtype=None)
    assert "output.weight" not in model.state_dict()
    other = {**given, "lm_head.weight": given["model.embed_tokens.weight"] + 1}
    folder = write_huggingface(tmp_path / "other", values, other)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load_model(folder, device="cpu", dtype=None)


def test_tables_of_frequencies_in_old_files_are_ignored(tmp_path: Path) -> None:
    values = settings()
    table = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    load_model(
        write_huggingface(tmp_path, values, {**weights(values), **table}), device="cpu", dtype=None
    )


def test_digests_of_shards_cover_all_of_them_in_order(folder: Folder) -> None:
    path = folder(shards=3)
    files = sorted(path.glob("*.safetensors"))
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert find_model(path).weights_digest == wanted
