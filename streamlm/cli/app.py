"""The command line, assembled: one command or group of commands in each file beside this one."""

import io
import os
import signal
import sys
from typing import Annotated

import typer

from memory_store import StoreError
from streamlm.cli.allocator import return_freed_memory
from streamlm.cli.demo import demo
from streamlm.cli.display import note
from streamlm.cli.evaluate import evaluate
from streamlm.cli.feed import feed
from streamlm.cli.generate import generate
from streamlm.cli.lazy import WithLater
from streamlm.cli.score import score
from streamlm.cli.sessions import app as sessions_app
from streamlm.cli.train import train

app = typer.Typer(
    cls=WithLater,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A language model that reads without end in bounded memory.",
)
for command in (demo, feed, generate, score, train):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(sessions_app, name="sessions")


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
