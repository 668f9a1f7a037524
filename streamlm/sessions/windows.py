"""The model, windows and precision that a session was begun with, so that it is resumed with them.

Only Llama-family models can be loaded with other windows than their own. Of other models, 8-bit
weights alone are recorded. Another precision may be asked for: the state is the same, and what is
computed from then on differs by rounding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory_store import Mismatch
from memory_store.store import Store
from streamlm.checkpoints.catalogue import BUNDLED, DOWNLOADABLE
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.checkpoints.sources import find_model
from streamlm.config import ModelConfig
from streamlm.models.llama_config import WINDOWS, LlamaConfig
from streamlm.models.precision import INT8

ATTRIBUTE, PRECISION, MODEL = "windows", "precision", "model"
DEFAULT_MODEL = "books"
NAMES = {*BUNDLED, *DOWNLOADABLE}


def recorded_attributes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Attributes of a new session's store.

    The model is recorded if it has a name that is the same everywhere, not if it is a path.
    """
    windows = _windows(checkpoint.model.config)
    chosen = bool(windows) or checkpoint.precision == INT8
    attributes = {ATTRIBUTE: {**windows, PRECISION: checkpoint.precision}} if chosen else {}
    return attributes | ({MODEL: checkpoint.name} if checkpoint.name in NAMES else {})


def recorded_model(store: Store | None) -> str:
    """The name of the model that a session was begun with; "books" if none is recorded."""
    name = None if store is None else store.attributes.get(MODEL)
    return name if isinstance(name, str) and name in NAMES else DEFAULT_MODEL


def own_windows(model: str | Path) -> Mapping[str, Any]:
    """The windows of a model without settings; none if it has no such settings."""
    return _windows(find_model(model).config)


def windows_for(model: str | Path, store: Store) -> Mapping[str, Any]:
    """The recorded windows as settings for a model; none if it has no such settings."""
    found = store.attributes.get(ATTRIBUTE)
    if not isinstance(found, Mapping):
        return {}
    precision = {PRECISION: found[PRECISION]} if found.get(PRECISION) else {}
    if not isinstance(find_model(model).config, LlamaConfig):
        return precision
    recorded = _recorded(store)
    return {**recorded, **precision} if recorded else {}


def with_windows_named(error: Mismatch, store: Store, checkpoint: Checkpoint) -> Mismatch:
    """The error with the windows that differ instead of a digest of all settings, if they do."""
    recorded, given = _recorded(store), _windows(checkpoint.model.config)
    differing = {
        name: (str(recorded[name]), str(given[name]))
        for name in WINDOWS
        if name in recorded and name in given and recorded[name] != given[name]
    }
    if "architecture" not in error.differing or not differing:
        return error
    others = {name: pair for name, pair in error.differing.items() if name != "architecture"}
    names = "; ".join(
        f"{name} = {here} (recorded: {there})" for name, (there, here) in differing.items()
    )
    return Mismatch(f"{error} The windows differ: {names}.", {**others, **differing})


def _windows(config: ModelConfig) -> dict[str, Any]:
    if not isinstance(config, LlamaConfig):
        return {}
    return {name: getattr(config, name) for name in WINDOWS}


def _recorded(store: Store) -> dict[str, Any]:
    found = store.attributes.get(ATTRIBUTE)
    if not isinstance(found, Mapping):
        return {}
    return {name: value for name, value in found.items() if name in WINDOWS}
