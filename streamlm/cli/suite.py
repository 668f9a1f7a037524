"""`streamlm eval --suite`: measurements of memory, as tables, JSON and a plot."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.cli.display import bar, interruptible, note, output, show_table
from streamlm.lab.tasks.suite import TASKS, SuiteConfig, check_names, run_suite, size_of
from streamlm.training.data import load_corpus


def measure_suite(
    model: str,
    files: Sequence[Path],
    *,
    suite: bool,
    memory: bool,
    names: Sequence[str],
    sequences: int,
    max_tokens: int | None,
    batch_size: int,
    device: str,
    settings: Mapping[str, Any],
    as_json: bool,
    plot: Path | None,
) -> None:
    """Run the suite, or the parts that are named, and show the results.

    Args:
        suite, memory: whether --suite and --memory were given; both are required.
        device, settings: see `load_checkpoint`.
        max_tokens: of the text that is read; None is the default of `SuiteConfig`.

    Raises:
        ValueError: a name is unknown, options do not go together, or the plot cannot be drawn;
            before anything is read.
    """
    if not suite:
        given = " ".join(names) or "--plot"
        raise ValueError(f"{given} without --suite; allowed: with --suite only")
    if not memory:
        raise ValueError("--no-memory with --suite; allowed: --suite alone, which measures both")
    chosen = check_names(names)
    config = SuiteConfig(sequences=sequences, batch_size=batch_size)
    if max_tokens is not None:
        config = replace(config, tokens=max_tokens)
    if plot is not None:
        from streamlm.plots.suite import draw  # loads matplotlib

        _check_plot(plot, chosen)
    with interruptible(lambda: "nothing was changed"):
        checkpoint = load_checkpoint(model, device=device, settings=settings)
        corpus = load_corpus(files, checkpoint.tokenizer, progress=note)
        total = sum(size_of(name, checkpoint.model.config, config) for name in chosen)
        with bar("measuring", total=total, fields="{task.fields[note]}") as (progress, task):
            figures = run_suite(
                checkpoint,
                corpus,
                chosen,
                config=config,
                progress=lambda name, n: progress.update(task, advance=n, note=name),
            )
            progress.update(task, completed=total)
    if plot is not None:
        draw(figures, plot, title=f"{checkpoint.name}: recall by distance")
        note(f"plot saved to {plot}")
    if as_json:
        print(json.dumps({"model": checkpoint.name, **figures}))
        return
    ends = figures["ends"]
    output.print(
        f"a segment has {figures['segment_len']:,} tokens; memory ends {ends['memory']} segments "
        f"back, compressed memory {ends['compressed memory']}, the model's reach {ends['reach']}"
    )
    for name in chosen:
        output.print("")
        SHOW.get(name, show_task)(name, figures[name])


MEASURES = ("right", "95 %", "chance", "margin", "gain", "95 % of the gain")


def show_task(name: str, found: dict[str, Any]) -> None:
    """Accuracy, margin and gain (see `Answers`), by distance and by number of compressions."""
    hops = name == "tracking"
    head = ["hops"] if hops else []
    head += ["segments", "questions", *MEASURES]
    body = [
        [
            *([str(row["label"])] if hops else []),
            str(row["distance"]),
            *_cells(row),
            row["region"],
        ]
        for row in found["distance"]
    ]
    output.print(f"{name}, by segments from cue to query")
    show_table([*head, "the answer lies in"], body, right=head)
    head = ["compressed", "questions", *MEASURES]
    body = [
        ["gone" if row["compressions"] is None else f"{row['compressions']} times", *_cells(row)]
        for row in found["compressions"]
    ]
    output.print(f"{name}, by number of compressions of the answer's slot")
    show_table(head, body, right=head)
    for line in found["left_out"]:
        output.print(f"left out: {line}")


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["gain_low"], row["gain_high"]
    return [
        f"{row['questions']:,}",
        f"{row['accuracy']:.3f}",
        f"{row['low']:.3f} – {row['high']:.3f}",
        f"{row['chance']:.2g}",
        f"{row['margin']:+.3f}",
        f"{row['gain']:+.4f}",
        "" if low is None else f"{low:+.4f} – {high:+.4f}",
    ]


def show_position(name: str, found: dict[str, Any]) -> None:
    """Nats per token by position in the document, with memory and without."""
    output.print("nats per token, by position in the document")
    body = [
        [f"{place:,}", f"{tokens:,}", f"{nats:.3f}", f"{other:.3f}", f"{nats - other:+.3f}"]
        for (place, nats, tokens), (_, other, _) in zip(
            found["memory"], found["no memory"], strict=True
        )
    ]
    head = ["from", "tokens", "memory", "no memory", "difference"]
    show_table(head, body, right=head)


def show_frequency(name: str, rows: list[dict[str, Any]]) -> None:
    """Nats per word by frequency of the word, with memory and without."""
    output.print("nats per word, by frequency of the word")
    body = []
    for row in rows:
        between = "no word" if row["from"] is None else f"{row['from']:,} – {row['to'] - 1:,}"
        nats, other = row["nats"]["memory"], row["nats"]["no memory"]
        change = f"{100 * (nats - other) / other:+.1f} %"
        body.append([between, f"{row['words']:,}", f"{nats:.3f}", f"{other:.3f}", change])
    head = ["times", "words", "memory", "no memory", "difference"]
    show_table(head, body, right=head)


def show_context(name: str, found: dict[str, Any]) -> None:
    """Relative effective context length for each share of hard tokens."""
    output.print("relative effective context length, tokens (Dai et al. 2019, appendix C)")
    body = [
        [
            f"hardest {100 * float(share):.0f} %",
            f"{'' if row['ended'] else 'at least '}{row['memory']:,}",
            f"{row['no memory']:,}",
        ]
        for share, row in found["recl"].items()
    ]
    show_table(["tokens counted", "memory", "no memory"], body, right=["memory", "no memory"])


SHOW: dict[str, Callable[[str, Any], None]] = {
    "position": show_position,
    "frequency": show_frequency,
    "context": show_context,
}


def _check_plot(path: Path, names: list[str]) -> None:
    """Check --plot before anything is measured.

    Raises:
        ValueError: there is no task to draw, or the file is not a PNG.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot {path}; allowed: a file that ends in .png")
    if not set(names) & set(TASKS):
        allowed = ", ".join(TASKS[:-1]) + f" or {TASKS[-1]}"
        raise ValueError(f"--plot with {', '.join(names)}; allowed: at least one of {allowed}")
