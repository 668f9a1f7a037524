"""Checkpoint directories of this project: config.json, model.safetensors and tokenizer.model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlm.checkpoints.json_file import read_json
from streamlm.checkpoints.llama_tensors import fit
from streamlm.checkpoints.safetensors_file import read_tensors
from streamlm.checkpoints.stored import StoredModel, StoredTensor
from streamlm.config import ModelConfig
from streamlm.models.build import MODELS
from streamlm.models.llama_config import LlamaConfig
from tokenizer import Tokenizer, load_tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.model"


def require_files(folder: Path, *names: str) -> None:
    """Raise FileNotFoundError for a file that is missing."""
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: {name} is missing")


def open_own(folder: Path, *, name: str = "") -> StoredModel:
    """Describe the checkpoint in a directory. It may lack a tokenizer.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: a file is damaged, or the files are inconsistent.
    """
    require_files(folder, CONFIG, WEIGHTS)
    config = own_config(read_json(folder / CONFIG))
    tensors = read_tensors(folder / WEIGHTS)
    try:
        if isinstance(config, LlamaConfig):
            tensors = fit(config, tensors, "streamlm")
        else:
            _check_sizes(config, tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: weights and config.json do not agree: {error}") from None

    def read_tokenizer() -> Tokenizer:
        if not (folder / TOKENIZER).is_file():
            raise FileNotFoundError(
                f"{folder} is no checkpoint: {TOKENIZER} is missing; a model without it, such as "
                "one that was converted, reads ids, not text: "
                "streamlm.checkpoints.checkpoint.load_model loads it"
            )
        return load_tokenizer(folder / TOKENIZER)

    return StoredModel(
        name=name or folder.resolve().name,
        format="streamlm",
        path=folder,
        files=(folder / WEIGHTS,),
        config=config,
        tensors=tensors,
        read_tokenizer=read_tokenizer,
    )


def _check_sizes(config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse sizes that the weights cannot have, before a model of them is made.

    Raises:
        ValueError: names the setting.
    """
    if config.n_layers > len(tensors):
        raise ValueError(f"{config.n_layers:,} layers, but {len(tensors):,} tensors")
    # Each size is an axis of a tensor, or, with an adaptive vocabulary, a sum of axes.
    widest = sum(max(tensor.shape, default=0) for tensor in tensors.values())
    sizes = {name: getattr(config, name) for name in ("vocab_size", "d_model", "d_ff", "embed_dim")}
    sizes["n_heads · head_dim"] = config.n_heads * config.head_dim
    for name, size in sizes.items():
        if size > widest:
            raise ValueError(f"{name} = {size:,}, but all axes of the tensors have {widest:,}")


def own_config(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the class that its head has.

    Raises:
        ValueError: a setting is unknown or not allowed; names it.
    """
    head = values.get("head")
    settings = MODELS[head].settings if isinstance(head, str) and head in MODELS else ModelConfig
    return settings.from_dict(values)
