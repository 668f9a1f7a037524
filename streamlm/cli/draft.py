"""`streamlm draft`: train and evaluate drafters, which propose tokens for a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.cli.allocator import keep_freed_memory
from streamlm.cli.display import bar, interruptible, note, output, show_table
from streamlm.cli.evaluate import data_file
from streamlm.cli.options import Device, Json, Model
from streamlm.cli.train import training_run
from streamlm.runtime.drafter import load_drafter
from streamlm.training.data import load_corpus
from streamlm.training.data_sources import SPLITS
from streamlm.training.drafter import draft_trainer_for, offset_nats

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train and evaluate drafters for generate --draft.",
)


@app.command("train")
def train_drafter(
    recipe: Annotated[
        Path,
        typer.Option(dir_okay=False, help="A TOML file, with the drafter's settings in [model]."),
    ],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Output folder; default: runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in OUT.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="Overrides the recipe's number of steps.")
    ] = None,
    model: Model = "books",
    device: Device = "auto",
) -> None:
    """Train a drafter for a model. Writes it to OUT/model; the model is not modified."""
    chosen, folder, left_behind = training_run(recipe, out, resume=resume, steps=steps)
    keep_freed_memory()
    with interruptible(left_behind):
        checkpoint = load_checkpoint(model, device=device)
        trainer = draft_trainer_for(checkpoint, chosen, folder, progress=note)
        if resume:
            trainer.resume()
        n_parameters = sum(p.numel() for p in trainer.drafter.parameters())
        begin = f"from step {trainer.step:,} to" if resume else "steps:"
        note(
            f"{n_parameters / 1e6:.1f} M parameters for {checkpoint.name}, "
            f"{begin} {chosen.train.steps:,}, into {folder}"
        )
        total = chosen.train.steps
        with bar("training", total=total, fields="{task.fields[note]}") as (progress, task):
            for step in trainer.run():
                said = f"{_listed(step.losses)} nats of cross-entropy"
                if step.valid_nats is not None:
                    note(f"step {step.step:,}: {said}; valid {_listed(step.valid_nats)} nats")
                progress.update(task, completed=step.step, note=said)
    output.print(str(folder / "model"))


def _listed(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


@app.command("eval")
def evaluate_drafter(
    drafter: Annotated[Path, typer.Argument(metavar="DRAFTER", help="Folder of a drafter.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|SPLIT", help=f"Text files, or splits of the books: {', '.join(SPLITS)}."
        ),
    ],
    data_dir: Annotated[Path, typer.Option(help="Folder that contains books/.")] = Path("data"),
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop after about this many tokens.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Documents per batch.")] = 8,
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a drafter's likelihood by offset.

    It is not comparable with a model's bits per byte.
    """
    for name, value in (("--batch-size", batch_size), ("--max-tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}; allowed: at least 1")
    files = [data_file(name, data_dir) for name in data]
    with interruptible(lambda: "nothing was changed"):
        checkpoint = load_checkpoint(model, device=device)
        found = load_drafter(drafter, checkpoint)
        corpus = load_corpus(files, checkpoint.tokenizer, progress=note)
        total = min(len(corpus.tokens), max_tokens or len(corpus.tokens))
        with bar("evaluating", total=total) as (progress, task):
            nats, positions = offset_nats(
                found,
                checkpoint,
                corpus,
                batch_size=batch_size,
                max_tokens=max_tokens,
                progress=lambda n: progress.advance(task, n),
            )
    if as_json:
        facts = {"conditionally_independent_nats_by_offset": nats, "positions": positions}
        print(json.dumps(facts))
        return
    rows = [(f"{offset}", f"{value:.3f}") for offset, value in enumerate(nats, start=1)]
    show_table(("offset", "nats per token"), rows, right=("offset", "nats per token"))
    output.print(f"a conditionally independent likelihood, at {positions:,} positions")
