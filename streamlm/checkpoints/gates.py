"""Files of gates: the compressors of a Llama-family model, trained apart from its weights.

A file is safetensors. Its metadata name the windows that the gates were trained with, which become
those of the model, and the weights that they were trained for.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from streamlm.checkpoints.safetensors_file import read_metadata, read_tensors
from streamlm.checkpoints.stored import OWN, StoredModel
from streamlm.models.llama import LlamaModel
from streamlm.models.llama_config import WINDOWS, LlamaConfig, with_windows

GATES_FILE = "gates.safetensors"
SETTINGS, WEIGHTS = "settings", "weights"


def save_gates(
    path: str | Path,
    model: LlamaModel,
    *,
    weights_digest: str,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the compressors of a model to a file.

    Args:
        weights: see `save_checkpoint`.
        weights_digest: of the model's other weights; see `StoredModel.weights_digest`.
    """
    gates = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in (model.state_dict() if weights is None else weights).items()
        if name.startswith(OWN)
    }
    windows = {name: getattr(model.config, name) for name in WINDOWS}
    windows["compression_loss"] = "none"  # of training only
    metadata = {SETTINGS: json.dumps(windows), WEIGHTS: weights_digest}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(gates, path, metadata=metadata)


def with_gates(stored: StoredModel, path: str | Path, settings: Mapping[str, Any]) -> StoredModel:
    """A model with the gates of a file, and with the windows that they were trained with.

    Args:
        settings: of windows, in place of those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of a model of another shape; says how.
    """
    path, config = Path(path), stored.config
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"gates {path} for head {config.head!r}; allowed: Llama-family models")
    tensors = read_tensors(path)
    try:
        windows = json.loads(read_metadata(path).get(SETTINGS, "null"))
        if not isinstance(windows, dict):
            raise ValueError(f"its metadata lack {SETTINGS!r}")
        config = with_windows(with_windows(config, windows), settings)
    except ValueError as error:
        raise ValueError(f"{path} holds no gates of this model: {error}") from None
    shapes = {
        "gate": (config.n_kv_heads, 2 * config.head_dim, 2),
        "mass": (config.n_kv_heads,),
    }
    wanted = {
        f"{OWN}{layer}.{name}": shape
        for layer in range(config.n_layers)
        for name, shape in shapes.items()
    }
    given = {name: tensor.shape for name, tensor in tensors.items()}
    if given != wanted:
        name = next(iter(sorted(wanted.items() ^ given.items())))[0]
        raise ValueError(
            f"{path} holds gates of another model: {name} has shape {given.get(name)}; "
            f"expected: {wanted.get(name)}"
        )
    return replace(
        stored,
        config=config,
        tensors={**stored.tensors, **tensors},
        files=(*stored.files, path),
    )
