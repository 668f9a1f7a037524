"""The command line: feed, generate, score, sessions, train, eval."""

import json
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from memory_store import StoreError
from streamlm.checkpoint import load_checkpoint
from streamlm.cli_sessions import Device, Json, Model, Store, open_named
from streamlm.cli_sessions import app as sessions_app
from streamlm.data import load_corpus
from streamlm.display import bar, console, output, reading_bar, show_report, size_text
from streamlm.evaluate import evaluate
from streamlm.session import Session
from streamlm.sources import Source
from streamlm.train import Recipe, trainer_for

SPLITS = ("valid", "test", "valid-extra", "test-extra")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A language model that reads without end in bounded memory.",
)
app.add_typer(sessions_app, name="sessions")

SessionName = Annotated[
    str | None, typer.Option("--session", metavar="NAME[@BRANCH]", help="The session to use.")
]
Files = Annotated[
    list[str], typer.Argument(metavar="FILE…", help="Text files; - is standard input.")
]
Errors = Annotated[
    str, typer.Option(help="Invalid UTF-8 and binary files: strict refuses, replace reads U+FFFD.")
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"streamlm {version('streamlm')}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    pass


def _sources(files: list[str]) -> list[Source]:
    if files.count("-") > 1:
        raise ValueError("standard input (-) given twice; allowed: once")
    return [sys.stdin.buffer if file == "-" else Path(file) for file in files]


def _errors(value: str) -> Any:
    if value not in ("strict", "replace"):
        raise ValueError(f"--errors {value!r}; allowed: strict or replace")
    return value


@app.command()
def feed(
    files: Files,
    session: Annotated[
        str, typer.Option("--session", metavar="NAME[@BRANCH]", help="Resumed, or begun.")
    ],
    store: Store = Path("sessions"),
    model: Model = "books",
    device: Device = "auto",
    errors: Errors = "strict",
    as_json: Json = False,
) -> None:
    """Read text into a session's memory. Interrupted, the same command goes on where it was."""
    sources = _sources(files)
    with open_named(store, session, model, device=device, create=True) as opened:
        with reading_bar("reading") as progress:
            report = opened.feed(*sources, errors=_errors(errors), progress=progress)
        state_bytes, saved = opened.state.nbytes, opened.saved
    path = (store / f"{session.partition('@')[0]}.zarr").resolve()
    if as_json:
        facts = report.to_dict() | {"state_bytes": state_bytes, "path": str(path)}
        print(json.dumps(facts | {"snapshot": saved.seq if saved else None}))
        return
    rows = {
        "position": f"{report.position:,} tokens",
        "state": size_text(state_bytes),
        "session": str(path),
    }
    show_report(report, rows)


@app.command()
def generate(
    session: SessionName = None,
    prompt: Annotated[str, typer.Option(help="Text to read before writing.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest up to this sum.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Least share of the likeliest one's odds.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids recent tokens.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"End at this text; \n and \t are understood.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Begin the random numbers anew.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Make what is written part of the session.")
    ] = True,
    store: Store = Path("sessions"),
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Continue a session's text, or with no session that of the prompt alone."""
    if session is None:
        opened = Session(load_checkpoint(model, device=device))
    else:
        opened = open_named(store, session, model, device=device, readonly=not keep)
    with opened:
        writer = opened if keep else opened.fork()
        before, started = writer.position, time.perf_counter()
        pieces = writer.generate(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=[_unescape(text) for text in stop or ()],
            seed=seed,
        )
        if as_json:
            text = "".join(pieces)
            seconds, n = time.perf_counter() - started, writer.position - before
            facts: dict[str, Any] = {"text": text, "tokens": n, "position": writer.position}
            print(json.dumps(facts | {"seconds": seconds, "tokens_per_second": n / seconds}))
            return
        sys.stdout.write(prompt)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


def _unescape(text: str) -> str:
    r"""Turn \n, \r, \t and \\ as typed in a shell into what they stand for."""
    meant = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: meant[found[1]], text)


@app.command()
def score(
    files: Files,
    session: SessionName = None,
    store: Store = Path("sessions"),
    model: Model = "books",
    device: Device = "auto",
    errors: Errors = "strict",
    as_json: Json = False,
) -> None:
    """Bits per byte of a text, given all that a session has read. The session is not changed."""
    sources = _sources(files)
    if session is None:
        opened = Session(load_checkpoint(model, device=device))
    else:
        opened = open_named(store, session, model, device=device, readonly=True)
    with opened, reading_bar("scoring") as progress:
        report = opened.score(*sources, errors=_errors(errors), progress=progress)
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    show_report(report, {"given": f"{report.position:,} tokens read before"})


@app.command()
def train(
    recipe: Annotated[Path, typer.Option(help="A TOML file: [data], [model], [train].")],
    out: Annotated[Path | None, typer.Option(help="Folder; runs/<recipe> by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run there.")] = False,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's steps.")] = None,
    device: Device = "auto",
) -> None:
    """Train a model. The checkpoint ends up in OUT/model; OUT/log.jsonl tells how it went."""
    chosen = Recipe.load(recipe)
    if steps is not None:
        chosen = replace(chosen, train=replace(chosen.train, steps=steps))
    folder = out or Path("runs") / recipe.stem
    if not resume and (folder / "last").exists():
        raise ValueError(f"{folder} holds a run already; allowed: --resume, or another --out")
    trainer = trainer_for(chosen, folder, device=device, progress=console.print)
    if resume:
        trainer.resume()
    n_parameters = sum(p.numel() for p in trainer.model.parameters())
    console.print(
        f"{n_parameters / 1e6:.1f} M parameters on {trainer.device}, "
        f"{chosen.train.steps:,} steps, into {folder}"
    )
    best = None
    with bar("training", total=chosen.train.steps, fields="{task.fields[note]}") as (
        progress,
        task,
    ):
        for step in trainer.run():
            best = step.valid_bits_per_byte or best
            note = f"{step.bits_per_byte:.3f} bits per byte  {step.tokens_per_second:,.0f} tokens/s"
            if best is not None:
                note += f"  valid {best:.3f}"
            progress.update(task, completed=step.step, note=note)
            if step.valid_bits_per_byte is not None:
                console.print(
                    f"step {step.step:,}: {step.tokens:,} tokens, train {step.bits_per_byte:.3f}, "
                    f"valid {step.valid_bits_per_byte:.4f} bits per byte, "
                    f"{step.tokens_per_second:,.0f} tokens/s, {step.seconds_left / 60:.0f} min left"
                )
    output.print(str(folder / "model"))


@app.command("eval")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="A checkpoint directory, or a bundled name.")],
    data: Annotated[
        list[str], typer.Option(help=f"Text files, or a split of the books: {', '.join(SPLITS)}.")
    ],
    data_dir: Annotated[Path, typer.Option(help="Folder that holds books/.")] = Path("data"),
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Without, each segment stands alone.")
    ] = True,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after about so many.")] = None,
    batch_size: Annotated[int, typer.Option(help="Documents read side by side.")] = 8,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """How well a model predicts documents, each read from its beginning with an empty memory."""
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; allowed: at least 1")
    files = [_data_file(name, data_dir) for name in data]
    checkpoint = load_checkpoint(model, device=device)
    tokenizer = checkpoint.tokenizer
    corpus = load_corpus(files, tokenizer, progress=console.print)
    total = min(len(corpus.tokens), max_tokens or len(corpus.tokens))
    with bar("evaluating", total=total, fields="{task.completed:,.0f} tokens") as (progress, task):
        report = evaluate(
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
    output.print(f"bits per byte    {report.bits_per_byte:.4f}")
    output.print(f"word perplexity  {report.word_perplexity:.2f}")
    output.print(f"over {report.tokens:,} tokens, {report.n_bytes:,} bytes, {report.words:,} words")
    output.print("nats per token by place in the document:")
    for place, nats, n in report.loss_by_position:
        output.print(f"  from {place:>9,}  {nats:.3f}  ({n:,} tokens)")


def _data_file(name: str, folder: Path) -> Path:
    if name in SPLITS:
        path = folder / "books" / f"{name}.txt.xz"
        if not path.exists():
            raise FileNotFoundError(f"split {name!r} is not at {path}; see --data-dir")
        return path
    if Path(name).is_dir():
        raise IsADirectoryError(f"{name} is a directory; allowed: files, or {', '.join(SPLITS)}")
    if not Path(name).exists():
        raise FileNotFoundError(f"no file {name!r}, and no split; splits: {', '.join(SPLITS)}")
    return Path(name)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; errors are one line on standard error and a non-zero exit status."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that a session being fed is saved
    try:
        app()
    except BrokenPipeError:  # the reader of our output has gone, as in `… | head`
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; what was read is saved, the same command goes on")
        sys.exit(130)
    except (StoreError, ValueError, TypeError, OSError, FloatingPointError) as error:
        console.print(f"[bold red]error:[/] {_one_line(error)}", soft_wrap=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    from rich.markup import escape

    if isinstance(error, OSError) and error.strerror and error.filename:
        return escape(f"{error.filename}: {error.strerror}")
    return escape(str(error) or type(error).__name__)


if __name__ == "__main__":
    main()
