"""Tokenizers of Hugging Face folders and GGUF files, whose contents are not trusted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamlm.checkpoints.json_file import require_regular
from tokenizer import Tokenizer

LIMIT = 64 << 20  # bytes of one file; that of 256,000 tokens has 35 MB
FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
)


def huggingface_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: it is damaged or not supported; says why.
    """
    from tokenizer.huggingface import from_huggingface

    for name in FILES:
        path = folder / name
        if path.exists() and require_regular(path) > LIMIT:
            raise ValueError(f"{path} is too large; allowed: at most {LIMIT:,} bytes")
    return _read(folder, lambda: from_huggingface(folder))


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        ValueError: it is damaged or not supported; names the file and why.
    """
    from tokenizer.gguf import from_gguf

    return _read(path, lambda: from_gguf(metadata))


def _read(path: Path, read: Callable[[], Tokenizer]) -> Tokenizer:
    try:
        return read()
    except ValueError as error:
        message = str(error)
        where = "" if str(path) in message else f"{path}: "
        raise ValueError(f"{where}{message}") from None
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # A value of another type than the format has, wherever it was met.
        raise ValueError(
            f"{path}: the tokenizer is damaged ({type(error).__name__}: {error})"
        ) from None
