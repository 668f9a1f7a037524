"""retrieval.json, the file that names a model's retrieval heads; in its folder or this package."""

import json
from pathlib import Path
from typing import Any

from streamlm.checkpoints.json_file import read_json
from streamlm.config import ModelConfig
from streamlm.models.llama_config import LlamaConfig
from streamlm.models.retrieval import RetrievalHeads

RETRIEVAL_FILE = "retrieval.json"


def read_retrieval(path: Path, config: ModelConfig) -> RetrievalHeads:
    """The retrieval heads that a file names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another model; names it.
    """
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"{path} for head {config.head!r}; allowed: Llama-family models")
    found = read_json(path).get("heads")
    pairs = found if isinstance(found, list) else []
    try:
        heads = RetrievalHeads(tuple((_whole(layer), _whole(head)) for layer, head in pairs))
        heads.check(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: heads = {found!r:.200}: {error}") from None
    return heads


def write_retrieval(path: Path, heads: RetrievalHeads, measured: dict[str, Any]) -> None:
    """Write the file.

    Args:
        measured: how the heads were found, for readers; JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"heads": [list(pair) for pair in heads.heads], "measured": measured}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value
