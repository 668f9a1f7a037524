"""`streamlm train`: train a model from a recipe."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamlm.cli.allocator import keep_freed_memory
from streamlm.cli.display import bar, interruptible, note, output
from streamlm.cli.options import Device
from streamlm.units import duration_text

if TYPE_CHECKING:
    from streamlm.training.ranks import Ranks
    from streamlm.training.recipe import Recipe
    from streamlm.training.trainer import Trainer


class Only(StrEnum):
    """The part of a model that is trained."""

    COMPRESSION = "compression"


def train(
    recipe: Annotated[
        Path, typer.Option(dir_okay=False, help="A TOML file: [data], [model], [train].")
    ],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Output folder; default: runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in OUT.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="Overrides the recipe's number of steps.")
    ] = None,
    only: Annotated[
        Only | None,
        typer.Option(help="Train the compressors alone; the other weights stay as they are."),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="A folder for TensorBoard's event files as well."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a model. Writes the checkpoint to OUT/model and the log to OUT/log.jsonl.

    On several processes: torchrun --nproc-per-node N -m streamlm train --recipe RECIPE.
    """
    from streamlm.training.ranks import joined  # needs torch

    chosen, folder, left_behind = training_run(recipe, out, resume=resume, steps=steps)
    if only is not None:
        chosen = replace(chosen, train=replace(chosen.train, only=only.value))
    keep_freed_memory()
    with interruptible(left_behind), joined(device) as ranks, _ended_together(ranks, left_behind):
        from streamlm.training.from_recipe import trainer_for

        say = note if ranks.leads else _say_nothing
        trainer = trainer_for(chosen, folder, progress=say, tensorboard=tensorboard, ranks=ranks)
        if resume:
            trainer.resume()
        n_parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        begin = f"from step {trainer.step:,} to" if resume else "steps:"
        where = f"{ranks.n} ranks, the first on {trainer.device}" if ranks.n > 1 else trainer.device
        say(
            f"{n_parameters / 1e6:.1f} M parameters on {where}, "
            f"{begin} {chosen.train.steps:,}, into {folder}"
        )
        if chosen.train.rows_at_once:
            say(f"{trainer.rows_at_once()} of {chosen.train.batch_size} rows at once")
        _follow(trainer, say)
    if ranks.leads:
        output.print(str(folder / "model"))


def _say_nothing(message: str) -> None:
    """The messages of a run come from rank 0."""


@contextmanager
def _ended_together(ranks: "Ranks", left_behind: Callable[[], str]) -> Iterator[None]:
    """Report an error of this rank, or of another one that it waited for.

    Raises:
        OSError: in place of an error of a collective; says how to go on.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.n == 1:
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        first = re.sub(r"^\[.*?\] ", "", first).partition(". ")[0]  # of gloo: where in its source
        raise OSError(
            f"rank {ranks.rank} of {ranks.n} cannot go on, perhaps because another has ended "
            f"({first}); {left_behind()}"
        ) from error


def _follow(trainer: "Trainer", say: Callable[[str], None]) -> None:
    """Train to the end, with a progress bar and a line per evaluation."""
    best: float | None = None
    total, hidden = trainer.config.steps, not trainer.ranks.leads
    with bar("training", total=total, fields="{task.fields[note]}", hidden=hidden) as (
        progress,
        task,
    ):
        for step in trainer.run():
            said = f"{step.bits_per_byte:.3f} bits per byte  {step.tokens_per_second:,.0f} tokens/s"
            if step.valid_bits_per_byte is not None:
                best = step.valid_bits_per_byte
                left = f", {duration_text(step.seconds_left)} left" if step.step < total else ""
                say(
                    f"step {step.step:,}: {step.tokens:,} tokens, train {step.bits_per_byte:.3f}, "
                    f"valid {best:.4f} bits per byte, {step.tokens_per_second:,.0f} tokens/s{left}"
                )
            if best is not None:
                said += f"  valid {best:.3f}"
            progress.update(task, completed=step.step, note=said)


def training_run(
    recipe: Path, out: Path | None, *, resume: bool, steps: int | None
) -> "tuple[Recipe, Path, Callable[[], str]]":
    """The recipe, the folder, and the message that an interruption shows.

    Raises:
        ValueError: the folder holds a run that is not to be resumed.
    """
    from streamlm.training.recipe import Recipe  # needs torch

    chosen = Recipe.load(recipe)
    if steps is not None:
        chosen = replace(chosen, train=replace(chosen.train, steps=steps))
    folder = out or Path("runs") / recipe.stem
    if not resume and (folder / "last").exists():
        raise ValueError(f"{folder} holds a run already; allowed: --resume, or another --out")

    def left_behind() -> str:
        if (folder / "last").exists():
            return f"--resume continues from the last save, in {folder / 'last'}"
        return "nothing was saved yet"

    return chosen, folder, left_behind
