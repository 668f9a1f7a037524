"""Tiny random checkpoints of the Llama family, as Hugging Face folders and as GGUF files."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.vocabularies import byte_level_gguf, byte_level_json, huggingface_folder

# Of every architecture: settings that differ from those of BASE.
BASE: dict[str, Any] = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 928},
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "hidden_act": "silu"},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True},
    **{"attention_bias": False, "mlp_bias": False, "initializer_range": 0.02},
}
ORIGINAL = {"original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA31 = {**LLAMA3, "original_max_position_embeddings": 8192}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, untied": {"tie_word_embeddings": False},
    "llama, a head for each query": {"num_key_value_heads": 4},
    "llama, one head": {"num_key_value_heads": 1},
    "llama, wide heads": {"head_dim": 24},
    "llama, linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama 3.1": {"rope_scaling": {**LLAMA3, **ORIGINAL}, "rope_theta": 500000.0},
    "llama, yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, **ORIGINAL}},
    "mistral": {**MISTRAL, "sliding_window": None, "tie_word_embeddings": False},
    "qwen2": QWEN2,
    "qwen2, untied, yarn": {
        **QWEN2,
        "tie_word_embeddings": False,
        "rope_scaling": {"type": "yarn", "factor": 4.0, **ORIGINAL},
    },
    "qwen3": {**QWEN3, "tie_word_embeddings": True},
    "qwen3, untied": {**QWEN3, "tie_word_embeddings": False, "num_key_value_heads": 1},
}
GGUF_ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama"}
GGUF_ARCHITECTURES |= {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}


def settings(shape: str = "llama", **options: Any) -> dict[str, Any]:
    """The contents of a config.json."""
    return {**BASE, **SHAPES[shape], **options}


def weights(
    values: Mapping[str, Any], *, seed: int = 1, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights by their names at Hugging Face, large enough to have an effect."""
    d, f, v = values["hidden_size"], values["intermediate_size"], values["vocab_size"]
    heads, pairs = values["num_attention_heads"], values["num_key_value_heads"]
    e = values.get("head_dim") or d // heads
    kind = values["architectures"][0]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    for index in range(values["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, rows in (("q", heads * e), ("k", pairs * e), ("v", pairs * e)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, d)
            if kind.startswith("Qwen2"):
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
            if kind.startswith("Qwen3") and name != "v":
                shapes[f"{layer}.self_attn.{name}_norm.weight"] = (e,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (d, heads * e)
        for name in ("gate", "up"):
            shapes[f"{layer}.mlp.{name}_proj.weight"] = (f, d)
        shapes[f"{layer}.mlp.down_proj.weight"] = (d, f)
        for name in ("input", "post_attention"):
            shapes[f"{layer}.{name}_layernorm.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not values["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    random = torch.Generator().manual_seed(seed)
    return {
        name: _drawn(name, shape, random).to(dtype).contiguous() for name, shape in shapes.items()
    }


def _drawn(name: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=random)
    if name.endswith("norm.weight"):
        return 1 + 0.2 * noise
    return 0.3 * noise if len(shape) == 1 or "embed" in name else noise / shape[1] ** 0.5


def write_huggingface(
    folder: Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """A folder as `save_pretrained` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    if tokenizer:
        huggingface_folder(folder, byte_level_json("smollm"))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, places = list(tensors), {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[index::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    write_index(folder, places)
    return folder


def write_index(folder: Path, places: object) -> None:
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


# -- GGUF -----------------------------------------------------------------------------------------

GGUF_NAMES = {
    **{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def gguf_name(name: str) -> str:
    """The name in a GGUF file of a tensor from Hugging Face."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, index, part = stem.split(".", 3)
        return f"blk.{index}.{GGUF_NAMES[part]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys of architecture "llama"."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def gguf_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that the converter would write, tokenizer included."""
    arch = GGUF_ARCHITECTURES[values["architectures"][0]]
    heads = values["num_attention_heads"]
    e = values.get("head_dim") or values["hidden_size"] // heads
    facts: dict[str, Any] = {
        "block_count": values["num_hidden_layers"],
        "context_length": values["max_position_embeddings"],
        "embedding_length": values["hidden_size"],
        "feed_forward_length": values["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": values["num_key_value_heads"],
        "attention.key_length": e,
        "attention.value_length": e,
        "attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
        "rope.dimension_count": e,
        "rope.freq_base": values["rope_theta"],
        "vocab_size": values["vocab_size"],
    }
    scaling = values.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        facts |= {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
    if kind == "yarn":
        facts["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    named = {f"{arch}.{name}": value for name, value in facts.items()}
    return {"general.architecture": arch, **named, **byte_level_gguf("smollm")}


def write_gguf(
    path: Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    kind: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    wavelengths: np.ndarray | None = None,
) -> Path:
    """A file as llama.cpp's converter writes it; matrices of type `kind`, vectors in F32."""
    import gguf
    from gguf.quants import quantize

    facts = dict(gguf_metadata(values) if metadata is None else metadata)
    arch = facts.pop("general.architecture")
    writer = gguf.GGUFWriter(path, arch)
    for name, value in facts.items():
        add_field(writer, name, value)
    stored = gguf.GGMLQuantizationType[kind]
    plain = gguf.GGMLQuantizationType.F32
    for name, tensor in tensors.items():
        rows = tensor.float().numpy()
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            rows = interleaved(rows, values[heads])
        dtype = plain if rows.ndim == 1 else stored
        writer.add_tensor(gguf_name(name), quantize(rows, dtype), raw_dtype=dtype)
    if wavelengths is not None:
        writer.add_tensor("rope_freqs.weight", wavelengths.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_field(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def raw_gguf(
    *,
    fields: Sequence[tuple[bytes, int, bytes]] = (),
    tensors: Sequence[tuple[bytes, Sequence[int], int, int]] = (),
    n_fields: int | None = None,
    n_tensors: int | None = None,
    version: int = 3,
    data: bytes = b"",
) -> bytes:
    """The bytes of a GGUF file, by hand and not necessarily valid.

    Args:
        fields: name, type code, bytes of the value.
        tensors: name, dimensions innermost first, type code, offset.
    """
    counts = len(tensors) if n_tensors is None else n_tensors
    header = struct.pack("<IQQ", version, counts, len(fields) if n_fields is None else n_fields)
    parts = [b"GGUF", header]
    for name, code, value in fields:
        parts += [gguf_text(name), struct.pack("<I", code), value]
    for name, shape, code, offset in tensors:
        parts += [gguf_text(name), struct.pack("<I", len(shape))]
        parts += [struct.pack("<Q", n) for n in shape] + [struct.pack("<IQ", code, offset)]
    head = b"".join(parts)
    return head + bytes(-len(head) % 32) + data


def gguf_text(text: bytes, *, length: int | None = None) -> bytes:
    """A string of a GGUF file, with a length that may lie."""
    return struct.pack("<Q", len(text) if length is None else length) + text


def raw_safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """The bytes of a safetensors file, by hand and not necessarily valid."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
