"""The tensors of a Llama-family model: their names here and elsewhere, and their shapes."""

import re
from collections.abc import Callable, Collection, Mapping

from streamlm.checkpoints.stored import FLOATS, OWN, StoredTensor, listed
from streamlm.models.llama_config import LlamaConfig

# By source: our names of tensors outside and inside of layers, and theirs.
NAMES: dict[str, dict[str, str]] = {
    "huggingface": {
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "output": "lm_head",
        "layers": "model.layers",
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.query_norm": "self_attn.q_norm",
        "attention.key_norm": "self_attn.k_norm",
        "attention.output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
    "gguf": {
        "embedding": "token_embd",
        "final_norm": "output_norm",
        "output": "output",
        "layers": "blk",
        "attention_norm": "attn_norm",
        "attention.query": "attn_q",
        "attention.key": "attn_k",
        "attention.value": "attn_v",
        "attention.query_norm": "attn_q_norm",
        "attention.key_norm": "attn_k_norm",
        "attention.output": "attn_output",
        "feed_forward_norm": "ffn_norm",
        "feed_forward.gate": "ffn_gate",
        "feed_forward.up": "ffn_up",
        "feed_forward.down": "ffn_down",
    },
}


def their_name(name: str, source: str) -> str:
    """The name in a foreign file of a tensor of ours."""
    names = NAMES[source]
    stem, _, kind = name.rpartition(".")
    if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", stem):
        return f"{names['layers']}.{layer[1]}.{names[layer[2]]}.{kind}"
    return f"{names[stem]}.{kind}"


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by name, without compressors."""
    d, f = config.d_model, config.d_ff
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (d,),
        "attention.query.weight": (queries, d),
        "attention.key.weight": (keys, d),
        "attention.value.weight": (keys, d),
        "attention.output.weight": (d, queries),
        "feed_forward_norm.weight": (d,),
        "feed_forward.gate.weight": (f, d),
        "feed_forward.up.weight": (f, d),
        "feed_forward.down.weight": (d, f),
    }
    if config.qkv_bias:
        rows = {"query": queries, "key": keys, "value": keys}
        layer |= {f"attention.{name}.bias": (n,) for name, n in rows.items()}
    if config.qk_norm:
        layer |= {f"attention.{name}_norm.weight": (config.head_dim,) for name in ("query", "key")}
    found: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, d)}
    for index in range(config.n_layers):
        found |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    found["final_norm.weight"] = (d,)
    if not config.tied:
        found["output.weight"] = (config.vocab_size, d)
    return found


def fit(
    config: LlamaConfig,
    theirs: Mapping[str, StoredTensor],
    source: str,
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    precisions: Collection[str] = FLOATS,
) -> dict[str, StoredTensor]:
    """The model's tensors by our names.

    Args:
        theirs: the tensors of the source by its names.
        source: "streamlm" or a key of NAMES.
        ignored: tells of a tensor that is not used whether it may be there.
        precisions: the precisions that are allowed.

    Raises:
        ValueError: tensors are missing, unknown, of another shape or precision; names them.
    """
    if config.n_layers > len(theirs):  # before names of a billion layers are made
        raise ValueError(f"{config.n_layers:,} layers, but {len(theirs):,} tensors")
    wanted = shapes(config)
    names = {name: name if source == "streamlm" else their_name(name, source) for name in wanted}
    own = {name for name in theirs if source == "streamlm" and name.startswith(OWN)}
    unknown = [n for n in set(theirs) - set(names.values()) - own if not ignored(n)]
    there = {name: theirs[their] for name, their in names.items() if their in theirs}
    problems = {
        "missing": listed(their for their in names.values() if their not in theirs),
        "unknown": listed(unknown),
        "of another shape": listed(
            f"{tensor.name} {list(tensor.shape)} instead of {list(wanted[name])}"
            for name, tensor in there.items()
            if tensor.shape != wanted[name]
        ),
        f"in a precision other than {', '.join(precisions)}": listed(
            f"{tensor.name} ({tensor.precision})"
            for tensor in there.values()
            if tensor.precision not in precisions
        ),
    }
    if any(problems.values()):
        details = (f"{what}: {names}" for what, names in problems.items() if names)
        raise ValueError(f"tensors do not fit the configuration; {'; '.join(details)}")
    return there | {name: theirs[name] for name in own}
