"""LlamaConfig from the config.json of a Hugging Face checkpoint.

Whatever would change the computation and is not supported is refused by name, so that no model is
read as something that it is not.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from streamlm.checkpoints.windows import default_windows
from streamlm.config import any_of, require
from streamlm.models.llama_config import LlamaConfig

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
NEEDED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings"),
)
# What an architecture assumes where config.json is silent, if that is not what is assumed here.
NEEDED_BY = {
    "MistralForCausalLM": ("num_key_value_heads", "sliding_window"),
    "Qwen2ForCausalLM": ("num_key_value_heads",),
    "Qwen3ForCausalLM": ("num_key_value_heads", "head_dim"),
}
# Settings with the only values that are supported; the first is assumed where one is absent.
ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),  # it would give the attention's output a bias, too
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (None, 0)),
}
FULL = "full_attention"


def llama_config(values: Mapping[str, Any]) -> LlamaConfig:
    """The configuration of a model, with default windows.

    Args:
        values: the object in config.json, as `transformers` 4 or 5 writes it.

    Raises:
        ValueError: a setting is missing, damaged or not supported; names it and what is allowed.
    """
    names = values.get("architectures")
    known = isinstance(names, list) and len(names) == 1 and names[0] in ARCHITECTURES
    require(known, "architectures", names, f"one of {any_of(ARCHITECTURES)}")
    kind: str = names[0]  # type: ignore[index]
    needed = (*NEEDED, *NEEDED_BY.get(kind, ()))
    missing = [
        name
        for name in needed
        if name not in values or (values[name] is None and name != "sliding_window")
    ]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    for name, allowed in ONLY.items():
        given = values.get(name, allowed[0])
        require(given in allowed, f"{name} of {kind}", given, any_of_values(allowed))
    _check_code(values)
    _check_windows(values, kind)
    heads = _integer(values, "num_attention_heads")
    width = _integer(values, "hidden_size")
    head_dim = values.get("head_dim")
    if head_dim is None:
        divides = width % heads == 0
        require(divides, "hidden_size", width, f"a multiple of num_attention_heads = {heads}")
    theta, scaling = rope(values)
    context_len = _integer(values, "max_position_embeddings")
    return LlamaConfig(
        vocab_size=_integer(values, "vocab_size"),
        n_layers=_integer(values, "num_hidden_layers"),
        d_model=width,
        n_heads=heads,
        n_kv_heads=_integer(values, "num_key_value_heads", heads),
        head_dim=width // heads if head_dim is None else _integer(values, "head_dim"),
        d_ff=_integer(values, "intermediate_size"),
        norm_eps=_number(values, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=kind == "Qwen2ForCausalLM",
        qk_norm=kind == "Qwen3ForCausalLM",
        tied=_flag(values, "tie_word_embeddings"),
        context_len=context_len,
        **default_windows(context_len),
    )


def rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Base and scaling of the rotary frequencies.

    `transformers` 5 writes both into "rope_parameters"; earlier versions wrote "rope_theta" and
    "rope_scaling".
    """
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    if new is not None and old is not None and new != old:
        raise ValueError("rope_parameters and rope_scaling differ; allowed: one of them")
    given = new if new is not None else old
    if given is None:
        given = {}
    require(isinstance(given, Mapping), "rope_parameters or rope_scaling", given, "an object")
    nested = [name for name, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(f"rope_parameters differ by layer ({', '.join(nested)}); allowed: one set")
    scaling = dict(given)
    kinds = {scaling.pop(name) for name in ("rope_type", "type") if name in scaling}
    if len(kinds) > 1:
        raise ValueError(f"rope_type and type differ: {kinds}")
    fraction = scaling.pop("partial_rotary_factor", 1.0)
    require(fraction in (1, None), "partial_rotary_factor", fraction, "1.0")
    theta = _number({**values, **scaling}, "rope_theta", 10000.0)
    scaling.pop("rope_theta", None)
    kind = kinds.pop() if kinds else "default"
    if kind in ("default", None):
        # Left over where a scaling was switched off; the frequencies do not depend on it.
        scaling.pop("original_max_position_embeddings", None)
        if scaling:
            raise ValueError(f"rope_scaling without a rope_type has {', '.join(scaling)}")
        return theta, {}
    if kind in ("llama3", "yarn"):
        length = _integer(values, "max_position_embeddings")
        scaling.setdefault(
            "original_max_position_embeddings",
            values.get("original_max_position_embeddings", length),
        )
    kept = {name: value for name, value in scaling.items() if value is not None}
    return theta, {"rope_type": kind, **kept}  # LlamaConfig checks it


def _check_code(values: Mapping[str, Any]) -> None:
    """Refuse a model whose own code differs from the architecture that it names."""
    code = values.get("auto_map")
    if isinstance(code, Mapping) and any(name.startswith("AutoModel") for name in code):
        raise ValueError("auto_map names code of its own, which is never run; allowed: none")


def _check_windows(values: Mapping[str, Any], kind: str) -> None:
    if kind == "MistralForCausalLM":
        given = values["sliding_window"]
        require(given is None, "sliding_window", given, "null, as from Mistral 7B v0.2 on")
    elif kind.startswith("Qwen"):
        given = values.get("use_sliding_window", False)
        require(given is False, "use_sliding_window", given, "false")
    layers = values.get("layer_types")
    if layers is not None:
        good = isinstance(layers, list) and all(layer == FULL for layer in layers)
        require(good, "layer_types", _short(layers), f"{FULL!r} for every layer")


def _short(value: object) -> object:
    return sorted({str(each) for each in value}) if isinstance(value, list) else value


def any_of_values(choices: tuple[object, ...]) -> str:
    """'silu' or null, as in JSON."""
    names = {None: "null", False: "false", True: "true"}
    return " or ".join(
        names[each] if each is None or isinstance(each, bool) else repr(each) for each in choices
    )


def _integer(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    given = values.get(name)
    given = default if given is None else given
    require(type(given) is int and given >= 1, name, given, "an integer of at least 1")
    return int(given)  # type: ignore[arg-type]


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    given = values.get(name)
    given = default if given is None else given
    good = type(given) in (int, float) and isfinite(given) and given > 0
    require(good, name, given, "a number above 0")
    return float(given)


def _flag(values: Mapping[str, Any], name: str) -> bool:
    given = values.get(name, False)
    require(type(given) is bool, name, given, "true or false")
    return bool(given)
