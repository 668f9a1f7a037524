"""`streamlm eval`: how well a model predicts documents."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from streamlm.cli.display import bar, interruptible, note, output, show_rows
from streamlm.cli.options import MODEL_HELP, Device, Json, Settings, parsed_settings
from streamlm.training.data_sources import SPLITS, missing_data, split_file

SUITE = "passkey, recall, copy, tracking, position, frequency, context"  # parts of eval --suite


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|SPLIT", help=f"Text files, or splits of the books: {', '.join(SPLITS)}."
        ),
    ],
    data_dir: Annotated[Path, typer.Option(help="Folder that contains books/.")] = Path("data"),
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Whether segments share memory.")
    ] = True,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop after about this many tokens.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Documents per batch.")] = 8,
    suite: Annotated[
        bool, typer.Option("--suite", help="Measure memory instead; NAMEs select parts.")
    ] = False,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=f"With --suite: {SUITE}.")
    ] = None,
    sequences: Annotated[
        int, typer.Option(help="With --suite: sequences per task and distance.")
    ] = 16,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", dir_okay=False, help="With --suite: save a plot of recall."
        ),
    ] = None,
    setting: Settings = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts documents. Each starts with an empty memory."""
    for name, value in (("--batch-size", batch_size), ("--max-tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}; allowed: at least 1")
    if names and not suite and not plot:
        more = " ".join(f"--data {name}" for name in names)
        raise ValueError(
            f"{' '.join(names)} behind --data {data[-1]}; allowed: {more} for further files, or "
            f"--suite with parts of it: {SUITE}"
        )
    files = [data_file(name, data_dir) for name in data]
    if suite or names or plot:
        from streamlm.cli.suite import measure_suite

        given: Any = {"suite": suite, "memory": memory, "names": names or (), "plot": plot}
        given |= {
            "settings": parsed_settings(setting),
            "sequences": sequences,
            "max_tokens": max_tokens,
            "batch_size": batch_size,
        }
        return measure_suite(model, files, **given, device=device, as_json=as_json)
    with interruptible(lambda: "nothing was changed"):
        from streamlm.checkpoints.checkpoint import load_checkpoint
        from streamlm.training.data import load_corpus
        from streamlm.training.evaluate import evaluate as measure

        checkpoint = load_checkpoint(model, device=device, settings=parsed_settings(setting))
        tokenizer = checkpoint.tokenizer
        corpus = load_corpus(files, tokenizer, progress=note)
        total = min(len(corpus.tokens), max_tokens or len(corpus.tokens))
        with bar("evaluating", total=total) as (progress, task):
            report = measure(
                checkpoint.model,
                corpus,
                bos=tokenizer.bos_id,
                token_lengths=tokenizer.token_lengths,
                batch_size=batch_size,
                max_tokens=max_tokens,
                memory=memory,
                progress=lambda n: progress.advance(task, n),
            )
    if as_json:
        facts = {
            "bits_per_byte": report.bits_per_byte,
            "word_perplexity": report.word_perplexity,
            "nats": report.nats,
            "tokens": report.tokens,
            "bytes": report.n_bytes,
            "words": report.words,
            "loss_by_position": report.loss_by_position,
        }
        print(json.dumps(facts))
        return
    show_rows(
        {
            "bits per byte": f"{report.bits_per_byte:.4f}",
            "word perplexity": f"{report.word_perplexity:.2f}",
        }
    )
    output.print(f"over {report.tokens:,} tokens, {report.n_bytes:,} bytes, {report.words:,} words")
    output.print("nats per token by position in the document:")
    for position, nats, n in report.loss_by_position:
        output.print(f"  from {position:>9,}  {nats:.3f}  ({n:,} tokens)")


def data_file(name: str, folder: Path) -> Path:
    """The file for `--data NAME`: a split of the books, or a path."""
    if name in SPLITS:
        path = split_file(name, folder)
        if not path.exists():
            raise FileNotFoundError(
                f"split {name!r} is not at {path}; --data-dir names the folder{missing_data(path)}"
            )
        return path
    if Path(name).is_dir():
        raise IsADirectoryError(f"{name} is a directory; allowed: files, or {', '.join(SPLITS)}")
    if not Path(name).exists():
        raise FileNotFoundError(f"no file or split {name!r}; splits: {', '.join(SPLITS)}")
    return Path(name)
