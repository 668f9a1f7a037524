"""Models of the Hugging Face hub by name, through the `huggingface_hub` package and its cache.

The cache comes first, so that a model that was fetched once needs no network. HF_HUB_OFFLINE=1
keeps to the cache; HF_HOME and HF_HUB_CACHE say where it is.
"""

import re
from pathlib import Path

FILES = [
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("LICENSE*", "README.md"),
]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"


def is_hub_name(name: str) -> bool:
    """Tell whether a name has the form ORG/NAME."""
    return re.fullmatch(f"{PART}/{PART}", name) is not None and ".." not in name


def hub_folder(name: str) -> Path:
    """The folder of a model in the hub's cache; fetched if it is not there.

    Raises:
        FileNotFoundError: it is neither a directory here nor in the cache, and cannot be fetched.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise FileNotFoundError(
            f"no checkpoint at {name!r}; names of the Hugging Face hub need the package "
            "huggingface_hub: pip install 'streamlm[pretrained]'"
        ) from None
    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        if _complete(folder):
            return folder
    except LocalEntryNotFoundError:
        pass
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"no checkpoint at {name!r}, nor in the cache of the Hugging Face hub "
            f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch it"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileNotFoundError(
            f"no checkpoint at {name!r}, and the Hugging Face hub does not give it: {reason}"
        ) from None


def _complete(folder: Path) -> bool:
    """Tell whether a folder holds configuration and weights; shards are checked when opened."""
    return (folder / "config.json").is_file() and any((folder / n).is_file() for n in WEIGHTS)
