"""Checkpoints of Hugging Face: what is refused, before weights are read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from streamlm.checkpoints.checkpoint import load_checkpoint, load_model
from streamlm.checkpoints.huggingface_config import llama_config
from tests.support.pretrained import (
    MISTRAL,
    QWEN2,
    QWEN3,
    raw_safetensors,
    settings,
    weights,
    write_huggingface,
    write_index,
)

Folder = Callable[..., Path]


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "MoE": ({"architectures": ["MixtralForCausalLM"]}, "architectures = .*Mixtral.*allowed: one"),
    "bare model": ({"architectures": ["LlamaModel"]}, "architectures = .*LlamaModel"),
    "no architecture": ({"architectures": None}, "architectures = None; allowed: one of 'Llama"),
    "two": ({"architectures": ["LlamaForCausalLM", "x"]}, "architectures = "),
    "experts": ({"num_experts": 8}, "num_experts of LlamaForCausalLM = 8; allowed: null or 0"),
    "local experts": ({"num_local_experts": 8}, "num_local_experts"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act of LlamaForCausalLM = 'gelu'; allowed: 'silu'"),
    "biases": ({"attention_bias": True}, "attention_bias of .* = True; allowed: false"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias of LlamaForCausalLM = True; allowed: false"),
    "half rotated": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor of .* = 0.5"),
    "half rotated, 5": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        "partial_rotary_factor = 0.25; allowed: 1.0",
    ),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config of"),
    "dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_type = 'dynamic'; allowed: 'default' or 'linear' or 'llama3' or 'yarn'",
    ),
    "longrope": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "rope_type = 'longrope'",
    ),
    "unknown scaling setting": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}},
        "setting of rope_scaling 'linear' = 'mrope_section'",
    ),
    "factor": ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor = '2'"),
    "rope by layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters differ by layer",
    ),
    "contradictory rope": (
        {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
        "rope_type and type differ",
    ),
    "two ropes": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 3.0}},
        "rope_parameters and rope_scaling differ",
    ),
    "rope of another type": ({"rope_scaling": [1]}, r"= \[1\]; allowed: an object"),
    "Mistral's window": ({**MISTRAL, "sliding_window": 4096}, "sliding_window = 4096; allowed: nu"),
    "Mistral, silent": (MISTRAL, "lacks sliding_window"),
    "Qwen's window": ({**QWEN2, "use_sliding_window": True}, "use_sliding_window = True; allowed"),
    "Qwen3, silent": ({**QWEN3, "head_dim": None}, "the configuration lacks head_dim"),
    "layers of two kinds": (
        {**QWEN2, "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types = .*sliding_attention.*allowed: 'full_attention' for every layer",
    ),
    "soft cap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping of"),
    "own code": ({"auto_map": {"AutoModelForCausalLM": "m.M"}}, "auto_map names code of its own"),
    "head width": ({"hidden_size": 66}, "hidden_size = 66; allowed: a multiple of"),
    "odd heads": ({"head_dim": 15}, "head_dim = 15; allowed: an even number"),
    "groups": ({"num_key_value_heads": 3}, "n_kv_heads = 3; allowed: a divisor of n_heads = 4"),
    "text for a number": ({"num_hidden_layers": "2"}, "num_hidden_layers = '2'; allowed: an int"),
    "a negative number": ({"vocab_size": -1}, "vocab_size = -1; allowed: an integer of at least"),
    "true for a number": ({"num_attention_heads": True}, "num_attention_heads = True"),
    "an epsilon of 0": ({"rms_norm_eps": 0}, "rms_norm_eps = 0; allowed: a number above 0"),
    "a base of infinity": ({"rope_theta": 1e400}, "Infinity is no JSON number"),
    "no flag": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'; allowed: true or f"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models_are_refused_before_weights_are_read(tmp_path: Path, case: str) -> None:
    """There are no weights, and the error is not about that."""
    changes, message = UNSUPPORTED[case]
    (tmp_path / "config.json").write_text(json.dumps({**settings(), **changes}))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "max_position_embeddings"])
def test_missing_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"lacks {name}"):
        llama_config({key: value for key, value in settings().items() if key != name})


HOSTILE_JSON = {
    "twice": (b'{"architectures": [], "architectures": []}', "key 'architectures' stands twice"),
    "deep": (b'{"architectures": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "list": (b"[]", "it holds no JSON object"),
    "cut": (b'{"architectures": [', "is damaged"),
    "NaN": (b'{"architectures": [], "rms_norm_eps": NaN}', "NaN is no JSON number"),
    "long": (b" " * (17 << 20) + b"{}", "allowed: at most 16,777,216"),
    "bytes": (b"\xff\xfe\x00", "is damaged"),
    "digits": (b'{"architectures": [], "vocab_size": ' + b"9" * 5000 + b"}", "is damaged"),
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_damaged_configurations_are_refused(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE_JSON[case]
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path, device="cpu")


SHAPE = [928, 64]
SIZE = 928 * 64 * 4
ENTRY: dict[str, Any] = {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, SIZE]}
HOSTILE_HEADERS: dict[str, tuple[object, int, str]] = {
    "offsets beyond the file": ({"a": {**ENTRY, "data_offsets": [0, SIZE]}}, 16, "lies at"),
    "negative offsets": ({"a": {**ENTRY, "data_offsets": [-4, SIZE - 4]}}, SIZE, "for integers"),
    "offsets in reverse": ({"a": {**ENTRY, "data_offsets": [SIZE, 0]}}, SIZE, "lies at"),
    "three offsets": ({"a": {**ENTRY, "data_offsets": [0, 1, 2]}}, SIZE, "lies at"),
    "fractional offsets": ({"a": {**ENTRY, "data_offsets": [0, SIZE + 0.5]}}, SIZE, "for integers"),
    "another shape": ({"a": {**ENTRY, "shape": [928, 63]}}, SIZE, "its shape has"),
    "a huge shape": ({"a": {**ENTRY, "shape": [1 << 62, 1 << 62]}}, SIZE, "its shape has"),
    "a negative shape": ({"a": {**ENTRY, "shape": [-928, -64]}}, SIZE, "for integers"),
    "a text for a shape": ({"a": {**ENTRY, "shape": "928"}}, SIZE, "for integers"),
    "many dimensions": ({"a": {**ENTRY, "shape": [1] * 99}}, SIZE, "lies at"),
    "another dtype": ({"a": {**ENTRY, "dtype": "F64"}}, SIZE, "its shape has"),
    "an unknown dtype": ({"a": {**ENTRY, "dtype": "F8_E4M3"}}, SIZE, "has dtype 'F8_E4M3'"),
    "a dtype of lists": ({"a": {**ENTRY, "dtype": []}}, SIZE, "has dtype"),
    "a missing key": ({"a": {"dtype": "F32", "shape": SHAPE}}, SIZE, "is malformed"),
    "an entry of text": ({"a": "F32"}, SIZE, "is malformed"),
    "an overlap": ({"a": ENTRY, "b": ENTRY}, SIZE, "begins at byte 0; expected"),
    "a gap": ({"a": ENTRY}, SIZE + 8, "its tensors end at byte"),
    "no object": ([1, 2], 0, "it holds no JSON object"),
    "the same name twice": (b'{"a": 1, "a": 2}', 0, "key 'a' stands twice"),
}


@pytest.mark.parametrize("case", HOSTILE_HEADERS)
def test_lying_headers_are_refused(folder: Folder, case: str) -> None:
    header, n_bytes, message = HOSTILE_HEADERS[case]
    path = folder()
    (path / "model.safetensors").write_bytes(raw_safetensors(header, bytes(n_bytes)))
    with pytest.raises(ValueError, match=rf"model\.safetensors is damaged: .*{message}"):
        load_checkpoint(path, device="cpu")


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, 1000])
def test_lying_header_lengths_are_refused(folder: Folder, length: int) -> None:
    path = folder()
    (path / "model.safetensors").write_bytes(raw_safetensors({}, length=length))
    with pytest.raises(ValueError, match=r"is damaged: its header has [\d,]+ bytes, the file"):
        load_checkpoint(path, device="cpu")


def test_huge_headers_are_refused_unread(folder: Folder) -> None:
    path = folder()
    with open(path / "model.safetensors", "wb") as file:
        file.write((1 << 34).to_bytes(8, "little"))
        file.truncate(1 << 35)  # a hole: no disk is used
    with pytest.raises(ValueError, match="bytes; allowed: at most 16,777,216"):
        load_checkpoint(path, device="cpu")


def test_numbers_too_large_for_floats_are_refused(tmp_path: Path) -> None:
    text = json.dumps(settings()).replace("10000.0", "1e400")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="rope_theta = inf; allowed: a number above 0"):
        load_checkpoint(tmp_path, device="cpu")


def test_a_billion_layers_are_refused_at_once(folder: Folder) -> None:
    path = folder()
    values = {**settings(), "num_hidden_layers": 10**9}
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="1,000,000,000 layers, but 20 tensors"):
        load_checkpoint(path, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 1 << 30, "head_dim": 16}, r"of another shape: lm_head|of another shape"),
        ({"vocab_size": 1 << 30}, r"model\.embed_tokens\.weight \[928, 64\] instead of"),
        ({"intermediate_size": 97}, r"of another shape: .*mlp\.down_proj\.weight"),
        ({"tie_word_embeddings": False}, r"missing: lm_head\.weight"),
        ({"num_hidden_layers": 3}, r"missing: model\.layers\.2\..* and 3 more"),
        ({"num_hidden_layers": 1}, r"unknown: model\.layers\.1\..* and 3 more"),
        ({**QWEN2}, r"missing: .*k_proj\.bias"),
        ({**QWEN3, "head_dim": 16}, r"missing: .*k_norm\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Folder, change: dict[str, Any], message: str
) -> None:
    path = folder()
    (path / "config.json").write_text(json.dumps({**settings(), **change}))
    with pytest.raises(ValueError, match=f"tensors do not fit the configuration; .*{message}"):
        load_checkpoint(path, device="cpu")


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size"])
def test_sizes_beyond_any_model_are_refused(folder: Folder, name: str) -> None:
    path = folder()
    (path / "config.json").write_text(json.dumps({**settings(), name: 1 << 40}))
    with pytest.raises(ValueError, match="1099511627776; allowed: an integer of at most 2,147"):
        load_checkpoint(path, device="cpu")


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    values = settings()
    given = weights(values)
    given["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96, 64, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"precision other than F32, F16, BF16: .*up_proj.*\(I8\)"):
        load_model(write_huggingface(tmp_path, values, given), device="cpu")


OUTSIDE = (
    *("../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors"),
    *(".hidden.safetensors", "weights.bin", "", "x\0.safetensors", "..safetensors"),
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_indexes_name_files_of_the_folder_alone(folder: Folder, name: str) -> None:
    path = folder(shards=2)
    places = dict.fromkeys(weights(settings()), name)
    write_index(path, places)
    with pytest.raises(ValueError, match=r"lists the file .*allowed: .*in the same folder"):
        load_checkpoint(path, device="cpu")


@pytest.mark.parametrize("places", [[], "x", {"a": 1}, {"a": None}, None])
def test_damaged_indexes_are_refused(folder: Folder, places: object) -> None:
    path = folder(shards=2)
    write_index(path, places)
    with pytest.raises(ValueError, match=r"index\.json is damaged: weight_map"):
        load_checkpoint(path, device="cpu")


def test_indexes_and_shards_must_agree(folder: Folder) -> None:
    path = folder(shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    moved = {**index, "model.norm.weight": next(iter(set(index.values())))}
    moved = {name: sorted(set(index.values()))[0] for name in moved}
    write_index(path, moved)
    with pytest.raises(ValueError, match=r"disagree about the tensors .*model"):
        load_checkpoint(path, device="cpu")
    write_index(path, {**index, "extra": "model-00003-of-00003.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"00003\.safetensors is missing"):
        load_checkpoint(path, device="cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused(folder: Folder, name: str) -> None:
    path = folder()
    (path / "model.safetensors").rename(path / name)
    with pytest.raises(ValueError, match=f"{name}, which is pickled: loading it could run code"):
        load_checkpoint(path, device="cpu")
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint: model\.safetensors is missing"):
        load_checkpoint(path, device="cpu")


def test_pipes_are_refused(folder: Folder) -> None:
    path = folder()
    for name in ("model.safetensors", "config.json"):
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises((ValueError, FileNotFoundError), match=r"no regular file|is missing"):
            load_checkpoint(path, device="cpu")


# -- tokenizers -----------------------------------------------------------------------------------


def test_vocabularies_may_be_smaller_than_the_embedding_but_not_larger(tmp_path: Path) -> None:
    values = settings(vocab_size=600)
    folder = write_huggingface(tmp_path / "small", values, weights(values))
    with pytest.raises(ValueError, match=r"has 66\d tokens, the model's vocab_size is 600"):
        load_checkpoint(folder, device="cpu")
    checkpoint = load_checkpoint(
        write_huggingface(tmp_path / "large", settings(), weights(settings())), device="cpu"
    )
    assert bool(checkpoint.suppressed[checkpoint.tokenizer.vocab_size :].all())


def test_folders_without_tokenizer_read_ids(folder: Folder) -> None:
    path = folder()
    (path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json and no tokenizer\.model"):
        load_checkpoint(path, device="cpu")
    assert load_model(path, device="cpu").config.vocab_size == 928


HOSTILE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "a list for a vocabulary": {"vocab": []},
    "a number for a vocabulary": {"vocab": 7},
    "merges of numbers": {"merges": [1]},
    "merges of text": {"merges": "a b"},
    "ids of text": {"vocab": {"a": "b"}},
    "a negative id": {"vocab": {"a": -1}},
    "a huge id": {"vocab": {"a": 1 << 60}},
    "a large id": {"vocab": {"a": 1 << 33}},
    "a large id, Llama 2": {"vocab": {"a": 1 << 33}, "byte_fallback": True},
    "unigram": {"type": "Unigram"},
}


@pytest.mark.parametrize("case", HOSTILE_TOKENIZERS)
def test_damaged_tokenizers_are_refused(folder: Folder, case: str) -> None:
    path = folder()
    data = json.loads((path / "tokenizer.json").read_text())
    data["model"] |= HOSTILE_TOKENIZERS[case]
    (path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=str(path)):
        load_checkpoint(path, device="cpu")


@pytest.mark.parametrize("data", ["{}", "[]", '{"model": []}', "{", '{"added_tokens": 7}'])
def test_tokenizers_that_are_none_are_refused(folder: Folder, data: str) -> None:
    path = folder()
    (path / "tokenizer.json").write_text(data)
    with pytest.raises(ValueError, match=str(path)):
        load_checkpoint(path, device="cpu")


def test_huge_tokenizers_are_refused_unread(folder: Folder) -> None:
    path = folder()
    with open(path / "tokenizer.json", "r+b") as file:
        file.truncate(1 << 34)  # a hole: no disk is used
    with pytest.raises(ValueError, match=r"tokenizer\.json is too large; allowed: at most"):
        load_checkpoint(path, device="cpu")
