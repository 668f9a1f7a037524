"""Finding a model by what `load` and `--model` take: a name, a directory or a file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamlm.checkpoints.catalogue import BUNDLED, DOWNLOADABLE
from streamlm.checkpoints.gates import GATES_FILE, with_gates
from streamlm.checkpoints.gguf import open_gguf
from streamlm.checkpoints.gguf_header import MAGIC
from streamlm.checkpoints.hub import hub_folder, is_hub_name
from streamlm.checkpoints.huggingface import is_huggingface, open_huggingface
from streamlm.checkpoints.json_file import read_json
from streamlm.checkpoints.own import CONFIG, open_own, require_files
from streamlm.checkpoints.retrieval import RETRIEVAL_FILE, read_retrieval
from streamlm.checkpoints.stored import StoredModel
from streamlm.config import require
from streamlm.models.llama_config import LlamaConfig, with_windows

GATES, RETRIEVAL = "gates", "retrieval"
ALLOWED = (
    f"a checkpoint directory, of this project or from Hugging Face; a .gguf file; the name of a "
    f"bundled one: {', '.join(BUNDLED)}; of a downloaded one: {', '.join(DOWNLOADABLE)}; or "
    "ORG/NAME of one on the Hugging Face hub"
)


def find_model(source: str | Path, *, settings: Mapping[str, Any] | None = None) -> StoredModel:
    """Find and describe a model. Neither weights nor tokenizer are read.

    Args:
        source: see `streamlm.load`.
        settings: other windows, see `LlamaConfig`; "gates", a file of `checkpoints.gates`, and
            "retrieval", a file of `checkpoints.retrieval`, or False for none.

    Raises:
        FileNotFoundError: there is no such model; says what is allowed.
        ValueError: it is damaged or not supported.
    """
    found, windows = _found(source), dict(settings or {})
    gates = windows.pop(GATES, _shipped(source, GATES_FILE))
    heads = windows.pop(RETRIEVAL, _shipped(source, RETRIEVAL_FILE))
    if heads:
        found = replace(found, retrieval=read_retrieval(Path(heads), found.config))
    if gates:
        return with_gates(found, gates, windows)
    if not windows:
        return found
    config = found.config
    allowed = "none but for Llama-family models"
    require(isinstance(config, LlamaConfig), "settings", ", ".join(windows), allowed)
    assert isinstance(config, LlamaConfig)
    return replace(found, config=with_windows(config, windows))


def _shipped(source: str | Path, name: str) -> Path | None:
    """A file beside a model, or that comes with this package for a downloaded one; if it exists."""
    entry = DOWNLOADABLE.get(str(source))
    path = entry.assets / name if entry is not None else Path(source) / name
    return path if path.is_file() and (entry is not None or name == RETRIEVAL_FILE) else None


def _found(source: str | Path) -> StoredModel:
    name, path = str(source), Path(source)
    if name in BUNDLED:
        return open_own(BUNDLED[name].path, name=name)
    if name in DOWNLOADABLE:
        entry = DOWNLOADABLE[name]
        if not entry.path.is_file():
            raise FileNotFoundError(
                f"{name} is not downloaded ({entry.path} is missing): streamlm models get {name}"
            )
        return open_gguf(entry.path, name=name)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file() and _is_gguf(path):
        return open_gguf(path)
    if isinstance(source, str) and not path.exists() and is_hub_name(name):
        return _in_folder(hub_folder(name), name=name)
    raise FileNotFoundError(f"no checkpoint at {name!r}; allowed: {ALLOWED}")


def _in_folder(folder: Path, *, name: str = "") -> StoredModel:
    files = sorted(folder.glob("*.gguf"))
    if files and not (folder / CONFIG).is_file():
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:8])
            raise ValueError(f"{folder} holds {len(files)} models; allowed: one of {names}")
        return open_gguf(files[0], name=name)
    require_files(folder, CONFIG)
    if is_huggingface(read_json(folder / CONFIG)):
        return open_huggingface(folder, name=name)
    return open_own(folder, name=name)


def _is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf":
        return True
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
