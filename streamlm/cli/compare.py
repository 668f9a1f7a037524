"""`streamlm compare`: train variants of one small model and compare them."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from streamlm.checkpoints.checkpoint import choose_device
from streamlm.cli.allocator import keep_freed_memory
from streamlm.cli.display import bar, interruptible, note, output, show_table
from streamlm.cli.options import Device, Json
from streamlm.config import ModelConfig
from streamlm.lab.compare import load_runs, runs_of
from streamlm.lab.results import write_results
from streamlm.lab.statistics import summary
from streamlm.lab.variants import COMPARISONS, causal_variants
from streamlm.training.recipe import Recipe


class What(StrEnum):
    """The part that varies."""

    ABLATION = "ablation"
    HEADS = "heads"


def compare(
    what: Annotated[
        What,
        typer.Argument(metavar="WHAT", help="Vary the compression and its loss, or the head."),
    ],
    recipe: Annotated[
        Path, typer.Option(dir_okay=False, help="The shared data, model and training, as TOML.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Runs per variant.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Run only variants whose name contains this. Repeatable."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Overrides the recipe's number of steps.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Number of torch threads.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Path of the results, without .json or .png.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train variants of one model, and compare them.

    Each variant is trained with several seeds. Finished runs are saved; the same command runs
    those that are missing.
    """
    # Imported first, so that a missing extra is reported before hours of work.
    from streamlm.lab.report import write_report
    from streamlm.plots.compare import draw

    if threads is not None:
        torch.set_num_threads(threads)
    where = str(choose_device(device))
    chosen = Recipe.load(recipe)
    shared = {"vocab_size": chosen.own_tokenizer().vocab_size, **chosen.model}
    base = ModelConfig.from_dict(shared)
    values = chosen.train.to_dict() | ({"steps": steps} if steps is not None else {})
    chosen = Recipe(**{**chosen.__dict__, "train": type(chosen.train).from_dict(values)})
    variants = [
        variant
        for variant in COMPARISONS[what].variants(base)
        if not only or any(part in variant.name for part in only)
    ]
    if not variants:
        raise ValueError(f"no variant has {only} in its name")
    variants, refused = causal_variants(variants)
    for name, leak in refused.items():
        note(f"{name} is not causal and is left out: {leak}")
    reference = COMPARISONS[what].reference
    name = recipe.stem if recipe.stem.startswith(what) else f"{what}-{recipe.stem}"
    target = out or Path("benchmarks/results") / name
    file = target.with_suffix(".json")
    settings = {"what": what.value, "recipe": str(recipe), "model": base.to_dict(), "train": values}
    settings["data"] = {
        "tokenizer": str(chosen.tokenizer),
        "train": [str(file) for file in chosen.train_files],
        "valid": [str(file) for file in chosen.valid_files],
        "cut_bytes": chosen.cut_bytes,
        "valid_share": chosen.valid_share,
    }
    if chosen.backbone is not None:
        settings["backbone"] = chosen.backbone
    done = _done(file, settings)
    before = len(done)
    total = len(variants) * seeds
    missing = total - sum(
        (variant.name, seed) in {(run.variant, run.seed) for run in done}
        for variant in variants
        for seed in range(1, seeds + 1)
    )
    keep_freed_memory()
    with (
        interruptible(lambda: f"{len(done) - before} new runs are saved in {file}"),
        bar("comparing", total=missing, fields="{task.fields[note]}") as (progress, task),
    ):
        for run in runs_of(
            chosen,
            variants,
            seeds=range(1, seeds + 1),
            folder=Path("runs") / recipe.stem,  # comparisons of one recipe share backbones
            device=where,
            alike=COMPARISONS[what].alike,
            measured=COMPARISONS[what].measured,
            note=lambda message: progress.update(task, note=message),
            done=done,
        ):
            done.append(run)
            figures = {
                "summary": summary(done, reference=reference),
                "runs": [one.to_json() for one in done],
                "refused": refused,
            }
            write_results(file, settings=settings, figures=figures, device=where)
            note(
                f"{run.variant}, seed {run.seed}: {run.bits_per_byte:.4f} bits per byte "
                f"({run.seconds:.0f} s)"
            )
            progress.advance(task)
    rows = summary(done, reference=reference)
    if as_json:
        print(json.dumps({"summary": rows, "file": str(file)}))
        return
    _show(rows)
    draw(rows, settings, target.with_suffix(".png"), reference=reference)
    written = [file, target.with_suffix(".png")]
    if COMPARISONS[what].measured:
        written.append(target.with_suffix(".html"))
        write_report(
            written[2],
            rows,
            done,
            settings,
            reference=reference,
            picture=written[1],
            refused=refused,
        )
    output.print(", ".join(map(str, written)))


def _done(file: Path, settings: dict[str, Any]) -> list[Any]:
    """The runs of an earlier call with the same settings.

    Raises:
        ValueError: the file holds another comparison.
    """
    done = load_runs(file)
    if done:
        there = json.loads(file.read_text(encoding="utf-8"))["settings"]
        if any(settings.get(name) != value for name, value in there.items()):
            raise ValueError(f"{file} holds runs with other settings; allowed: another --out")
    return done


def _show(rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        difference, half = row["difference"], row["half_interval"]
        cells.append(
            (
                row["variant"],
                str(row["seeds"]),
                f"{row['bits_per_byte']:.4f}",
                "" if difference is None else f"{difference:+.4f}",
                "" if half is None else f"± {half:.4f}",
            )
        )
    columns = ("variant", "seeds", "bits per byte", "difference", "95 %")
    show_table(columns, cells, right=columns[1:])
