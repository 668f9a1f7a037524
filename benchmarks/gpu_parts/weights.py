"""Weights on their way back: bfloat16, in pieces that are small enough to be brought one by one.

A folder of pieces holds model.safetensors.0, .1, … and pieces.json: the model's configuration and
the sha256 of every piece, of the whole, and of the tokenizer. `join` makes it a checkpoint again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from streamlm.checkpoints.checkpoint import load_model, save_checkpoint
from streamlm.config import ModelConfig
from streamlm.models.base import Model
from tokenizer import Tokenizer

PIECE = 15_000_000  # bytes
LIST = "pieces.json"
WEIGHTS = "model.safetensors"


def export(
    model: Model, tokenizer: Tokenizer, folder: Path, *, piece: int = PIECE, **facts: Any
) -> dict[str, Any]:
    """Replace `folder` by the model's weights in bfloat16, in pieces of at most so many bytes.

    Args:
        facts: written into pieces.json, to tell one export from another.

    Raises:
        FloatingPointError: a weight is not finite; what was there stays.
    """
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise FloatingPointError(f"{name} is not finite; the last export stays")
    with tempfile.TemporaryDirectory() as plain:
        save_checkpoint(plain, model, None, dtype=torch.bfloat16)
        data = (Path(plain) / WEIGHTS).read_bytes()
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    pieces = []
    for index, start in enumerate(range(0, len(data), piece)):
        part, name = data[start : start + piece], f"{WEIGHTS}.{index}"
        (fresh / name).write_bytes(part)
        pieces.append({"name": name, "bytes": len(part), "sha256": sha256(part)})
    listed = {
        **facts,
        "bytes": len(data),
        "sha256": sha256(data),
        "pieces": pieces,
        "tokenizer": tokenizer.fingerprint,
        "config": model.config.to_dict(),
    }
    (fresh / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return {"bytes": len(data), "pieces": len(pieces)}


def join(folder: Path, out: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Make a checkpoint directory of the pieces in `folder`; returns what pieces.json says.

    Raises:
        FileNotFoundError: a file is missing; says which.
        FileExistsError: there is something at `out`.
        ValueError: a piece is damaged, or was made with another tokenizer.
    """
    listed: dict[str, Any] = json.loads((folder / LIST).read_text(encoding="utf-8"))
    if listed["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(f"{folder}: trained with another tokenizer, {listed['tokenizer']}")
    parts = []
    for piece in listed["pieces"]:
        part = (folder / piece["name"]).read_bytes()
        if sha256(part) != piece["sha256"]:
            given = f"{len(part)} of {piece['bytes']} bytes"
            raise ValueError(f"{folder / piece['name']} is damaged, or of another export: {given}")
        parts.append(part)
    data = b"".join(parts)
    if sha256(data) != listed["sha256"]:
        raise ValueError(f"{folder}: the pieces do not make up the whole")
    if out.exists():
        raise FileExistsError(f"{out} exists; allowed: a new folder")
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / WEIGHTS).write_bytes(data)
    config = ModelConfig.from_dict(listed["config"])
    (fresh / "config.json").write_text(config.to_json(), encoding="utf-8")
    (fresh / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    load_model(fresh, device="cpu")  # it is one
    os.replace(fresh, out)
    return listed


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
