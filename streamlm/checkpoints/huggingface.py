"""Hugging Face checkpoints of the Llama family: a folder with config.json and safetensors.

Weights are in model.safetensors, or in several files that model.safetensors.index.json lists.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from streamlm.checkpoints.huggingface_config import llama_config
from streamlm.checkpoints.json_file import read_json
from streamlm.checkpoints.llama_tensors import fit
from streamlm.checkpoints.safetensors_file import read_tensors
from streamlm.checkpoints.stored import StoredModel, StoredTensor, listed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = 4096
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
# Tables of rotary frequencies that old versions of `transformers` saved; they follow from config.
FREQUENCIES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def is_huggingface(values: Mapping[str, Any]) -> bool:
    """Tell whether the object in a config.json is from Hugging Face, not from this project."""
    return "architectures" in values or "model_type" in values


def open_huggingface(folder: Path, *, name: str = "") -> StoredModel:
    """Describe the checkpoint in a folder. Only config.json and headers are read.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: the model is not supported, or a file is damaged; says what is allowed.
    """
    path = folder / "config.json"
    values = read_json(path)
    try:
        config = llama_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    theirs, files = _tensors(folder)
    tied = theirs.get("lm_head.weight") if config.tied else None

    def ignored(name: str) -> bool:
        return bool(FREQUENCIES.fullmatch(name)) or (tied is not None and name == tied.name)

    try:
        tensors = fit(config, theirs, "huggingface", ignored=ignored)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None

    def check_weights() -> None:
        embedding = theirs["model.embed_tokens.weight"]
        if tied is not None and not _equal(tied, embedding):
            raise ValueError(
                f"{folder}: {tied.name} differs from {embedding.name}, but config.json says "
                "tie_word_embeddings = true; allowed: equal tensors, or false"
            )

    def read_tokenizer() -> Any:
        from streamlm.checkpoints.foreign_tokenizers import huggingface_tokenizer

        return huggingface_tokenizer(folder)

    return StoredModel(
        name=name or folder.resolve().name,
        format="huggingface",
        path=folder,
        files=files,
        config=config,
        tensors=tensors,
        read_tokenizer=read_tokenizer,
        check_weights=check_weights,
    )


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if one.shape != other.shape or one.precision != other.precision:
        return False
    return torch.equal(one.load(None), other.load(None))


def _tensors(folder: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Tensors by name, and the files that hold them in order."""
    if (folder / SINGLE).exists():
        return read_tensors(folder / SINGLE), (folder / SINGLE,)
    if (folder / INDEX).exists():
        return _sharded(folder)
    pickled = [name for name in PICKLED if (folder / name).exists()]
    if pickled:
        raise ValueError(
            f"{folder} holds {pickled[0]}, which is pickled: loading it could run code; "
            f"allowed: {SINGLE}, or files listed by {INDEX}"
        )
    raise FileNotFoundError(f"{folder} is no checkpoint: {SINGLE} is missing")


def _sharded(folder: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    path = folder / INDEX
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise ValueError(f"{path} is damaged: weight_map = {str(places)[:80]}; allowed: file names")
    names = sorted(set(places.values()))
    if len(names) > SHARDS:
        raise ValueError(f"{path} lists {len(names):,} files; allowed: at most {SHARDS:,}")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\.safetensors", name):
            raise ValueError(
                f"{path} lists the file {name[:200]!r}; allowed: *.safetensors in the same folder"
            )
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} is no checkpoint: {name} is missing")
    found: dict[str, StoredTensor] = {}
    for name in names:
        here = read_tensors(folder / name)
        wanted = {tensor for tensor, place in places.items() if place == name}
        if set(here) != wanted:
            raise ValueError(
                f"{folder / name} and {INDEX} disagree about the tensors "
                f"{listed(set(here) ^ wanted)}"
            )
        found |= here
    return found, tuple(folder / name for name in names)
