"""Checkpoints: directories with model.safetensors, config.json and tokenizer.model."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamlm.config import ModelConfig
from streamlm.models.base import Model
from streamlm.models.build import build_empty
from tokenizer import Tokenizer, load_tokenizer

BUNDLED = ("books",)


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer, ready for inference.

    Attributes:
        model: frozen (see `Model.freeze`), on its device.
        tokenizer: text ↔ ids.
        name: name of the directory, for display.
        weights_digest: sha256 of the weights file.
    """

    model: Model
    tokenizer: Tokenizer
    name: str = "unnamed"
    weights_digest: str = field(default="", repr=False)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests of weights, architecture and tokenizer; a session resumes only if they match."""
        config = json.dumps(self.model.config.architecture, sort_keys=True)
        return {
            "weights": self.weights_digest or _digest_of(self.model),
            "architecture": hashlib.sha256(config.encode()).hexdigest(),
            "tokenizer": self.tokenizer.fingerprint,
        }

    @cached_property
    def suppressed(self) -> Tensor:
        """[V] bool, True for ids that are never generated: special tokens and unused ids."""
        suppressed = torch.ones(self.model.config.vocab_size, dtype=torch.bool)
        lengths = torch.from_numpy(self.tokenizer.token_lengths.copy())
        suppressed[: len(lengths)] = lengths == 0
        return suppressed.to(self.model.device)


def _digest_of(model: Model) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the named device; "auto" means CUDA if available, otherwise the CPU.

    Raises:
        ValueError: unknown device, or CUDA is not available.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r}; allowed: auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}, but CUDA is not usable here; allowed: auto, cpu")
    return chosen


def load_checkpoint(
    source: str | Path = "books",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = torch.float32,
) -> Checkpoint:
    """Load a bundled checkpoint by name, or a directory. Nothing is unpickled.

    Weights are memory-mapped: on the CPU in the precision of the file, they use no memory beyond
    the page cache. The file must therefore not be overwritten in place while the model is in use;
    replacing it by another file is safe.

    Args:
        device: "auto" means CUDA if available, otherwise the CPU.
        dtype: precision of floating-point weights; None keeps that of the file.

    Raises:
        FileNotFoundError: the directory or one of its files is missing; names it.
        ValueError: a file is damaged, or the files are inconsistent.
    """
    chosen = choose_device(device)
    if str(source) in BUNDLED:
        folder = Path(str(resources.files("streamlm") / "assets" / str(source)))
    else:
        folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no checkpoint at {str(source)!r}; allowed: a directory with model.safetensors, "
            f"config.json and tokenizer.model, or the name of a bundled one: {', '.join(BUNDLED)}"
        )
    _require_files(folder, "config.json", "model.safetensors")
    if not (folder / "tokenizer.model").is_file():
        raise FileNotFoundError(
            f"{folder} is no checkpoint: tokenizer.model is missing; a model without it, such as "
            "one that was converted, reads ids, not text: "
            "streamlm.checkpoints.checkpoint.load_model loads it"
        )
    config = ModelConfig.load(folder / "config.json")
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model's vocab_size is {config.vocab_size}"
        )
    model, digest = _load_weights(folder, config, device=chosen, dtype=dtype)
    return Checkpoint(model, tokenizer, folder.resolve().name, digest)


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = torch.float32,
) -> Model:
    """Load the model of a checkpoint directory without tokenizer, to read token ids.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
    """
    chosen, folder = choose_device(device), Path(folder)
    _require_files(folder, "config.json", "model.safetensors")
    config = ModelConfig.load(folder / "config.json")
    return _load_weights(folder, config, device=chosen, dtype=dtype)[0]


def _require_files(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: {name} is missing")


def _load_weights(
    folder: Path, config: ModelConfig, *, device: torch.device, dtype: torch.dtype | None
) -> tuple[Model, str]:
    """The frozen model, and the sha256 of its weights file."""
    path = folder / "model.safetensors"
    with open(path, "rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: _placed(file.get_tensor(name), device, dtype) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    model = build_empty(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: weights and config.json do not agree: {error}") from None
    return model.requires_grad_(False).to(device).freeze(), digest


def _placed(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(device, dtype if dtype and tensor.is_floating_point() else tensor.dtype)


def save_checkpoint(
    folder: str | Path,
    model: Model,
    tokenizer: Tokenizer | None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint directory; `dtype` converts floating-point weights.

    A checkpoint without a tokenizer can only be loaded by `load_model`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach()
        .to("cpu", dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(model.config.to_json(), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
