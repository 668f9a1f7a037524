"""The folder of a training run, whose save `last/` is replaced atomically."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamlm.training.config import TrainConfig

# Settings that may change when a run is resumed.
MAY_CHANGE = {
    *("steps", "learning_rate", "min_learning_rate", "warmup_steps", "compile"),
    *("checkpoint_steps", "eval_steps", "log_steps", "eval_tokens"),
}


@contextlib.contextmanager
def put_in_place(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which replaces `last/` of a run when the block ends."""
    fresh, last, old = folder / ".last-new", folder / "last", folder / ".last-old"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if last.exists():  # otherwise `old` is the only save until `fresh` is in place
        shutil.rmtree(old, ignore_errors=True)
        os.replace(last, old)
    os.replace(fresh, last)
    shutil.rmtree(old, ignore_errors=True)


def last_folder(folder: Path) -> Path:
    """The folder that a run resumes from, as `put_in_place` left it.

    Raises:
        FileNotFoundError: there is no save.
    """
    last = folder / "last"
    if not last.exists() and (folder / ".last-old").exists():
        last = folder / ".last-old"  # interrupted between the two renames
    if not (last / "training.pt").exists():
        raise FileNotFoundError(f"nothing to resume in {folder}: it has no last/training.pt")
    return last


def check_unchanged(config: TrainConfig, saved: Mapping[str, Any], folder: Path) -> None:
    """Check that a run can be resumed with these settings.

    Args:
        saved: the settings of the run, from `TrainConfig.to_dict`.

    Raises:
        ValueError: a setting outside MAY_CHANGE differs; names it.
    """
    begun = {**TrainConfig().to_dict(), **saved}  # older runs lack newer settings
    for name, value in config.to_dict().items():
        if name not in MAY_CHANGE and begun[name] != value:
            raise ValueError(
                f"{name} = {value!r}, but the run in {folder} was begun with {begun[name]!r}"
            )
