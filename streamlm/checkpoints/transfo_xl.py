"""Convert pretrained Transformer-XL weights to a checkpoint, by a map of tensor names.

Two sources are supported: a Hugging Face directory such as transfo-xl-wt103
(`TransfoXLLMHeadModel`), and a state dict of the original PyTorch code. The latter has no prefix
`transformer.` in its names, always shares position biases between layers, and stores cluster rows
in reverse order. Only tensors and plain values are unpickled.

These models have word vocabularies, for which there is no tokenizer here. The converted checkpoint
has no tokenizer; words.txt lists the words in id order, if the source contains them.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from streamlm.checkpoints.checkpoint import save_checkpoint
from streamlm.config import ModelConfig
from streamlm.models.build import build_empty

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt")
SEGMENT_LEN = 128  # default if a configuration has no tgt_len


@dataclass(frozen=True)
class Source:
    """Source of one target tensor.

    Attributes:
        names: source tensors, concatenated along rows.
        stack: stack the source tensors as rows instead.
        rows: (start, stop) of the rows to use; None uses all.
        reverse: reverse the order of rows.
    """

    names: tuple[str, ...]
    stack: bool = False
    rows: tuple[int, int] | None = None
    reverse: bool = False

    def take(self, theirs: Mapping[str, Tensor]) -> Tensor:
        """The target tensor, in float32."""
        parts = [theirs[name] for name in self.names]
        joined = torch.stack(parts) if self.stack else torch.cat(parts)
        start, stop = self.rows or (0, len(joined))
        taken = joined[start:stop].flip(0) if self.reverse else joined[start:stop]
        return taken.float().clone(memory_format=torch.contiguous_format)


def weight_map(config: ModelConfig, *, original: bool = False) -> dict[str, Source]:
    """Target names → sources. `original` selects the original code's names, not Hugging Face's."""
    prefix = "" if original else "transformer."
    inner = config.n_heads * config.head_dim
    sources = {}
    for index in range(config.n_layers):
        ours, theirs = f"layers.{index}", f"{prefix}layers.{index}"
        qkv = (f"{theirs}.dec_attn.qkv_net.weight",)
        sources[f"{ours}.attention.query.weight"] = Source(qkv, rows=(0, inner))
        sources[f"{ours}.attention.key_value.weight"] = Source(qkv, rows=(inner, 3 * inner))
        for mine, their in (
            ("attention.position.weight", "dec_attn.r_net.weight"),
            ("attention.output.weight", "dec_attn.o_net.weight"),
            ("attention_norm.weight", "dec_attn.layer_norm.weight"),
            ("attention_norm.bias", "dec_attn.layer_norm.bias"),
            ("feed_forward.0.weight", "pos_ff.CoreNet.0.weight"),
            ("feed_forward.0.bias", "pos_ff.CoreNet.0.bias"),
            ("feed_forward.3.weight", "pos_ff.CoreNet.3.weight"),
            ("feed_forward.3.bias", "pos_ff.CoreNet.3.bias"),
            ("feed_forward_norm.weight", "pos_ff.layer_norm.weight"),
            ("feed_forward_norm.bias", "pos_ff.layer_norm.bias"),
        ):
            sources[f"{ours}.{mine}"] = Source((f"{theirs}.{their}",))
    for mine, their in (("content_bias", "r_w_bias"), ("position_bias", "r_r_bias")):
        layers = range(config.n_layers)
        per_layer = tuple(f"{prefix}layers.{index}.dec_attn.{their}" for index in layers)
        names = (f"{prefix}{their}",) if config.shared_bias else per_layer
        sources[mine] = Source(names, stack=True)
    n_tables, n_projections = _counts(config)
    biases = tuple(f"crit.out_layers.{i}.bias" for i in range(n_tables))
    sources["output_bias"] = Source(biases)
    tables = [f"{prefix}word_emb.emb_layers.{i}.weight" for i in range(n_tables)]
    if not config.cutoffs:
        return {**sources, "embedding.weight": Source((tables[0],))}
    for i, table in enumerate(tables):
        sources[f"embedding.tables.{i}"] = Source((table,))
    for i in range(n_projections):
        sources[f"embedding.projections.{i}"] = Source((f"{prefix}word_emb.emb_projs.{i}",))
    if n_projections:
        sources["embedding.head_projection"] = Source(("crit.out_projs.0",))
    for name in ("cluster_weight", "cluster_bias"):
        sources[f"embedding.{name}"] = Source((f"crit.{name}",), reverse=original)
    return sources


def ties(config: ModelConfig, *, original: bool = False) -> dict[str, str]:
    """Aliases of tied source tensors → the canonical name; aliases may be absent."""
    prefix = "" if original else "transformer."
    n_tables, n_projections = _counts(config)
    aliases = {
        f"crit.out_layers.{i}.weight": f"{prefix}word_emb.emb_layers.{i}.weight"
        for i in range(n_tables)
    }
    for i in range(1, len(config.cutoffs) + 1 if n_projections else 0):
        own = 0 if config.div_val == 1 else i
        aliases[f"crit.out_projs.{i}"] = f"{prefix}word_emb.emb_projs.{own}"
    if config.shared_bias and not original:
        for index in range(config.n_layers):
            for name in ("r_w_bias", "r_r_bias"):
                aliases[f"{prefix}layers.{index}.dec_attn.{name}"] = f"{prefix}{name}"
    return aliases


def _counts(config: ModelConfig) -> tuple[int, int]:
    """Numbers of tables and input projections; see `streamlm.models.layers.adaptive`."""
    if config.div_val > 1:
        return len(config.cutoffs) + 1, len(config.cutoffs) + 1
    return 1, int(config.embed_width != config.d_model)


def convert_weights(
    theirs: Mapping[str, Tensor], config: ModelConfig, *, original: bool = False
) -> dict[str, Tensor]:
    """Target tensors by name, in float32. Every source tensor is used, or checked for its value.

    Raises:
        ValueError: tensors are missing, unknown, or differ from those they are tied to; lists all.
    """
    theirs, sources = dict(theirs), weight_map(config, original=original)
    tied = ties(config, original=original)
    for second, first in tied.items():  # a file may contain either name
        if first not in theirs and second in theirs:
            theirs[first] = theirs[second]
    frequencies = f"{'' if original else 'transformer.'}pos_emb.inv_freq"
    wanted = {name for source in sources.values() for name in source.names}
    missing = sorted(wanted - set(theirs))
    unknown = sorted(set(theirs) - wanted - set(tied) - {frequencies})
    differing = sorted(
        f"{second} (tied to {first})"
        for second, first in tied.items()
        if {first, second} <= set(theirs) and not torch.equal(theirs[first], theirs[second])
    )
    if frequencies in theirs:
        index = torch.arange(0, config.d_model, 2, dtype=torch.float64)
        rates = torch.pow(10000.0, -index / config.d_model)
        given = theirs[frequencies].double()
        if given.shape != rates.shape or not torch.allclose(given, rates, rtol=1e-3):
            differing.append(f"{frequencies} (10000^(-2i/d))")
    problems = {"missing": missing, "unknown": unknown, "wrong values": differing}
    if any(problems.values()):
        details = (f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise ValueError(f"tensors that do not fit the configuration; {'; '.join(details)}")
    return {name: source.take(theirs) for name, source in sources.items()}


def transfo_xl_config(values: Mapping[str, Any], *, original: bool = False) -> ModelConfig:
    """Convert a `TransfoXLConfig`, whose names the original code shares.

    `segment_len` is tgt_len if given. No weight depends on it or on `memory_len`; both may be
    changed in the converted config.json.

    Raises:
        ValueError: a setting is missing or not supported.
    """
    needed = ("vocab_size", "n_layer", "d_model", "n_head", "d_head", "d_inner", "mem_len")
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    d_model, d_embed = values["d_model"], values.get("d_embed", values["d_model"])
    cutoffs = values.get("cutoffs", [])
    for name, given, allowed in (
        ("attn_type", values.get("attn_type", 0), 0),
        ("layer_norm_epsilon", values.get("layer_norm_epsilon", 1e-5), 1e-5),
        ("d_embed without cutoffs", d_model if cutoffs else d_embed, d_model),
    ):
        if given != allowed:
            raise ValueError(f"{name} = {given!r}; allowed: {allowed!r}")
    return ModelConfig(
        vocab_size=values["vocab_size"],
        n_layers=values["n_layer"],
        d_model=d_model,
        n_heads=values["n_head"],
        head_dim=values["d_head"],
        d_ff=values["d_inner"],
        segment_len=values.get("tgt_len", SEGMENT_LEN),
        memory_len=values["mem_len"],
        compressed_len=0,
        compression_loss="none",
        norm="pre" if values.get("pre_lnorm", False) else "post",
        shared_bias=original or not values.get("untie_r", True),
        dropout=values.get("dropout", 0.0),
        attention_dropout=values.get("dropatt", 0.0),
        init_std=values.get("init_std", 0.02),
        cutoffs=cutoffs,
        div_val=values.get("div_val", 1),
        embed_dim=0 if d_embed == d_model else d_embed,
        clamp_len=max(0, values.get("clamp_len", 0)),
    )


def convert_transfo_xl(folder: str | Path, out: str | Path) -> list[str]:
    """Convert a directory with config.json and weights to a checkpoint directory.

    Weights are read from model.safetensors, pytorch_model.bin or model.pt, words from vocab.txt or
    vocab.bin. A state dict of the original code contains no settings, so its config.json must be
    written by hand with the names of `TransfoXLConfig`.

    Returns:
        Notes about the result, one sentence each.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: the weights cannot be converted, or a file is not accepted; gives the reason.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} already exists; allowed: a new or empty directory")
    paths = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not paths or not (folder / "config.json").is_file():
        expected = f"config.json and one of {', '.join(WEIGHT_FILES)}"
        raise FileNotFoundError(f"{folder} contains no Transformer-XL; expected: {expected}")
    theirs = _tensors(paths[0])
    original = not any(name.startswith("transformer.") for name in theirs)
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        config = transfo_xl_config(values, original=original)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    try:
        weights = convert_weights(theirs, config, original=original)
        model = build_empty(config)
        model.load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{paths[0]}: {error}") from None
    words, notes = _words(folder, config.vocab_size)
    save_checkpoint(out, model, None)
    if words is not None:
        text = "".join(f"{word}\n" for word in words)
        (out / "words.txt").write_text(text, encoding="utf-8", newline="\n")
    if values.get("same_length", False):
        notes.append(
            "same_length is not supported: a token attends to all of memory, up to "
            f"{config.segment_len} slots more than in the original"
        )
    notes.append(
        "the checkpoint has no tokenizer: "
        "load it with streamlm.checkpoints.checkpoint.load_model to read token ids"
    )
    return notes


def _tensors(path: Path) -> dict[str, Tensor]:
    """Load a file of tensors by name; nothing else is unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} contains more than plain tensors. Loading a pickled model runs the code that "
            "its file names, so it is refused. If you trust the file, load it with its own code "
            "and save the weights: torch.save(model.state_dict(), 'model.pt')"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path} is not a state dict; allowed: tensors by name")
    return tensors


def _words(folder: Path, vocab_size: int) -> tuple[list[str] | None, list[str]]:
    """Words in id order, or None if they cannot be read, and notes."""
    text, saved = folder / "vocab.txt", folder / "vocab.bin"
    if text.is_file():
        lines = text.read_text(encoding="utf-8").split("\n")
        words = [line.split()[0] for line in lines if line.strip()]
    elif saved.is_file():
        try:
            words = torch.load(saved, map_location="cpu", weights_only=True)["idx2sym"]
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError):
            return None, [f"{saved} contains more than plain values and was not read"]
    else:
        return None, ["there is no vocab.txt or vocab.bin, so words.txt is not written"]
    if len(words) != vocab_size:
        raise ValueError(f"{folder} lists {len(words)} words; vocab_size is {vocab_size}")
    return [str(word) for word in words], []
