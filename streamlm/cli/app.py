"""The command line: feed, generate, score, sessions, train, eval, draft and others."""

import io
import json
import os
import signal
import sys
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_store import StoreError
from streamlm.cli.allocator import keep_freed_memory, return_freed_memory
from streamlm.cli.demo import demo
from streamlm.cli.display import (
    bar,
    interruptible,
    note,
    output,
    reading_bar,
    show_report,
    show_rows,
)
from streamlm.cli.lazy import WithLater
from streamlm.cli.options import (
    SPLITS,
    Device,
    Errors,
    Files,
    Json,
    Model,
    OnError,
    SessionName,
    Store,
    data_file,
    locate,
    open_named,
    open_sources,
    training_run,
    whole_name,
)
from streamlm.cli.upkeep import app as sessions_app
from streamlm.units import duration_text, size_text

# What needs torch is imported by the commands that need it: help and listings are there at once.
if TYPE_CHECKING:
    from streamlm.sessions.session import Session
    from streamlm.training.trainer import Trainer

app = typer.Typer(
    cls=WithLater,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A language model that reads without end in bounded memory.",
)
app.add_typer(sessions_app, name="sessions")
app.command()(demo)

SUITE = "passkey, recall, copy, tracking, position, frequency, context"  # parts of eval --suite


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
    return_freed_memory()


@app.command()
def feed(
    files: Files,
    session: Annotated[
        str, typer.Option("--session", metavar="NAME[@BRANCH]", help="Resumed, or begun.")
    ],
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Of a new session: never let go of old states.")
    ] = False,
    score: Annotated[
        bool, typer.Option("--score", help="Also measure bits per byte, which takes time.")
    ] = False,
    store: Store = "sessions",
    model: Model = "books",
    device: Device = "auto",
    errors: OnError = Errors.STRICT,
    as_json: Json = False,
) -> None:
    """Read text into a session's memory. Interrupted, the same command goes on where it was."""
    opened: Session | None = None

    def left_behind() -> str:
        if opened is None or opened.saved is None:
            return "nothing was read"
        again = "" if "-" in files else "; the same command goes on there"
        return f"what was read until token {opened.saved.position:,} is saved{again}"

    with (
        interruptible(left_behind),
        open_sources(files, errors) as sources,
        open_named(store, session, model, device=device, create=True, keep_all=keep_all) as target,
        reading_bar("reading", files) as progress,
    ):
        opened, before = target, target.position
        try:
            report = opened.feed(*sources, errors=errors.value, score=score, progress=progress)
        except ValueError as error:
            if opened.position == before:
                raise
            opened.save()
            raise ValueError(f"{error}; {left_behind()}") from None
    state_bytes, saved, tail = opened.state.nbytes, opened.saved, len(opened.tail.encode())
    path = whole_name(locate(store, session)[0])
    if as_json:
        facts = report.to_dict() | {"state_bytes": state_bytes, "held_bytes": tail}
        snapshot = saved.seq if saved else None
        print(json.dumps(facts | {"session": session, "path": path, "snapshot": snapshot}))
        return
    held = {"held back": f"{tail} byte{'s'[: tail != 1]}, until what follows is known"}
    rows = {
        **(held if tail else {}),
        "position": f"{report.position:,} tokens",
        "state": size_text(state_bytes),
        "session": path,
    }
    show_report(report, rows)


