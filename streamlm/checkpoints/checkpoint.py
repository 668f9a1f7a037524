"""Checkpoints: models with their tokenizers, loaded from many formats and saved in one.

A saved checkpoint is a directory with model.safetensors, config.json and tokenizer.model.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from streamlm.checkpoints.catalogue import chat_models
from streamlm.models.base import Model
from streamlm.models.precision import AUTO, set_precision
from streamlm.models.retrieval import RetrievalHeads
from tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizer.chat import ChatTemplate


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer, ready for inference.

    Attributes:
        model: frozen (see `Model.freeze`), on its device.
        tokenizer: text ↔ ids.
        name: for display.
        weights_digest: sha256 of the weights file, or over all of them in order.
        precision: of the weights in use, see `models.precision`; "" if it was not chosen.
        retrieval: the model's retrieval heads; None if they are not known.
    """

    model: Model
    tokenizer: Tokenizer
    name: str = "unnamed"
    weights_digest: str = field(default="", repr=False)
    precision: str = ""
    retrieval: RetrievalHeads | None = None

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

    @cached_property
    def split_lengths(self) -> np.ndarray:
        """[V] int32, the bytes of each token that is part of a character; 0 for other tokens."""
        lengths = self.tokenizer.token_lengths.astype(np.int32)
        for token in np.flatnonzero(lengths):
            with suppress(UnicodeDecodeError):
                self.tokenizer.decode_bytes([int(token)]).decode("utf-8")
                lengths[token] = 0
        return lengths

    @cached_property
    def chat(self) -> "ChatTemplate":
        """The model's chat template.

        Raises:
            ValueError: it has none; names models that have one.
        """
        from tokenizer.chat import ChatTemplate  # most models are not asked

        if self.tokenizer.chat is None or self.tokenizer.chat.template is None:
            known = ", ".join(f"{name} (streamlm models get {name})" for name in chat_models())
            raise ValueError(
                f"{self.name} has no chat template: it continues texts, and does not answer; "
                f"models that chat: {known}, and instruction-tuned ones of the Llama family"
            )
        return ChatTemplate(self.tokenizer)

    @cached_property
    def suppressed_in_replies(self) -> Tensor:
        """[V] bool, `suppressed` without the tokens that end a reply."""
        suppressed = self.suppressed.clone()
        suppressed[list(self.chat.stop_ids)] = False
        return suppressed


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
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cpu" and chosen.index):
        raise ValueError(f"device {str(device)!r}; allowed: auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}, but CUDA is not usable here; allowed: auto, cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r}; allowed: auto, cpu, and cuda:0 to "
            f"cuda:{torch.cuda.device_count() - 1}"
        )
    return chosen


def load_checkpoint(
    source: str | Path = "books",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] | None = "auto",
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Load a model with its tokenizer. Nothing is unpickled, and no code of a model is run.

    Weights are memory-mapped: on the CPU in the precision of the file, they use no memory beyond
    the page cache. The file must therefore not be overwritten in place while the model is in use;
    replacing it by another file is safe. Quantized weights, and queries and keys of GGUF files of
    architecture "llama", are computed when they are loaded.

    Args:
        source: one of

            - the name of a bundled model: "books";
            - the name of a downloaded model: "smollm2" (`streamlm models get smollm2`);
            - a checkpoint directory of this project;
            - a directory from Hugging Face with config.json, safetensors and tokenizer of a Llama,
              SmolLM, Qwen 2, 2.5 or 3, or a Mistral without sliding window;
            - a .gguf file of these;
            - ORG/NAME of a model on the Hugging Face hub, from its cache if it is there.

            The last three need the extra `pretrained`.
        device: "auto" means CUDA if available, otherwise the CPU.
        dtype: precision of floating-point weights; None keeps that of the file, float32 for
            quantized weights. "auto" is float32 for models trained here, and None for Llama-family
            models, which are many times larger.
        settings: of a Llama-family model: its windows, such as {"memory_len": 1024}, see
            `LlamaConfig`; "precision" of its weights, see `models.precision`, by default the
            fastest on this processor unless `dtype` is given; "gates", the file of a trained
            selection (`streamlm train --only compression`); and "retrieval", that of its retrieval
            heads (`streamlm calibrate`). False is none of them.

    Raises:
        FileNotFoundError: the model or one of its files is missing; names it.
        ValueError: a file is damaged, the files are inconsistent, or the model is not supported.
    """
    from streamlm.checkpoints.sources import find_model

    chosen = choose_device(device)
    windows, precision = _split(settings, dtype)
    stored = find_model(source, settings=windows)
    tokenizer = stored.read_tokenizer()
    if tokenizer.vocab_size > stored.config.vocab_size:
        raise ValueError(
            f"{stored.path}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model's vocab_size is {stored.config.vocab_size}"
        )
    model = stored.load_model(chosen, dtype)
    used = set_precision(model, precision) if precision else ""
    digest, heads = stored.weights_digest, stored.retrieval
    return Checkpoint(model, tokenizer, stored.name, digest, used, heads)


def _split(
    settings: Mapping[str, Any] | None, dtype: torch.dtype | str | None
) -> tuple[dict[str, Any], str]:
    """The settings without the precision, and the precision; "" leaves weights as they are."""
    others = dict(settings or {})
    return others, others.pop("precision", AUTO if dtype == AUTO else "")


def load_model(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] | None = "auto",
    settings: Mapping[str, Any] | None = None,
) -> Model:
    """Load the model of a checkpoint without its tokenizer, to read token ids.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
    """
    from streamlm.checkpoints.sources import find_model

    chosen = choose_device(device)
    windows, precision = _split(settings, dtype)
    model = find_model(source, settings=windows).load_model(chosen, dtype)
    if precision:
        set_precision(model, precision)
    return model


def save_checkpoint(
    folder: str | Path,
    model: Model,
    tokenizer: Tokenizer | None,
    *,
    dtype: torch.dtype | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint directory; `dtype` converts floating-point weights.

    A checkpoint without a tokenizer can only be loaded by `load_model`.

    Args:
        weights: those to write, in place of the model's own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: tensor.detach()
        .to("cpu", dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        .contiguous()
        for name, tensor in (model.state_dict() if weights is None else weights).items()
    }
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(model.config.to_json(), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
