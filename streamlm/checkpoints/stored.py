"""StoredModel: a model on disk, described before its weights are read."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from streamlm.checkpoints.digests import digest_of
from streamlm.config import ModelConfig
from streamlm.models.base import Model
from streamlm.models.build import build_empty
from streamlm.models.llama_config import LlamaConfig
from streamlm.models.retrieval import RetrievalHeads
from tokenizer import Tokenizer

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
FLOATS = ("F32", "F16", "BF16")  # of Llama-family models
# Parameters of this project, which checkpoints from elsewhere lack.
OWN = "compressors."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a weights file.

    Attributes:
        name: in the file.
        shape: as the model wants it.
        precision: as the file's format names it: "F32", "BF16", "Q4_1", …
        n_bytes: in the file.
        load: reads the tensor in a precision, or, given None, in its own; quantized numbers are
            float32. On the CPU and in their own precision, numbers that are not quantized are a
            memory map of the file.
    """

    name: str
    shape: tuple[int, ...]
    precision: str
    n_bytes: int
    load: Callable[[torch.dtype | None], Tensor] = field(repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the tensor that `load(None)` returns."""
        return DTYPES.get(self.precision, torch.float32)


@dataclass(frozen=True)
class StoredModel:
    """A model on disk. Its headers were checked; neither weights nor tokenizer were read.

    Attributes:
        name: for display.
        format: "streamlm", "huggingface" or "gguf".
        path: the folder or file.
        files: the weight files, in order.
        config: its configuration.
        tensors: by the names of the model's state dict.
        read_tokenizer: loads the tokenizer.
        check_weights: raises ValueError where weights contradict each other; called before they
            are used.
        retrieval: its retrieval heads; None if they are not known.
    """

    name: str
    format: str
    path: Path
    files: tuple[Path, ...]
    config: ModelConfig
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    read_tokenizer: Callable[[], Tokenizer] = field(repr=False)
    check_weights: Callable[[], None] = field(repr=False, default=lambda: None)
    retrieval: RetrievalHeads | None = None

    @cached_property
    def weights_digest(self) -> str:
        """sha256 over the weight files."""
        return digest_of(self.files)

    @property
    def n_parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def precision(self) -> str:
        """Precision in which the file stores most of its bytes."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.precision] += tensor.n_bytes
        return counts.most_common(1)[0][0]

    def dtype(self, wanted: torch.dtype | str | None) -> torch.dtype | None:
        """Precision to load floating-point weights in; None keeps that of each tensor.

        Args:
            wanted: see `load_checkpoint`.

        Raises:
            ValueError: neither a precision nor "auto".
        """
        llama = isinstance(self.config, LlamaConfig)
        if isinstance(wanted, str):
            if wanted != "auto":
                raise ValueError(f"dtype = {wanted!r}; allowed: 'auto', None or a torch.dtype")
            wanted = None if llama else torch.float32
        if wanted is not None or not llama:
            return wanted
        counts: Counter[torch.dtype] = Counter()  # a Llama's products want one precision
        for tensor in self.tensors.values():
            counts[tensor.dtype] += prod(tensor.shape)
        return counts.most_common(1)[0][0]

    def _is_gate(self, name: str) -> bool:
        """Whether a tensor is a gate of learned selection, which keeps its own precision."""
        return isinstance(self.config, LlamaConfig) and name.startswith(OWN)

    def load_model(self, device: torch.device, dtype: torch.dtype | str | None) -> Model:
        """The model, frozen (see `Model.freeze`), on a device.

        Raises:
            ValueError: weights and configuration do not agree, a weights file is damaged, or
                weights are no numbers.
        """
        chosen = self.dtype(dtype)
        self.check_weights()
        model = build_empty(self.config)
        weights = {
            name: tensor.load(
                chosen if tensor.dtype.is_floating_point and not self._is_gate(name) else None
            ).to(device)
            for name, tensor in self.tensors.items()
        }
        self._check_numbers(weights)
        if isinstance(self.config, LlamaConfig):
            _complete(model, weights, device)
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{self.path}: weights and config.json do not agree: {error}"
            ) from None
        return model.requires_grad_(False).to(device).freeze()

    def _check_numbers(self, weights: Mapping[str, Tensor]) -> None:
        """Raise ValueError where a weight is NaN or infinite: so is the sum of its tensor."""
        floating = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
        if not floating:
            return
        # Half precision overflows in sums of its own; bfloat16's own are the quickest.
        wider = {torch.float16: torch.float32}
        sums = torch.stack(
            [each.sum(dtype=wider.get(each.dtype)).double() for each in floating.values()]
        )
        finite = torch.isfinite(sums).tolist()  # once: each look waits for a GPU
        bad = [name for name, good in zip(floating, finite, strict=True) if not good]
        if bad:
            raise ValueError(f"{self.path}: weights are NaN or infinite in {listed(bad)}")


def _complete(model: Model, weights: dict[str, Tensor], device: torch.device) -> None:
    """Make the compressors' weights those of the model: its compression may not be the file's.

    Gates of `select` that the file lacks are equal, so that an untrained selection is the same in
    every process.
    """
    names = {name for name in model.state_dict() if name.startswith(OWN)}
    for name in [name for name in weights if name.startswith(OWN) and name not in names]:
        del weights[name]
    if names <= set(weights):
        return
    compressors = cast(nn.ModuleList, model.compressors).to_empty(device=device)
    with torch.random.fork_rng(devices=[]):
        for compressor in compressors:
            compressor.reset(0.0)  # type: ignore[operator]
    for name in names - set(weights):
        weights[name] = compressors.get_parameter(name.removeprefix(OWN)).float()


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    found = sorted(names)
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return ", ".join(name if len(name) <= 80 else f"{name[:80]}…" for name in found[:6]) + more