def _opened(
    store: str, session: str | None, model: str, device: str, *, readonly: bool
) -> "Session":
    """The session of that name; None stands for one that has read nothing and is not kept."""
    if session is None:
        from streamlm.checkpoints.checkpoint import load_checkpoint
        from streamlm.sessions.session import Session

        return Session(load_checkpoint(model, device=device))
    return open_named(store, session, model, device=device, readonly=readonly)


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
    draft: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A drafter: faster, and as likely.")
    ] = None,
    store: Store = "sessions",
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write on where a session stands. With no session, continue the prompt alone."""
    from streamlm.runtime.sampling import unescaped

    kept = session is not None and keep
    left_behind = f"session {session} has what was written" if kept else "nothing is kept"
    with (
        interruptible(lambda: left_behind),
        _opened(store, session, model, device, readonly=not keep) as opened,
    ):
        writer = opened if keep else opened.fork()
        drafter = None
        if draft is not None:
            from streamlm.runtime.drafter import load_drafter

            drafter = load_drafter(draft, opened.checkpoint)
        before, started = writer.position, time.perf_counter()
        pieces = writer.generate(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=[unescaped(text) for text in stop or ()],
            seed=seed,
            drafter=drafter,
        )
        if as_json:
            text = "".join(pieces)
            seconds, n = time.perf_counter() - started, writer.position - before
            facts: dict[str, Any] = {"text": text, "tokens": n, "position": writer.position}
            print(json.dumps(facts | {"seconds": seconds, "tokens_per_second": n / seconds}))
            return
        try:
            for piece in chain([prompt], pieces):
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # what is said of it stands on a line of its own
            sys.stdout.write("\n")
            sys.stdout.flush()
            raise
        sys.stdout.write("\n")


@app.command()
def score(
    files: Files,
    session: SessionName = None,
    store: Store = "sessions",
    model: Model = "books",
    device: Device = "auto",
    errors: OnError = Errors.STRICT,
    as_json: Json = False,
) -> None:
    """Tell how likely a text is after all that a session has read. It is not changed."""
    with (
        interruptible(lambda: "nothing is changed"),
        open_sources(files, errors) as sources,
        _opened(store, session, model, device, readonly=True) as opened,
        reading_bar("scoring", files) as progress,
    ):
        report = opened.score(*sources, errors=errors.value, progress=progress)
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    show_report(report, {"given": f"{report.position:,} tokens read before"})


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Option(dir_okay=False, help="A TOML file: [data], [model], [train].")
    ],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder; runs/<recipe> by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run there.")] = False,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's steps.")] = None,
    device: Device = "auto",
) -> None:
    """Train a model. The checkpoint ends up in OUT/model; OUT/log.jsonl tells how it went."""
    chosen, folder, left_behind = training_run(recipe, out, resume=resume, steps=steps)
    keep_freed_memory()
    with interruptible(left_behind):
        from streamlm.training.trainer import trainer_for

        trainer = trainer_for(chosen, folder, device=device, progress=note)
        if resume:
            trainer.resume()
        n_parameters = sum(p.numel() for p in trainer.model.parameters())
        begin = f"from step {trainer.step:,} to" if resume else "steps:"
        note(
            f"{n_parameters / 1e6:.1f} M parameters on {trainer.device}, "
            f"{begin} {chosen.train.steps:,}, into {folder}"
        )
        _follow(trainer)
    output.print(str(folder / "model"))


def _follow(trainer: "Trainer") -> None:
    """Train to the end, showing how it goes."""
    best: float | None = None
    total = trainer.config.steps
    with bar("training", total=total, fields="{task.fields[note]}") as (progress, task):
        for step in trainer.run():
            said = f"{step.bits_per_byte:.3f} bits per byte  {step.tokens_per_second:,.0f} tokens/s"
            if step.valid_bits_per_byte is not None:
                best = step.valid_bits_per_byte
                left = f", {duration_text(step.seconds_left)} left" if step.step < total else ""
                note(
                    f"step {step.step:,}: {step.tokens:,} tokens, train {step.bits_per_byte:.3f}, "
                    f"valid {best:.4f} bits per byte, {step.tokens_per_second:,.0f} tokens/s{left}"
                )
            if best is not None:
                said += f"  valid {best:.3f}"
            progress.update(task, completed=step.step, note=said)


@app.command("eval")
def evaluate_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint directory, or a bundled name.")
    ],
    data: Annotated[
        list[str], typer.Option(help=f"Text files, or a split of the books: {', '.join(SPLITS)}.")
    ],
    data_dir: Annotated[Path, typer.Option(help="Folder that holds books/.")] = Path("data"),
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Without, each segment stands alone.")
    ] = True,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after about so many.")] = None,
    batch_size: Annotated[int, typer.Option(help="Documents read side by side.")] = 8,
    suite: Annotated[
        bool, typer.Option("--suite", help="Measure remembering instead; NAMEs choose parts of it.")
    ] = False,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=f"With --suite: {SUITE}.")
    ] = None,
    sequences: Annotated[
        int, typer.Option(help="With --suite: sequences of a task and distance.")
    ] = 16,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", dir_okay=False, help="With --suite: draw recall there."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Tell how well a model predicts documents. Each is read with an empty memory."""
    for name, value in (("--batch-size", batch_size), ("--max-tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}; allowed: at least 1")
    files = [data_file(name, data_dir) for name in data]
    if suite or names or plot:
        from streamlm.cli.suite import measure_suite

        given: Any = {"suite": suite, "memory": memory, "names": names or (), "plot": plot}
        given |= {"sequences": sequences, "max_tokens": max_tokens, "batch_size": batch_size}
        return measure_suite(model, files, **given, device=device, as_json=as_json)
    with interruptible(lambda: "nothing is changed"):
        from streamlm.checkpoints.checkpoint import load_checkpoint
        from streamlm.training.data import load_corpus
        from streamlm.training.evaluate import evaluate

        checkpoint = load_checkpoint(model, device=device)
        tokenizer = checkpoint.tokenizer
        corpus = load_corpus(files, tokenizer, progress=note)
        total = min(len(corpus.tokens), max_tokens or len(corpus.tokens))
        with bar("evaluating", total=total) as (progress, task):
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
    show_rows(
        {
            "bits per byte": f"{report.bits_per_byte:.4f}",
            "word perplexity": f"{report.word_perplexity:.2f}",
        }
    )
    output.print(f"over {report.tokens:,} tokens, {report.n_bytes:,} bytes, {report.words:,} words")
    output.print("nats per token by place in the document:")
    for place, nats, n in report.loss_by_position:
        output.print(f"  from {place:>9,}  {nats:.3f}  ({n:,} tokens)")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; errors are one line on standard error and a non-zero exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that a session being fed is saved
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what is written may not fit the terminal
    try:
        try:
            app()
        finally:
            if sys.stdout:  # a full disk or a closed pipe is told now, not as Python ends
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `… | head`
        _drop_output()
        sys.exit(1)
    except (StoreError, ValueError, TypeError, OSError, FloatingPointError) as error:
        note(_one_line(error), word="error: ", style="bold red")
        _drop_output()
        sys.exit(1)


def _drop_output() -> None:
    """Forget what cannot be written, which Python would try again, and complain, as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 600 else f"{text[:600]}…"
