"""The folder of a training run, whose save `last/` is replaced atomically."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from streamlm.config import ModelConfig
from streamlm.training.config import TrainConfig
from streamlm.training.ranks import Ranks

# Settings that may change when a run is resumed.
MAY_CHANGE = {
    *("steps", "learning_rate", "min_learning_rate", "warmup_steps", "compile"),
    *("rows_at_once", "shard", "checkpoint_steps", "eval_steps", "log_steps", "eval_tokens"),
}
ONE = Ranks()


@contextlib.contextmanager
def put_in_place(folder: Path, ranks: Ranks = ONE) -> Iterator[Path]:
    """A new folder to write to, which replaces `last/` of a run when the block ends.

    Args:
        ranks: all of them write to the folder, and it is in place when all have.
    """
    fresh, last, old = folder / ".last-new", folder / "last", folder / ".last-old"
    with ranks.leader_first():
        if ranks.leads:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
    yield fresh
    ranks.wait()
    if not ranks.leads:
        return
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


def rows_file(rank: int) -> str:
    """The file of `last/` with the positions, states and random numbers of a rank's rows."""
    return f"rows-{rank}.pt"


def read_rows(
    last: Path,
    saved: Mapping[str, Any],
    groups: Sequence[int],
    ranks: Ranks,
    *,
    device: torch.device,
) -> dict[str, Any]:
    """What was saved of groups of rows.

    Args:
        saved: of `training.pt`; older runs have their rows there.
        groups: their numbers over all ranks.

    Returns:
        "batches" and "states", one for each group; and "random", unless the run was saved by
        another number of ranks.
    """
    n = saved.get("ranks", 1)
    files: dict[int, Any] = {0: saved} if "batches" in saved else {}
    for rank in {group % n for group in groups} - files.keys():
        files[rank] = torch.load(last / rows_file(rank), weights_only=True, map_location=device)
    rows: dict[str, Any] = {
        name: [files[group % n][name][group // n] for group in groups]
        for name in ("batches", "states")
    }
    return {**rows, "random": files[ranks.rank]["random"]} if n == ranks.n else rows


def groups_of(
    saved: Mapping[str, Any],
    config: TrainConfig,
    model: ModelConfig,
    ranks: Ranks,
    *,
    folder: Path,
) -> list[int]:
    """The groups of rows, by their numbers over all ranks, with which a rank resumes a run.

    The groups of a run never change. Other ranks divide them as they would have begun them; a
    recipe may also say so itself, by its `accumulate`.

    Args:
        saved: of `training.pt`.

    Raises:
        ValueError: a setting differs, or the run cannot go on exactly on so many ranks; names
            them.
    """
    begun_on = saved.get("ranks", 1)
    n = saved["groups"] if "groups" in saved else len(saved["batches"])
    even = config.accumulate * ranks.n == n
    check_unchanged(config, saved["config"], folder, but={"accumulate"} if even else ())
    if n % ranks.n:
        allowed = " or ".join(str(each) for each in range(1, n + 1) if n % each == 0)
        raise ValueError(
            f"{ranks.n} ranks, but the run in {folder} has {n} groups of rows; allowed: {allowed}"
        )
    for name in ("dropout", "attention_dropout"):
        if begun_on != ranks.n and getattr(model, name):
            raise ValueError(
                f"{ranks.n} ranks with {name} = {getattr(model, name)}; allowed: {begun_on}, as "
                f"the run in {folder} was begun, because each rank draws its own dropout"
            )
    return list(range(ranks.rank, n, ranks.n))


def check_unchanged(
    config: TrainConfig, saved: Mapping[str, Any], folder: Path, *, but: Collection[str] = ()
) -> None:
    """Check that a run can be resumed with these settings.

    Args:
        saved: the settings of the run, from `TrainConfig.to_dict`.
        but: settings that may differ too.

    Raises:
        ValueError: a setting outside MAY_CHANGE differs; names it.
    """
    begun = {**TrainConfig().to_dict(), **saved}  # older runs lack newer settings
    for name, value in config.to_dict().items():
        if name not in {*MAY_CHANGE, *but} and begun[name] != value:
            raise ValueError(
                f"{name} = {value!r}, but the run in {folder} was begun with {begun[name]!r}"
            )
