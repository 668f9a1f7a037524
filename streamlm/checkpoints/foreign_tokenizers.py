"""Tokenizers of Hugging Face folders and GGUF files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizer import Tokenizer


def huggingface_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: it is not supported; names why.
    """
    from tokenizer.huggingface import from_folder

    return from_folder(folder)


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        ValueError: it is not supported; names the file and why.
    """
    from tokenizer.gguf import from_gguf

    try:
        return from_gguf(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
