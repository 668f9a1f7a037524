"""GGUF files of the Llama family (general.architecture llama, qwen2 or qwen3).

F32, F16 and BF16 tensors are memory maps. Quantized ones are computed when they are loaded: in
float32 by default, which holds each of them exactly (a 4- to 8-bit number times a 16-bit scale);
bfloat16, with half the memory, rounds them to 8 bits. The file does not tell whether a Mistral was
trained with a sliding window; files of architecture "llama" are read without one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlm.checkpoints.gguf_config import llama_config
from streamlm.checkpoints.gguf_header import TYPES, Place, dequantizer, read_header
from streamlm.checkpoints.llama_tensors import fit, their_name
from streamlm.checkpoints.stored import DTYPES, StoredModel, StoredTensor

NUMBERS = 1 << 18  # dequantized at once
WAVELENGTHS = "rope_freqs.weight"
KINDS = tuple(kind for kind, _, _ in TYPES.values())


def open_gguf(path: Path, *, name: str = "") -> StoredModel:
    """Describe the model in a file. Only its header is read, and a table of rotary frequencies.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is not supported, or the file is damaged; says what is allowed.
    """
    header = read_header(path)
    theirs = {name: _stored(path, name, place) for name, place in header.tensors.items()}
    try:
        table = theirs.pop(WAVELENGTHS, None)
        config = llama_config(
            header.metadata,
            tied="output.weight" not in theirs,
            wavelengths=_table(table) if table is not None else None,
        )
        tensors = fit(config, theirs, "gguf", precisions=KINDS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if header.metadata["general.architecture"] == "llama":
        for index in range(config.n_layers):
            for part, heads in (("query", config.n_heads), ("key", config.n_kv_heads)):
                ours = f"layers.{index}.attention.{part}.weight"
                place = header.tensors[their_name(ours, "gguf")]
                tensors[ours] = _stored(path, tensors[ours].name, place, heads=heads)

    def read_tokenizer() -> Any:
        from streamlm.checkpoints.foreign_tokenizers import gguf_tokenizer

        return gguf_tokenizer(path, header.metadata)

    return StoredModel(
        name=name or path.stem,
        format="gguf",
        path=path,
        files=(path,),
        config=config,
        tensors=tensors,
        read_tokenizer=read_tokenizer,
    )


def _stored(path: Path, name: str, place: Place, *, heads: int = 0) -> StoredTensor:
    """A tensor of the file; `heads` is given for rows that llama.cpp has interleaved."""

    def load(dtype: torch.dtype | None) -> Tensor:
        tensor = _plain(path, place) if place.kind in DTYPES else _computed(path, place, dtype)
        if heads:
            tensor = halves(tensor, heads)
        return tensor.to(dtype or tensor.dtype)

    return StoredTensor(name, place.shape, place.kind, place.n_bytes, load)


def halves(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of queries or keys, so that rotation pairs dimension i with i + E/2.

    llama.cpp's converter orders them for architecture "llama" so that it pairs 2i with 2i + 1.

    Args:
        rows: [H·E, D].
    """
    paired = rows.unflatten(0, (heads, -1, 2))  # [H, E/2, 2, D]
    return paired.transpose(1, 2).reshape(rows.shape)  # [H, 2, E/2, D] → [H·E, D]


def _map(path: Path, place: Place) -> np.ndarray[Any, Any]:
    # "c": private to this process and never written, but torch wants an array that could be.
    return np.memmap(path, np.uint8, mode="c", offset=place.offset, shape=(place.n_bytes,))


def _plain(path: Path, place: Place) -> Tensor:
    return torch.from_numpy(_map(path, place)).view(DTYPES[place.kind]).view(place.shape)


def _computed(path: Path, place: Place, dtype: torch.dtype | None) -> Tensor:
    """The numbers of a quantized tensor, some rows at a time."""
    dequantize = dequantizer()
    (numbers, n_bytes), width = place.block, place.shape[-1]
    rows = _map(path, place).reshape(-1, width // numbers * n_bytes)
    result = torch.empty(len(rows), width, dtype=dtype or torch.float32)
    step = max(1, NUMBERS // width)
    for start in range(0, len(rows), step):
        # As one row, since the package computes 16 at a time.
        part = dequantize(rows[start : start + step].reshape(1, -1), place.kind)
        result[start : start + step] = torch.from_numpy(part.reshape(-1, width))
    return result.view(place.shape)


def _table(tensor: StoredTensor) -> np.ndarray[Any, Any]:
    if tensor.precision != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 1024:
        given = f"{tensor.precision} {list(tensor.shape)}"
        raise ValueError(f"{WAVELENGTHS} is {given}; allowed: F32, one number per pair of a head")
    found: np.ndarray[Any, Any] = tensor.load(None).numpy().copy()
    return found
