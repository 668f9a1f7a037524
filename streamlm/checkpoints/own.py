"""Checkpoint directories of this project: config.json, model.safetensors and tokenizer.model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlm.checkpoints.json_file import read_json
from streamlm.checkpoints.llama_tensors import fit
from streamlm.checkpoints.safetensors_file import read_tensors
from streamlm.checkpoints.stored import StoredModel
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
        elif config.n_layers > len(tensors):  # before a billion layers are made
            raise ValueError(f"{config.n_layers:,} layers, but {len(tensors):,} tensors")
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


def own_config(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the class that its head has.

    Raises:
        ValueError: a setting is unknown or not allowed; names it.
    """
    head = values.get("head")
    settings = MODELS[head].settings if isinstance(head, str) and head in MODELS else ModelConfig
    return settings.from_dict(values)
