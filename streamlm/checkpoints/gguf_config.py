"""LlamaConfig from the metadata of a GGUF file, whose keys llama.cpp's converter writes."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import torch

from streamlm.checkpoints.windows import default_windows
from streamlm.config import any_of, require
from streamlm.models.layers.rotary import inverse_frequencies
from streamlm.models.llama_config import LlamaConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Settings with the only values that are supported; absent ones are not asked about.
ONLY: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False, True),  # the graphs of these architectures ignore it
    "rope.scale_linear": (1.0,),  # of files from 2023
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
# The scaling of Llama 3.1 and 3.2: the file holds its result only, a factor of each wavelength.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama_config(
    metadata: Mapping[str, Any], *, tied: bool, wavelengths: np.ndarray[Any, Any] | None
) -> LlamaConfig:
    """The configuration of a model, with default windows.

    Args:
        tied: whether the file lacks an output layer.
        wavelengths: [E/2] factors of the wavelengths (tensor rope_freqs.weight), if there are any.

    Raises:
        ValueError: a setting is missing, damaged or not supported; names it and what is allowed.
    """
    kind = metadata.get("general.architecture")
    require(kind in ARCHITECTURES, "general.architecture", kind, any_of(ARCHITECTURES))
    prefix = f"{kind}."
    values = {
        name.removeprefix(prefix): value
        for name, value in metadata.items()
        if name.startswith(prefix)
    }
    for name, allowed in ONLY.items():
        given = values.get(name, allowed[0])
        good = not isinstance(given, (np.ndarray, list)) and given in allowed
        require(good, prefix + name, given, " or ".join(map(repr, allowed)))
    width, heads = _integer(values, "embedding_length"), _integer(values, "attention.head_count")
    if "attention.key_length" not in values:
        good = width % heads == 0
        require(good, "embedding_length", width, f"a multiple of attention.head_count = {heads}")
    head_dim = _integer(values, "attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        given = _integer(values, name, head_dim)
        require(given == head_dim, prefix + name, given, f"{head_dim}, that of keys")
    context_len, theta = _integer(values, "context_length"), _number(values, "rope.freq_base", 1e4)
    return LlamaConfig(
        vocab_size=_vocab_size(values, metadata),
        n_layers=_integer(values, "block_count"),
        d_model=width,
        n_heads=heads,
        n_kv_heads=_integer(values, "attention.head_count_kv", heads),
        head_dim=head_dim,
        d_ff=_integer(values, "feed_forward_length"),
        norm_eps=_number(values, "attention.layer_norm_rms_epsilon", None),
        rope_theta=theta,
        rope_scaling=_scaling(values, context_len, head_dim, theta, wavelengths),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied=tied,
        context_len=context_len,
        **default_windows(context_len),
    )


def _vocab_size(values: Mapping[str, Any], metadata: Mapping[str, Any]) -> int:
    """The number of tokens listed; some files state it, too."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    listed = len(tokens) if isinstance(tokens, list) and tokens else None
    return _integer(values, "vocab_size", listed)


def _scaling(
    values: Mapping[str, Any],
    context_len: int,
    head_dim: int,
    theta: float,
    wavelengths: np.ndarray[Any, Any] | None,
) -> dict[str, Any]:
    kind = values.get("rope.scaling.type", "none")
    good = kind in ("none", "linear", "yarn")
    require(good, "rope.scaling.type", kind, "'none' or 'linear' or 'yarn'")
    if wavelengths is not None:
        require(kind == "none", "rope.scaling.type with rope_freqs.weight", kind, "'none'")
        return _llama3(wavelengths, head_dim, theta)
    if kind == "none":
        return {}
    factor = _number(values, "rope.scaling.factor", None)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    original = _integer(values, "rope.scaling.original_context_length", context_len)
    found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for theirs, ours in (("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
        name = f"rope.scaling.yarn_{theirs}"
        if name in values:
            found[ours] = _number(values, name, None)
    if "rope.scaling.attn_factor" in values:
        # Here a factor on top of the usual 0.1 ln(factor) + 1; there the whole.
        usual = 0.1 * np.log(factor) + 1.0 if factor > 1 else 1.0
        found["attention_factor"] = float(_number(values, "rope.scaling.attn_factor", None) * usual)
    return found


def _llama3(wavelengths: np.ndarray[Any, Any], head_dim: int, theta: float) -> dict[str, Any]:
    """The scaling that gives these factors of the wavelengths.

    Raises:
        ValueError: none that is known does.
    """
    factor = float(wavelengths.max()) if len(wavelengths) == head_dim // 2 else 0.0
    if isfinite(factor) and factor > 1:
        found = {"rope_type": "llama3", "factor": round(factor, 4), **LLAMA3}
        plain, _ = inverse_frequencies(head_dim, theta, {})
        scaled, _ = inverse_frequencies(head_dim, theta, found)
        if torch.allclose(plain / scaled, torch.from_numpy(wavelengths), rtol=1e-4, atol=0):
            return found
    raise ValueError(
        "rope_freqs.weight holds factors of wavelengths that are not known; allowed: those of "
        f"Llama 3.1 and 3.2 for {head_dim // 2} wavelengths ({LLAMA3})"
    )


def _integer(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    given = values.get(name, default)
    if isinstance(given, np.ndarray) and len(given) and bool((given == given[0]).all()):
        given = given[0].item()  # one number for each layer
    require(type(given) is int and given >= 1, name, given, "an integer of at least 1")
    return int(given)


def _number(values: Mapping[str, Any], name: str, default: float | None) -> float:
    """A number above 0: the shortest decimal that is the float32 of the file."""
    given = values.get(name, default)
    good = type(given) in (int, float) and isfinite(given) and given > 0
    require(good, name, given, "a number above 0")
    assert given is not None
    return float(str(np.float32(given)))
